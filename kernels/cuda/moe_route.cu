// The router: fp32 logits, sigmoid, top-k with a correction bias, and each expert's list of pairs.
//
// The logits are a GEMM with float outputs. Then one warp a token picks its experts in k rounds of a
// warp-wide maximum. The lists are built without atomics and without zeroed memory: who owns an
// expert counts the pairs of lower experts (where its list starts) and then writes its own pairs in
// order. For few tokens both steps are one block's; for many, each expert has a block, which reads
// all choices twice from L2.

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/lt_gemms.h"
#include "kernels/cuda/small_gemm.h"
#include "kernels/cuda/warp.cuh"

namespace glm::cuda {
namespace {

constexpr int kExpertsMax = 256;
constexpr int kScoresPerLane = kExpertsMax / kWarp;
constexpr int kOneBlockPairsMax = 128;
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
  const int token = (blockIdx.x * blockDim.x + threadIdx.x) / kWarp;
  if (token < p.counts[0]) ChooseExperts(p, token, threadIdx.x % kWarp, nullptr);
}

/// One block an expert.
__global__ void __launch_bounds__(kBlockThreads) ListKernel(const RouteParams p) {
  __shared__ int warp_counts[2][kWarp];
  const int expert = blockIdx.x;
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int pairs = p.counts[0] * p.experts_per_token;

  int lower = 0;
  for (int i = threadIdx.x; i < pairs; i += kBlockThreads) lower += p.expert_ids[i] < expert;
  lower = __reduce_add_sync(kAllLanes, lower);
  if (lane == 0) warp_counts[0][warp] = lower;
  __syncthreads();
  int next = __reduce_add_sync(kAllLanes, warp_counts[0][lane]);
  __syncthreads();
  if (threadIdx.x == 0) {
    p.expert_starts[expert] = next;
    if (expert == p.experts - 1) p.expert_starts[p.experts] = pairs;
  }
  int buffer = 0;
  for (int begin = 0; begin < pairs; begin += kBlockThreads) {
    const int i = begin + threadIdx.x;
    const bool mine = i < pairs && p.expert_ids[i] == expert;
    const uint32_t votes = __ballot_sync(kAllLanes, mine);
    if (lane == 0) warp_counts[buffer][warp] = __popc(votes);
    __syncthreads();
    const int count = warp_counts[buffer][lane];
    const int before = __reduce_add_sync(kAllLanes, lane < warp ? count : 0);
    if (mine) p.pair_order[next + before + __popc(votes & ((1u << lane) - 1))] = i;
    next += __reduce_add_sync(kAllLanes, count);
    buffer ^= 1;
  }
}

/// Choices and lists of at most kOneBlockPairsMax pairs.
__global__ void __launch_bounds__(kBlockThreads) RouteOneBlockKernel(const RouteParams p) {
  __shared__ int32_t ids[kOneBlockPairsMax];
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int tokens = p.counts[0];
  for (int token = warp; token < tokens; token += kBlockThreads / kWarp) {
    ChooseExperts(p, token, lane, ids);
  }
  __syncthreads();
  const int pairs = tokens * p.experts_per_token;
  for (int expert = warp; expert < p.experts; expert += kBlockThreads / kWarp) {
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
  const int32_t* counts = args.batch.counts.Data<int32_t>();
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
      .valid_rows = counts,
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

  const RouteParams params = {
      .counts = counts,
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
  if (tokens * k <= kOneBlockPairsMax) {
    RouteOneBlockKernel<<<1, kBlockThreads, 0, op.stream()>>>(params);
  } else {
    constexpr int kTokensPerBlock = 8;
    ChooseKernel<<<static_cast<unsigned>((tokens + kTokensPerBlock - 1) / kTokensPerBlock),
                   kTokensPerBlock * kWarp, 0, op.stream()>>>(params);
    ListKernel<<<static_cast<unsigned>(experts), kBlockThreads, 0, op.stream()>>>(params);
  }
}

}  // namespace glm::cuda
