// Latent attention of any sizes and FP8 caches: a block a (token, head), the absorbed form. Exact
// and slow: every head reads the cache anew. For what the kernel on wgmma does not take.

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/launch_after.h"
#include "kernels/cuda/mla_params.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/warp.cuh"

namespace glm::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kLatentMax = 512;
constexpr int kLaneValues = kLatentMax / kWarp;

__device__ __forceinline__ float LoadCell(const BFloat16* cells, int64_t i) {
  return ToFloat(cells[i]);
}
__device__ __forceinline__ float LoadCell(const __nv_fp8_e4m3* cells, int64_t i) {
  return static_cast<float>(cells[i]);
}

/// A warp's running softmax; lane l has sums of columns l, l + 32, ...
struct WarpState {
  float largest = -INFINITY;
  float sum = 0;
  float values[kLaneValues] = {};
};

template <typename Cell>
__device__ void AddPosition(const MlaParams& p, const float* query, const Cell* cells,
                            int64_t first, int lane, WarpState& state) {
  float score = 0;
  for (int i = lane; i < p.latent + p.rope; i += kWarp) {
    score += query[i] * LoadCell(cells, first + i);
  }
  score = WarpSum(score) * p.scale_log2 * p.cell_scale;
  const float largest = fmaxf(state.largest, score);
  const float factor = exp2f(state.largest - largest);
  const float weight = exp2f(score - largest);
  state.largest = largest;
  state.sum = state.sum * factor + weight;
#pragma unroll
  for (int j = 0; j < kLaneValues; ++j) {
    const int i = j * kWarp + lane;
    if (i < p.latent) {
      state.values[j] = state.values[j] * factor + weight * LoadCell(cells, first + i);
    }
  }
}

/// sums[i] = the weighted sum of the latents over all warps, rounded. `merge`: floats
/// [warp][L + 2].
__device__ void MergeWarps(const MlaParams& p, const WarpState& state, int warp, int lane,
                           float* merge, float* sums) {
  float* own = merge + warp * (p.latent + 2);
  for (int j = 0; j < kLaneValues; ++j) {
    const int i = j * kWarp + lane;
    if (i < p.latent) own[i] = state.values[j];
  }
  if (lane == 0) {
    own[p.latent] = state.largest;
    own[p.latent + 1] = state.sum;
  }
  __syncthreads();
  float largest = -INFINITY;
  for (int w = 0; w < kWarps; ++w) {
    largest = fmaxf(largest, merge[w * (p.latent + 2) + p.latent]);
  }
  float factors[kWarps];
  float total = 0;
  for (int w = 0; w < kWarps; ++w) {
    factors[w] = exp2f(merge[w * (p.latent + 2) + p.latent] - largest);
    total += factors[w] * merge[w * (p.latent + 2) + p.latent + 1];
  }
  for (int i = threadIdx.x; i < p.latent; i += kThreads) {
    float value = 0;
    for (int w = 0; w < kWarps; ++w) value += factors[w] * merge[w * (p.latent + 2) + i];
    sums[i] = RoundBf16(value / total * p.cell_scale);
  }
  __syncthreads();
}

template <typename Cell>
__global__ void __launch_bounds__(kThreads)
    PlainMlaKernel(const MlaParams p, BFloat16* out, int64_t out_stride) {
  extern __shared__ float shared_floats[];
  float* query = shared_floats;             // [L + rope]
  float* sums = query + p.latent + p.rope;  // [L]
  float* merge = sums + p.latent;
  const int token = blockIdx.x;
  const int head = blockIdx.y;
  DependencyStart();
  if (token >= p.counts[0]) return;
  const int query_size = p.plain + p.rope;
  const BFloat16* row = p.queries + (static_cast<int64_t>(token) * p.heads + head) * query_size;
  const BFloat16* up = p.kv_up + static_cast<int64_t>(head) * (p.plain + p.value) * p.latent;
  for (int i = threadIdx.x; i < p.latent; i += kThreads) {
    float sum = 0;
    for (int j = 0; j < p.plain; ++j) sum += ToFloat(row[j]) * ToFloat(up[j * p.latent + i]);
    query[i] = RoundBf16(sum);
  }
  for (int i = threadIdx.x; i < p.rope; i += kThreads) {
    query[p.latent + i] = ToFloat(row[p.plain + i]);
  }
  __syncthreads();

  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int32_t* table = p.block_tables + p.token_sequences[token] * p.block_tables_stride;
  const Cell* cells = static_cast<const Cell*>(p.cells);
  WarpState state;
  for (int position = warp; position <= p.positions[token]; position += kWarps) {
    const int64_t cell = static_cast<int64_t>(table[position / p.block_size]) * p.block_size +
                         position % p.block_size;
    AddPosition(p, query, cells, cell * (p.latent + p.rope), lane, state);
  }
  MergeWarps(p, state, warp, lane, merge, sums);
  BFloat16* target = out + token * out_stride + static_cast<int64_t>(head) * p.value;
  for (int j = warp; j < p.value; j += kWarps) {
    const BFloat16* value_row = up + static_cast<int64_t>(p.plain + j) * p.latent;
    float sum = 0;
    for (int i = lane; i < p.latent; i += kWarp) sum += ToFloat(value_row[i]) * sums[i];
    sum = WarpSum(sum);
    if (lane == 0) target[j] = ToBFloat16(sum);
  }
}

}  // namespace

void RunPlainMla(cudaStream_t stream, const MlaParams& params, DType cache_dtype, BFloat16* out,
                 int64_t out_stride) {
  CHECK_LE(params.latent, kLatentMax) << "mla_attention: width of the latent";
  const int bytes = static_cast<int>(sizeof(float)) *
                    (2 * params.latent + params.rope + kWarps * (params.latent + 2));
  const dim3 grid(static_cast<unsigned>(params.tokens), static_cast<unsigned>(params.heads));
  const auto kernel =
      cache_dtype == DType::kBF16 ? PlainMlaKernel<BFloat16> : PlainMlaKernel<__nv_fp8_e4m3>;
  CHECK_LE(bytes, 48 << 10);
  LaunchAfter(kernel, grid, kThreads, bytes, stream, params, out, out_stride);
}

}  // namespace glm::cuda
