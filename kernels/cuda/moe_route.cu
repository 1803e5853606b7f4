// The router: fp32 logits, sigmoid, top-k with a correction bias, and each expert's list of pairs.
//
// The logits are a GEMM with float outputs. Then one warp a token picks its experts in k rounds of
// a warp-wide maximum. The lists are built without atomics and without zeroed memory: who owns an
// expert counts the pairs of lower experts (where its list starts) and then writes its own pairs in
// order. For few tokens one kernel does all: a block computes the logits of one expert, and the
// last block to finish, found by a ticket, chooses and lists. For many, the GEMM is a kernel of its
// own, and each expert has a block that reads all choices twice.

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/launch_after.h"
#include "kernels/cuda/lt_gemms.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/small_gemm.h"
#include "kernels/cuda/warp.cuh"

namespace glm::cuda {
namespace {

constexpr int kExpertsMax = 256;
constexpr int kScoresPerLane = kExpertsMax / kWarp;
constexpr int kFusedTokensMax = 16;
constexpr int kFusedThreads = 512;
constexpr int kBlockThreads = 1024;

struct RouteParams {
  const int32_t* counts;
  const float* logits;  // [T, E]
  const float* correction_bias;
  int experts;
  int experts_per_token;
  bool normalize;
  float scaling;
  int32_t* expert_ids;
  float* expert_weights;
  int32_t* pair_order;
  int32_t* expert_starts;
};

/// The choices of one token, by one warp.
__device__ void ChooseExperts(const RouteParams& p, int token, int lane, int32_t* ids_copy) {
  float scores[kScoresPerLane];
  float ranks[kScoresPerLane];
  const float* logits = p.logits + static_cast<int64_t>(token) * p.experts;
#pragma unroll
  for (int i = 0; i < kScoresPerLane; ++i) {
    const int expert = i * kWarp + lane;
    scores[i] = 0;
    ranks[i] = -INFINITY;
    if (expert < p.experts) {
      scores[i] = 1.0f / (1.0f + expf(-logits[expert]));
      ranks[i] = scores[i] + p.correction_bias[expert];
    }
  }
  const int64_t first_pair = static_cast<int64_t>(token) * p.experts_per_token;
  float own_weight = 0;  // lane j keeps the weight of choice j
  float sum = 0;
  for (int j = 0; j < p.experts_per_token; ++j) {
    float best = -INFINITY;
    int best_expert = kExpertsMax;
    float best_score = 0;
#pragma unroll
    for (int i = 0; i < kScoresPerLane; ++i) {
      if (ranks[i] > best) {
        best = ranks[i];
        best_expert = i * kWarp + lane;
        best_score = scores[i];
      }
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      const float other = __shfl_xor_sync(kAllLanes, best, offset);
      const int other_expert = __shfl_xor_sync(kAllLanes, best_expert, offset);
      const float other_score = __shfl_xor_sync(kAllLanes, best_score, offset);
      if (other > best || (other == best && other_expert < best_expert)) {
        best = other;
        best_expert = other_expert;
        best_score = other_score;
      }
    }
#pragma unroll
    for (int i = 0; i < kScoresPerLane; ++i) {
      if (i * kWarp + lane == best_expert) ranks[i] = -INFINITY;
    }
    sum += best_score;
    if (lane == j) own_weight = best_score;
    if (lane == 0) {
      p.expert_ids[first_pair + j] = best_expert;
      if (ids_copy != nullptr) ids_copy[first_pair + j] = best_expert;
    }
  }
  if (lane < p.experts_per_token) {
    if (p.normalize) own_weight /= sum + 1e-20f;
    p.expert_weights[first_pair + lane] = own_weight * p.scaling;
  }
}

__global__ void ChooseKernel(const RouteParams p) {
  DependencyStart();
  const int token = (blockIdx.x * blockDim.x + threadIdx.x) / kWarp;
  if (token < p.counts[0]) ChooseExperts(p, token, threadIdx.x % kWarp, nullptr);
}

/// One block an expert; each warp reads its own run of the pairs twice, and waits once between.
__global__ void __launch_bounds__(kBlockThreads) ListKernel(const RouteParams p) {
  __shared__ int warp_lower[kWarp];
  __shared__ int warp_mine[kWarp];
  DependencyStart();
  const int expert = blockIdx.x;
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int pairs = p.counts[0] * p.experts_per_token;
  const int run = (pairs + kBlockThreads - 1) / kBlockThreads * kWarp;
  const int begin = min(pairs, warp * run);
  const int end = min(pairs, begin + run);

  int lower = 0;
  int mine = 0;
#pragma unroll 8
  for (int i = begin + lane; i < end; i += kWarp) {
    const int chosen = p.expert_ids[i];
    lower += chosen < expert;
    mine += chosen == expert;
  }
  lower = __reduce_add_sync(kAllLanes, lower);
  mine = __reduce_add_sync(kAllLanes, mine);
  if (lane == 0) {
    warp_lower[warp] = lower;
    warp_mine[warp] = mine;
  }
  __syncthreads();
  const int start = __reduce_add_sync(kAllLanes, warp_lower[lane]);
  if (threadIdx.x == 0) {
    p.expert_starts[expert] = start;
    if (expert == p.experts - 1) p.expert_starts[p.experts] = pairs;
  }
  int next = start + __reduce_add_sync(kAllLanes, lane < warp ? warp_mine[lane] : 0);
#pragma unroll 4
  for (int i = begin + lane; i - lane < end; i += kWarp) {
    const bool chosen = i < end && p.expert_ids[i] == expert;
    const uint32_t votes = __ballot_sync(kAllLanes, chosen);
    if (chosen) p.pair_order[next + __popc(votes & ((1u << lane) - 1))] = i;
    next += __popc(votes);
  }
}

/// Choices and lists of at most kFusedTokensMax tokens, by one block.
__device__ void ChooseAndList(const RouteParams& p, int32_t* ids) {
  constexpr int kWarps = kFusedThreads / kWarp;
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int tokens = p.counts[0];
  for (int token = warp; token < tokens; token += kWarps) ChooseExperts(p, token, lane, ids);
  __syncthreads();
  const int pairs = tokens * p.experts_per_token;
  for (int expert = warp; expert < p.experts; expert += kWarps) {
    int lower = 0;
    for (int i = lane; i < pairs; i += kWarp) lower += ids[i] < expert;
    int next = __reduce_add_sync(kAllLanes, lower);
    if (lane == 0) p.expert_starts[expert] = next;
    for (int begin = 0; begin < pairs; begin += kWarp) {
      const int i = begin + lane;
      const bool mine = i < pairs && ids[i] == expert;
      const uint32_t votes = __ballot_sync(kAllLanes, mine);
      if (mine) p.pair_order[next + __popc(votes & ((1u << lane) - 1))] = i;
      next += __popc(votes);
    }
  }
  if (threadIdx.x == 0) p.expert_starts[p.experts] = pairs;
}

/// Block e computes the logits of expert e; the last block routes. `logits` is p.logits. Tokens are
/// asked for kAtOnce at a time: one after the other, 16 took 24 us (H200).
template <int kAtOnce>
__global__ void __launch_bounds__(kFusedThreads)
    FusedRouteKernel(const RouteParams p, const BFloat16* in, int64_t in_stride,
                     const BFloat16* gate, int64_t gate_stride, int hidden, float* logits,
                     int32_t* ticket) {
  __shared__ float warp_sums[kFusedThreads / kWarp][kFusedTokensMax];
  __shared__ int32_t ids[kFusedTokensMax * kWarp];
  __shared__ int last;
  const int expert = blockIdx.x;
  const BFloat16* gate_row = gate + expert * gate_stride;
  // The gate is nobody's output: its first columns are asked for before the wait.
  Bf16x8 first_weight = {};
  if (threadIdx.x * 8 < hidden) {
    first_weight = *reinterpret_cast<const Bf16x8*>(gate_row + threadIdx.x * 8);
  }
  DependencyStart();
  const int tokens = p.counts[0];  // awaited together with the first token, which is always valid
  Bf16x8 first_value = {};
  if (threadIdx.x * 8 < hidden) {
    first_value = *reinterpret_cast<const Bf16x8*>(in + threadIdx.x * 8);
  }
  float sums[kFusedTokensMax] = {};
  for (int column = threadIdx.x * 8; column < hidden; column += kFusedThreads * 8) {
    const bool first = column == threadIdx.x * 8;
    const Bf16x8 weight =
        first ? first_weight : *reinterpret_cast<const Bf16x8*>(gate_row + column);
#pragma unroll
    for (int begin = 0; begin < kFusedTokensMax; begin += kAtOnce) {
      if (begin >= tokens) break;
      Bf16x8 values[kAtOnce];
#pragma unroll
      for (int t = 0; t < kAtOnce; ++t) {
        // Those past the last are the last one's again, and nobody's.
        const int token = min(begin + t, tokens - 1);
        values[t] = begin + t == 0 && first
                        ? first_value
                        : *reinterpret_cast<const Bf16x8*>(in + token * in_stride + column);
      }
#pragma unroll
      for (int t = 0; t < kAtOnce; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 w = weight.Pair(i);
          const float2 x = values[t].Pair(i);
          sums[begin + t] += w.x * x.x + w.y * x.y;
        }
      }
    }
  }
#pragma unroll
  for (int begin = 0; begin < kFusedTokensMax; begin += kAtOnce) {
    if (begin >= tokens) break;
#pragma unroll
    for (int t = begin; t < begin + kAtOnce; ++t) {
      const float sum = WarpSum(sums[t]);
      if (threadIdx.x % kWarp == 0) warp_sums[threadIdx.x / kWarp][t] = sum;
    }
  }
  __syncthreads();
  if (threadIdx.x < tokens) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kFusedThreads / kWarp; ++w) sum += warp_sums[w][threadIdx.x];
    logits[threadIdx.x * p.experts + expert] = sum;
    __threadfence();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(ticket, 1) == p.experts - 1;
    if (last) *ticket = 0;
    __threadfence();
  }
  __syncthreads();
  if (last) ChooseAndList(p, ids);
}

/// GEMM of any size for the logits.
void ComputeLogits(const OpScope& op, const MoeRouteArgs& args, float* logits) {
  const int64_t tokens = args.in.shape[0];
  const int64_t hidden = args.in.shape[1];
  const int64_t experts = args.gate.shape[0];
  const SmallGemm small = {
      .rows = tokens,
      .outputs = experts,
      .depth = hidden,
      .in = args.in.data,
      .in_stride = args.in.stride[0],
      .weight = args.gate.data,
      .weight_stride = args.gate.stride[0],
      .out = logits,
      .out_stride = experts,
      .out_dtype = DType::kF32,
      .valid_rows = args.batch.counts.Data<int32_t>(),
  };
  const LtProblem large = {
      .rows = tokens,
      .outputs = experts,
      .depth = hidden,
      .in = args.in.data,
      .in_stride = args.in.stride[0],
      .weight = args.gate.data,
      .weight_stride = args.gate.stride[0],
      .out = logits,
      .out_stride = experts,
      .out_dtype = DType::kF32,
  };
  if (TakesSmallGemm(small)) {
    RunSmallGemm(op.stream(), op.device().sm_count(), small);
  } else if (LtGemms::Takes(large)) {
    op.device().gemms().Run(op.stream(), large);
  } else {
    RunPlainGemm(op.stream(), small);
  }
}

}  // namespace

int64_t MoeRouteScratchBytes(const StepLimits& limits) {
  return limits.tokens_max * limits.experts * static_cast<int64_t>(sizeof(float));
}

void MoeRoute(Device& device, const MoeRouteArgs& args) {
  const OpScope op(device, "moe_route");
  const int64_t tokens = args.in.shape[0];
  const int64_t hidden = args.in.shape[1];
  const int64_t experts = args.gate.shape[0];
  const int64_t k = args.out.expert_ids.shape[1];
  CheckShape(args.in, DType::kBF16, {-1, -1}, "moe_route.in");
  CheckShape(args.gate, DType::kBF16, {experts, hidden}, "moe_route.gate");
  CheckShape(args.correction_bias, DType::kF32, {experts}, "moe_route.correction_bias");
  CheckShape(args.out.expert_ids, DType::kI32, {tokens, k}, "routing.expert_ids");
  CheckShape(args.out.expert_weights, DType::kF32, {tokens, k}, "routing.expert_weights");
  CheckShape(args.out.pair_order, DType::kI32, {tokens * k}, "routing.pair_order");
  CheckShape(args.out.expert_starts, DType::kI32, {experts + 1}, "routing.expert_starts");
  CHECK_LE(experts, kExpertsMax);
  CHECK(k <= kWarp && k <= experts) << "experts per token " << k;

  float* logits = static_cast<float*>(op.device().Scratch(tokens * experts * 4));
  const RouteParams params = {
      .counts = args.batch.counts.Data<int32_t>(),
      .logits = logits,
      .correction_bias = args.correction_bias.Data<float>(),
      .experts = static_cast<int>(experts),
      .experts_per_token = static_cast<int>(k),
      .normalize = args.normalize,
      .scaling = args.scaling,
      .expert_ids = args.out.expert_ids.Data<int32_t>(),
      .expert_weights = args.out.expert_weights.Data<float>(),
      .pair_order = args.out.pair_order.Data<int32_t>(),
      .expert_starts = args.out.expert_starts.Data<int32_t>(),
  };
  const auto vector_rows = [](const Tensor& tensor) {
    return reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0 && tensor.stride[0] % 8 == 0;
  };
  if (tokens <= kFusedTokensMax && hidden % 8 == 0 && vector_rows(args.in) &&
      vector_rows(args.gate)) {
    LaunchAfter(tokens == 1 ? FusedRouteKernel<1> : FusedRouteKernel<4>,
                dim3(static_cast<unsigned>(experts)), kFusedThreads, 0, op.stream(), params,
                args.in.Data<BFloat16>(), args.in.stride[0], args.gate.Data<BFloat16>(),
                args.gate.stride[0], static_cast<int>(hidden), logits, op.device().counters());
  } else {
    ComputeLogits(op, args, logits);
    constexpr int kTokensPerBlock = 8;
    const auto blocks = static_cast<unsigned>((tokens + kTokensPerBlock - 1) / kTokensPerBlock);
    LaunchAfter(ChooseKernel, dim3(blocks), kTokensPerBlock * kWarp, 0, op.stream(), params);
    LaunchAfter(ListKernel, dim3(static_cast<unsigned>(experts)), kBlockThreads, 0, op.stream(),
                params);
  }
}

}  // namespace glm::cuda
