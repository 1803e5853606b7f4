// The two products of latent attention with kv_up, for a few tokens: a GEMV a head each, bound by
// reading kv_up once. Their blocks start while the kernel before ends, and hold their part of
// kv_up, which no kernel writes, in registers by the time that the queries or the latents are
// there.
//
// In a decode step of one sequence (H100, GLM-4.7-Flash) cuBLASLt's batched GEMMs stood at 5.5 us
// each and started late; from 5 tokens on they are as fast. The expansion adds the parts of rows
// that are split along the cache itself: a kernel for that took 8 us.

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/launch_after.h"
#include "kernels/cuda/mla_params.h"
#include "kernels/cuda/mla_tiles.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/warp.cuh"

namespace glm::cuda {
namespace {

constexpr int kTokensMax = 4;
constexpr int kVector = 8;
constexpr int kThreads = 256;

// Absorption: a block has kAbsorbColumns of a head's latent, a thread 8 of them and every 16th row.
constexpr int kAbsorbColumns = 128;
constexpr int kAbsorbVectors = kAbsorbColumns / kVector;
constexpr int kAbsorbGroups = kThreads / kAbsorbVectors;
constexpr int kAbsorbRows = 12;  // of a thread
constexpr int kPlainMax = kAbsorbRows * kAbsorbGroups;

// Expansion: a block has 32 values of a head, a warp 4 of them, a lane two vectors of each.
constexpr int kExpandRows = 4;  // of a warp
constexpr int kExpandBlockRows = kExpandRows * kThreads / kWarp;
constexpr int kExpandVectors = kLatent / kVector / kWarp;

__device__ __forceinline__ Bf16x8 AsValues(const uint4& raw) {
  return Bf16x8{{raw.x, raw.y, raw.z, raw.w}};
}

/// latents[t, h] = K_h^T (plain part of query h), rounded.
__global__ void __launch_bounds__(kThreads) AbsorbKernel(const MlaParams p, BFloat16* latents) {
  __shared__ float sums[kAbsorbGroups][kAbsorbColumns];
  const int head = blockIdx.x;
  const int column = blockIdx.y * kAbsorbColumns + threadIdx.x % kAbsorbVectors * kVector;
  const int group = threadIdx.x / kAbsorbVectors;
  const BFloat16* keys = p.kv_up + static_cast<int64_t>(head) * (p.plain + p.value) * kLatent;
  uint4 raw[kAbsorbRows];
#pragma unroll
  for (int i = 0; i < kAbsorbRows; ++i) {
    const int row = i * kAbsorbGroups + group;
    raw[i] = row < p.plain ? LoadStreamEarly(keys + static_cast<int64_t>(row) * kLatent + column)
                           : uint4{0, 0, 0, 0};
  }
  DependencyStart();
  const int tokens = p.counts[0];
  for (int token = 0; token < tokens; ++token) {
    const BFloat16* query =
        p.queries + (static_cast<int64_t>(token) * p.heads + head) * (p.plain + p.rope);
    float own[kVector] = {};
#pragma unroll
    for (int i = 0; i < kAbsorbRows; ++i) {
      const int row = i * kAbsorbGroups + group;
      const float factor = row < p.plain ? ToFloat(query[row]) : 0.0f;
      const Bf16x8 values = AsValues(raw[i]);
#pragma unroll
      for (int j = 0; j < kVector / 2; ++j) {
        const float2 pair = values.Pair(j);
        own[2 * j] += factor * pair.x;
        own[2 * j + 1] += factor * pair.y;
      }
    }
    __syncthreads();  // the last token's sums were read
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      sums[group][threadIdx.x % kAbsorbVectors * kVector + j] = own[j];
    }
    __syncthreads();
    if (threadIdx.x >= kAbsorbColumns) continue;
    float sum = 0;
#pragma unroll
    for (int g = 0; g < kAbsorbGroups; ++g) sum += sums[g][threadIdx.x];
    latents[(static_cast<int64_t>(token) * p.heads + head) * kLatent + blockIdx.y * kAbsorbColumns +
            threadIdx.x] = ToBFloat16(sum);
  }
}

/// The latent sums of head `head` of all tokens, from parts where they are split. The block.
template <typename Tiling>
__device__ __forceinline__ void GatherSums(const MlaParams& p, int runners, int head, int tokens,
                                           const BFloat16* latents, const MlaParts& split_parts,
                                           BFloat16 (*sums)[kLatent]) {
  constexpr int kTokenThreads = kLatent / kCombineColumns;
  const int32_t* prefix = split_parts.prefix;
  const int column = threadIdx.x % kTokenThreads * kCombineColumns;
  for (int token = threadIdx.x / kTokenThreads; token < tokens; token += kThreads / kTokenThreads) {
    const SplitToken<Tiling> place(p, prefix, runners, token);
    const SplitRow split = place.Row(p, prefix, head);
    *reinterpret_cast<uint2*>(&sums[token][column]) =
        split.row >= 0
            ? AddParts<Tiling>(split_parts.parts, split, place.run, column)
            : *reinterpret_cast<const uint2*>(
                  latents + (static_cast<int64_t>(token) * p.heads + head) * kLatent + column);
  }
  __syncthreads();
}

/// out[t, h] = V_h times the latent sums of t and h, rounded. `runners`: that made them.
template <typename Tiling>
__global__ void __launch_bounds__(kThreads)
    ExpandKernel(const MlaParams p, int runners, const BFloat16* latents, const MlaParts parts,
                 BFloat16* out, int64_t out_stride) {
  __shared__ alignas(16) BFloat16 latent_sums[kTokensMax][kLatent];
  const int head = blockIdx.x;
  const int lane = threadIdx.x % kWarp;
  const int row = blockIdx.y * kExpandBlockRows + threadIdx.x / kWarp * kExpandRows;
  const BFloat16* values =
      p.kv_up + (static_cast<int64_t>(head) * (p.plain + p.value) + p.plain) * kLatent;
  uint4 raw[kExpandRows][kExpandVectors];
#pragma unroll
  for (int r = 0; r < kExpandRows; ++r) {
    const BFloat16* source = values + static_cast<int64_t>(min(row + r, p.value - 1)) * kLatent;
#pragma unroll
    for (int v = 0; v < kExpandVectors; ++v) {
      raw[r][v] = LoadStreamEarly(source + (v * kWarp + lane) * kVector);
    }
  }
  DependencyStart();
  const int tokens = p.counts[0];
  GatherSums<Tiling>(p, runners, head, tokens, latents, parts, latent_sums);
  for (int token = 0; token < tokens; ++token) {
    const BFloat16* latent = latent_sums[token];
    float sums[kExpandRows] = {};
#pragma unroll
    for (int v = 0; v < kExpandVectors; ++v) {
      const Bf16x8 in = *reinterpret_cast<const Bf16x8*>(latent + (v * kWarp + lane) * kVector);
#pragma unroll
      for (int r = 0; r < kExpandRows; ++r) {
        const Bf16x8 weight = AsValues(raw[r][v]);
#pragma unroll
        for (int j = 0; j < kVector / 2; ++j) {
          const float2 a = in.Pair(j);
          const float2 b = weight.Pair(j);
          sums[r] += a.x * b.x + a.y * b.y;
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kExpandRows; ++r) {
      const float sum = WarpSum(sums[r]);
      if (lane == r && row + r < p.value) {
        out[token * out_stride + static_cast<int64_t>(head) * p.value + row + r] = ToBFloat16(sum);
      }
    }
  }
}

}  // namespace

bool TakesMlaFewTokens(const MlaParams& p) {
  return p.tokens <= kTokensMax && p.sequences <= kTokensMax && p.latent == kLatent &&
         p.plain <= kPlainMax && reinterpret_cast<uintptr_t>(p.kv_up) % 16 == 0;
}

void RunMlaAbsorption(cudaStream_t stream, const MlaParams& p, BFloat16* latents) {
  const dim3 grid(static_cast<unsigned>(p.heads), kLatent / kAbsorbColumns);
  LaunchAfter(AbsorbKernel, grid, kThreads, 0, stream, p, latents);
}

void RunMlaExpansion(cudaStream_t stream, int sm_count, const MlaParams& p, const BFloat16* latents,
                     void* parts, BFloat16* out, int64_t out_stride) {
  const dim3 grid(static_cast<unsigned>(p.heads),
                  static_cast<unsigned>((p.value + kExpandBlockRows - 1) / kExpandBlockRows));
  const auto expand = [&](auto tiling) {
    using Tiling = decltype(tiling);
    LaunchAfter(ExpandKernel<Tiling>, grid, kThreads, 0, stream, p, sm_count * Tiling::kRunners,
                latents, MlaParts(parts, sm_count), out, out_stride);
  };
  if (TakesMlaDecode(p)) {
    expand(DecodeTiling());
  } else {
    expand(WideTiling());
  }
}

}  // namespace glm::cuda
