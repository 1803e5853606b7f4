// moe_experts: gate+up with SwiGLU, down, and the weighted sum of a token's rows.

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/launch_after.h"
#include "kernels/cuda/moe_few_tokens.h"
#include "kernels/cuda/moe_gemm.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/side_stream.h"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/warp.cuh"

namespace glm::cuda {
namespace {

constexpr int kGroup = 128;
constexpr int kCombineThreads = 256;
constexpr int kCopyThreads = 256;

/// rows[place] = in[token of place], 16 bytes a lane, and its scale, one a token. A warp a place.
__global__ void __launch_bounds__(kCopyThreads)
    PlaceRowsKernel(const MoeGemmParams p, int row_bytes, uint8_t* rows, float* row_scales) {
  const int place = static_cast<int>(blockIdx.x * (kCopyThreads / kWarp) + threadIdx.x / kWarp);
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const int routed = p.tokens * p.experts_per_token;
  if (place >= p.pair_rows) return;
  int token = place - routed;
  if (place < routed) {
    if (place >= p.expert_starts[p.experts]) return;
    token = p.pair_order[place] / p.experts_per_token;
  } else if (token >= p.counts[0]) {
    return;
  }
  const uint4* source = reinterpret_cast<const uint4*>(p.in + token * p.in_row_bytes);
  uint4* target = reinterpret_cast<uint4*>(rows + static_cast<int64_t>(place) * row_bytes);
#pragma unroll 4
  for (int i = lane; i < row_bytes / 16; i += kWarp) target[i] = source[i];
  if (row_scales != nullptr && lane == 0) row_scales[place] = p.in_scales[token];
}

/// Columns column .. column + 3 of a row of y.
template <bool kBf16Rows>
__device__ __forceinline__ float4 LoadRow4(const void* y, int64_t at) {
  if constexpr (kBf16Rows) {
    const uint2 packed = *reinterpret_cast<const uint2*>(static_cast<const BFloat16*>(y) + at);
    return float4{__uint_as_float(packed.x << 16), __uint_as_float(packed.x & 0xFFFF0000u),
                  __uint_as_float(packed.y << 16), __uint_as_float(packed.y & 0xFFFF0000u)};
  } else {
    return *reinterpret_cast<const float4*>(static_cast<const float*>(y) + at);
  }
}

/// out[t] = sum_j weight_j * y[t * k + j] + y[shared row of t], in that order; of the columns that
/// down has computed.
template <bool kBf16Rows>
__global__ void __launch_bounds__(kCombineThreads)
    CombineKernel(const MoeGemmParams p, const float* expert_weights, BFloat16* out,
                  int64_t out_stride) {
  DependencyStart();
  const int64_t token = blockIdx.y;
  const int tokens = p.counts[0];  // awaited together with the rows, of which padding has some too
  const int within = (blockIdx.x * kCombineThreads + threadIdx.x) * 4;
  if (within >= p.outputs) return;
  const int column = p.first_output + within;
  const int k = p.experts_per_token;
  const auto row_at = [&](int64_t row) {
    return LoadRow4<kBf16Rows>(p.y, row * p.hidden + column);
  };
  float4 sum = {0, 0, 0, 0};
#pragma unroll 4
  for (int j = 0; j < k; ++j) {
    const float weight = expert_weights[token * k + j];
    const float4 row = row_at(token * k + j);
    sum.x += weight * row.x;
    sum.y += weight * row.y;
    sum.z += weight * row.z;
    sum.w += weight * row.w;
  }
  if (p.shared_experts != 0) {
    const float4 row = row_at(static_cast<int64_t>(p.tokens) * k + token);
    sum.x += row.x;
    sum.y += row.y;
    sum.z += row.z;
    sum.w += row.w;
  }
  if (token >= tokens) return;
  *reinterpret_cast<uint2*>(out + token * out_stride + column) =
      uint2{PackBf16(sum.x, sum.y), PackBf16(sum.z, sum.w)};
}

struct ExpertsScratch {
  uint8_t* rows;      // tokens by place, room for bf16
  float* row_scales;  // by place
  uint8_t* h;
  float* h_scales;
  float* y;

  ExpertsScratch(ScratchLayout& layout, int64_t pair_rows, int64_t width, int64_t hidden)
      : rows(layout.Take<uint8_t>(pair_rows * hidden * 2)),
        row_scales(layout.Take<float>(pair_rows)),
        h(layout.Take<uint8_t>(pair_rows * HiddenRowBytes(width))),
        h_scales(layout.Take<float>(pair_rows * ((width + kGroup - 1) / kGroup))),
        y(layout.Take<float>(pair_rows * hidden)) {}

  // Room for bf16.
  static int64_t HiddenRowBytes(int64_t width) { return (width * 2 + 127) / 128 * 128; }
};

MoeScales CheckExperts(const MoeExpertsArgs& args, int64_t experts, int64_t width, int64_t hidden) {
  const int64_t tokens = args.in.values.shape[0];
  const DType type = args.in.values.dtype;
  CHECK(type == DType::kBF16 || type == DType::kF8E4M3)
      << "moe_experts.in is " << args.in.values.ToString()
      << "; the CUDA backend takes BF16 and F8_E4M3";
  for (const Weight* weight : {&args.gate_up, &args.down}) {
    CHECK_EQ(weight->scale_column_offset, 0) << "moe_experts: blocks of scales that are cut";
  }
  CheckShape(args.in.values, type, {tokens, hidden}, "moe_experts.in");
  CheckShape(args.gate_up.values, type, {experts, 2 * width, hidden}, "moe_experts.gate_up");
  CheckShape(args.down.values, type, {experts, hidden, width}, "moe_experts.down");
  CheckShape(args.out, DType::kBF16, {tokens, hidden}, "moe_experts.out");
  CHECK(args.gate_up.values.contiguous() && args.down.values.contiguous());
  CHECK(args.shared_experts == 0 || args.shared_experts == 1);
  CHECK_EQ(hidden % 8, 0);
  CHECK_EQ(args.out.stride[0] % 4, 0);
  if (type == DType::kBF16) return MoeScales::kNone;
  const auto blocks = [](int64_t extent) { return (extent + kGroup - 1) / kGroup; };
  if (args.gate_up.scales.rank == 2) {
    CheckShape(args.in.scales, DType::kF32, {tokens}, "moe_experts.in.scales");
    CheckShape(args.gate_up.scales, DType::kF32, {experts, 2 * width}, "gate_up.scales");
    CheckShape(args.down.scales, DType::kF32, {experts, hidden}, "down.scales");
    return MoeScales::kChannel;
  }
  CheckShape(args.in.scales, DType::kF32, {tokens, blocks(hidden)}, "moe_experts.in.scales");
  CheckShape(args.gate_up.scales, DType::kF32, {experts, blocks(2 * width), blocks(hidden)},
             "gate_up.scales");
  CheckShape(args.down.scales, DType::kF32, {experts, blocks(hidden), blocks(width)},
             "down.scales");
  return MoeScales::kBlock;
}

}  // namespace

int64_t MoeExpertsScratchBytes(const StepLimits& limits) {
  if (limits.experts == 0) return 0;
  ScratchLayout layout(nullptr);
  // experts_per_token counts the shared expert only where there is one; room for it is always
  // taken.
  const ExpertsScratch scratch(layout, limits.tokens_max * (limits.experts_per_token + 1),
                               limits.expert_width, limits.hidden);
  return layout.bytes();
}

namespace {

MoeGemmParams ParamsOf(const MoeExpertsArgs& args, const ExpertsScratch& scratch,
                       int32_t* progress) {
  const int64_t tokens = args.in.values.shape[0];
  const int64_t experts = args.gate_up.values.shape[0];
  const int64_t width = args.gate_up.values.shape[1] / 2;
  const int64_t k = args.routing.expert_ids.shape[1];
  return {
      .phases = MoePhases::kBoth,
      .counts = args.batch.counts.Data<int32_t>(),
      .pair_order = args.routing.pair_order.Data<int32_t>(),
      .expert_starts = args.routing.expert_starts.Data<int32_t>(),
      .tokens = static_cast<int>(tokens),
      .experts = static_cast<int>(experts - args.shared_experts),
      .shared_experts = static_cast<int>(args.shared_experts),
      .experts_per_token = static_cast<int>(k),
      .width = static_cast<int>(width),
      .hidden = static_cast<int>(args.in.values.shape[1]),
      .pair_rows = static_cast<int>(tokens * (k + args.shared_experts)),
      .first_output = 0,
      .outputs = static_cast<int>(args.in.values.shape[1]),
      .in = args.in.values.Data<uint8_t>(),
      .in_row_bytes = args.in.values.stride[0] * ByteSize(args.in.values.dtype),
      .in_scales = args.in.scales.Data<float>(),
      .row_scales = scratch.row_scales,
      .gate_up_scales = args.gate_up.scales.Data<float>(),
      .down_scales = args.down.scales.Data<float>(),
      .h = scratch.h,
      .h_row_bytes = ExpertsScratch::HiddenRowBytes(width),
      .h_scales = scratch.h_scales,
      .y = scratch.y,
      .progress = progress,
  };
}

}  // namespace

void MoeExperts(Device& device, const MoeExpertsArgs& args) {
  const OpScope op(device, "moe_experts");
  const int64_t tokens = args.in.values.shape[0];
  const int64_t hidden = args.in.values.shape[1];
  const int64_t experts = args.gate_up.values.shape[0];
  const int64_t width = args.gate_up.values.shape[1] / 2;
  const int64_t k = args.routing.expert_ids.shape[1];
  const MoeScales scales = CheckExperts(args, experts, width, hidden);
  const DType type = args.in.values.dtype;
  const int64_t size = ByteSize(type);
  const int64_t pair_rows = tokens * (k + args.shared_experts);

  ScratchLayout sizes(nullptr);
  ExpertsScratch scratch(sizes, pair_rows, width, hidden);
  ScratchLayout layout(op.device().Scratch(sizes.bytes()));
  scratch = ExpertsScratch(layout, pair_rows, width, hidden);
  const MoeGemmParams params = ParamsOf(args, scratch, op.device().counters());
  CHECK(reinterpret_cast<uintptr_t>(params.in) % 16 == 0 && params.in_row_bytes % 16 == 0)
      << "moe_experts.in must have 16-byte aligned rows";
  const int sm_count = op.device().sm_count();
  if (args.sum_over == nullptr && TakesMoeFewTokens(params, scales, sm_count)) {
    const MoeFewTokens few = {.gate_up = args.gate_up.values.Data<uint8_t>(),
                              .down = args.down.values.Data<uint8_t>(),
                              .expert_ids = args.routing.expert_ids.Data<int32_t>(),
                              .expert_weights = args.routing.expert_weights.Data<float>(),
                              .out = args.out.Data<BFloat16>(),
                              .out_stride = args.out.stride[0]};
    return RunMoeFewTokens(op.stream(), sm_count, scales, params, few);
  }
  const int token_tile = MoeTokenTile(params, scales);
  const int token_box = MoeTokenBox(token_tile);
  const MoeGemmMaps maps = {
      .gate_up =
          MakeTensorMap(args.gate_up.values.data, type, experts * 2 * width, hidden, hidden, 128),
      .rows = MoeNeedsRows(token_tile)
                  ? MakeTensorMap(scratch.rows, type, pair_rows, hidden, hidden, token_box)
                  : MakeTensorMap(params.in, type, tokens, hidden, params.in_row_bytes / size, 1),
      .down = MakeTensorMap(args.down.values.data, type, experts * hidden, width, width, 128),
      .h = MakeTensorMap(scratch.h, type, pair_rows, width, params.h_row_bytes / size, token_box)};
  if (MoeNeedsRows(token_tile)) {
    constexpr int64_t kRowsPerBlock = kCopyThreads / kWarp;
    const auto blocks = static_cast<unsigned>((pair_rows + kRowsPerBlock - 1) / kRowsPerBlock);
    // Not LaunchAfter(): that gained nothing at 256 tokens, and where it let the GEMM start beside
    // this, a prompt of 8192 tokens lost 3 % (H200).
    PlaceRowsKernel<<<blocks, kCopyThreads, 0, op.stream()>>>(
        params, static_cast<int>(hidden * size), scratch.rows,
        scales == MoeScales::kChannel ? scratch.row_scales : nullptr);
  }
  const auto multiply = [&](MoePhases phases, int blocks, MoeGemmParams part) {
    part.phases = phases;
    RunMoeGemms(op.stream(), blocks, scales, maps, part);
  };
  const auto combine = [&](const MoeGemmParams& part) {
    const auto blocks =
        static_cast<unsigned>((part.outputs / 4 + kCombineThreads - 1) / kCombineThreads);
    LaunchAfter(MoeWideTiles(token_tile) ? CombineKernel<true> : CombineKernel<false>,
                dim3(blocks, static_cast<unsigned>(tokens)), kCombineThreads, 0, op.stream(), part,
                args.routing.expert_weights.Data<float>(), args.out.Data<BFloat16>(),
                args.out.stride[0]);
  };
  if (args.sum_over == nullptr && !MoeWideTiles(token_tile) && op.device().alone()) {
    multiply(MoePhases::kBoth, sm_count, params);
    return combine(params);
  }
  multiply(MoePhases::kGateUp, sm_count, params);
  const auto compute = [&](int64_t first, int64_t count) {
    MoeGemmParams part = params;
    part.first_output = static_cast<int>(first);
    part.outputs = static_cast<int>(count);
    multiply(MoePhases::kDown, op.device().product_sms(), part);
    combine(part);
  };
  if (args.sum_over == nullptr) return compute(0, hidden);
  SumBeside(op.device(), *args.sum_over, args.out, compute);
}

}  // namespace glm::cuda
