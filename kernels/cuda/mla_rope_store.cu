// mla_rope_store: rotates the queries' rope parts in place, norms the latent, and stores latent and
// rotated rope key in the paged cache. Block (t, 0) makes the cell of token t; the others rotate
// queries, a warp one head, or several where there are tokens enough to fill the device.

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/launch_after.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/warp.cuh"

namespace glm::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kLatentMax = 1024;
constexpr int kHeadsAWarp = 5;
constexpr int kFewTokens = 128;  // up to here a warp has one head

struct MlaRopeParams {
  const int32_t* counts;
  const int32_t* positions;
  const int32_t* token_sequences;
  const int32_t* block_tables;
  int64_t block_tables_stride;
  BFloat16* queries;
  int64_t queries_stride;
  const BFloat16* latents;
  int64_t latents_stride;
  const BFloat16* norm;
  float epsilon;
  const float* rope;
  int64_t rope_stride;
  int rope_size;
  int heads;
  int query_size;
  int latent;
  void* cells;
  float cell_scale;
  int block_size;
};

__device__ __forceinline__ void StoreCell(BFloat16* cell, int i, float value, float /*scale*/) {
  cell[i] = ToBFloat16(value);
}
/// The value is rounded to act before it is scaled.
__device__ __forceinline__ void StoreCell(uint8_t* cell, int i, float value, float scale) {
  cell[i] = static_cast<uint8_t>(PackFp8(RoundBf16(value) / scale, 0.0f) & 0xFF);
}

/// The rotated pair of neighbours.
__device__ __forceinline__ float2 Rotate(float cosine, float sine, float even, float odd) {
  return {even * cosine - odd * sine, odd * cosine + even * sine};
}

template <typename Cell>
__device__ void MakeCell(const MlaRopeParams& p, int token, int position, const float* angles) {
  __shared__ float warp_sums[kWarp];
  const BFloat16* row = p.latents + token * p.latents_stride;
  float values[kLatentMax / kThreads];
  float squares = 0;
#pragma unroll
  for (int j = 0; j < kLatentMax / kThreads; ++j) {
    const int i = j * kThreads + static_cast<int>(threadIdx.x);
    values[j] = i < p.latent ? ToFloat(row[i]) : 0.0f;
    squares += values[j] * values[j];
  }
  const float mean = BlockSum(squares, warp_sums) / static_cast<float>(p.latent);
  const float inverse = 1.0f / sqrtf(mean + p.epsilon);
  const int64_t block =
      p.block_tables[p.token_sequences[token] * p.block_tables_stride + position / p.block_size];
  Cell* cell = static_cast<Cell*>(p.cells) +
               (block * p.block_size + position % p.block_size) * (p.latent + p.rope_size);
#pragma unroll
  for (int j = 0; j < kLatentMax / kThreads; ++j) {
    const int i = j * kThreads + static_cast<int>(threadIdx.x);
    if (i >= p.latent) break;
    StoreCell(cell, i, RoundBf16(RoundBf16(values[j] * inverse) * ToFloat(p.norm[i])),
              p.cell_scale);
  }
  const int half = p.rope_size / 2;
  for (int i = threadIdx.x; i < half; i += kThreads) {
    const float2 pair = Rotate(angles[i], angles[half + i], ToFloat(row[p.latent + 2 * i]),
                               ToFloat(row[p.latent + 2 * i + 1]));
    StoreCell(cell, p.latent + 2 * i, pair.x, p.cell_scale);
    StoreCell(cell, p.latent + 2 * i + 1, pair.y, p.cell_scale);
  }
}

/// Two neighbours; in one load where they lie on 4 bytes.
template <bool kAligned>
__device__ __forceinline__ uint32_t LoadPair(const BFloat16* pair) {
  if constexpr (kAligned) return *reinterpret_cast<const uint32_t*>(pair);
  const auto* values = reinterpret_cast<const uint16_t*>(pair);
  return values[0] | static_cast<uint32_t>(values[1]) << 16;
}
template <bool kAligned>
__device__ __forceinline__ void StorePair(BFloat16* pair, float2 values) {
  if constexpr (kAligned) {
    *reinterpret_cast<uint32_t*>(pair) = PackBf16(values.x, values.y);
  } else {
    pair[0] = ToBFloat16(values.x);
    pair[1] = ToBFloat16(values.y);
  }
}

template <typename Cell, int kHeads, bool kAligned>
__global__ void __launch_bounds__(kThreads) MlaRopeStoreKernel(const MlaRopeParams p) {
  const int token = blockIdx.x;
  DependencyStart();
  const int tokens = p.counts[0];  // awaited together with the position
  const int position = p.positions[token];
  if (blockIdx.y == 0) {
    if (token >= tokens) return;
    MakeCell<Cell>(p, token, position, p.rope + position * p.rope_stride);
    return;
  }
  const int first_head =
      ((static_cast<int>(blockIdx.y) - 1) * kWarps + static_cast<int>(threadIdx.x) / kWarp) *
      kHeads;
  const int half = p.rope_size / 2;
  BFloat16* first = p.queries + token * p.queries_stride +
                    static_cast<int64_t>(first_head + 1) * p.query_size - p.rope_size;
  for (int i = threadIdx.x % kWarp; i < half; i += kWarp) {
    // What is rotated does not wait for the position; padding has some too.
    uint32_t pairs[kHeads];
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      pairs[h] = 0;
      if (first_head + h < p.heads) {
        pairs[h] = LoadPair<kAligned>(first + static_cast<int64_t>(h) * p.query_size + 2 * i);
      }
    }
    if (token >= tokens) return;
    const float* angles = p.rope + position * p.rope_stride;
    const float cosine = angles[i];
    const float sine = angles[half + i];
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      if (first_head + h >= p.heads) break;
      StorePair<kAligned>(first + static_cast<int64_t>(h) * p.query_size + 2 * i,
                          Rotate(cosine, sine, __uint_as_float(pairs[h] << 16),
                                 __uint_as_float(pairs[h] & 0xFFFF0000u)));
    }
  }
}

}  // namespace

void MlaRopeStore(Device& device, const MlaRopeStoreArgs& args) {
  const OpScope op(device, "mla_rope_store");
  const int64_t tokens = args.queries.shape[0];
  const int64_t rope_size = args.rope.shape[1];
  const int64_t latent = args.latent_norm.shape[0];
  const int64_t query_size = args.queries.shape[1] / args.query_heads;
  const DType cache = args.cache.keys.dtype;
  CHECK(cache == DType::kBF16 || cache == DType::kF8E4M3) << "cache of " << Name(cache);
  CheckShape(args.queries, DType::kBF16, {tokens, args.query_heads * query_size},
             "mla_rope_store.queries");
  CheckShape(args.latent, DType::kBF16, {tokens, latent + rope_size}, "mla_rope_store.latent");
  CheckShape(args.latent_norm, DType::kBF16, {latent}, "mla_rope_store.latent_norm");
  CheckShape(args.rope, DType::kF32, {-1, -1}, "mla_rope_store.rope");
  CheckShape(args.cache.keys, cache, {-1, 1, -1, latent + rope_size}, "mla_rope_store.keys");
  CHECK(args.cache.keys.contiguous());
  CHECK(rope_size % 2 == 0 && rope_size <= query_size) << "rope_size " << rope_size;
  CHECK_LE(latent, kLatentMax);
  const MlaRopeParams params = {
      .counts = args.batch.counts.Data<int32_t>(),
      .positions = args.batch.positions.Data<int32_t>(),
      .token_sequences = args.batch.token_sequences.Data<int32_t>(),
      .block_tables = args.batch.block_tables.Data<int32_t>(),
      .block_tables_stride = args.batch.block_tables.stride[0],
      .queries = args.queries.Data<BFloat16>(),
      .queries_stride = args.queries.stride[0],
      .latents = args.latent.Data<BFloat16>(),
      .latents_stride = args.latent.stride[0],
      .norm = args.latent_norm.Data<BFloat16>(),
      .epsilon = args.epsilon,
      .rope = args.rope.Data<float>(),
      .rope_stride = args.rope.stride[0],
      .rope_size = static_cast<int>(rope_size),
      .heads = static_cast<int>(args.query_heads),
      .query_size = static_cast<int>(query_size),
      .latent = static_cast<int>(latent),
      .cells = args.cache.keys.data,
      .cell_scale = args.cache.key_scale,
      .block_size = static_cast<int>(args.cache.keys.shape[2]),
  };
  const bool aligned = query_size % 2 == 0 && args.queries.stride[0] % 2 == 0 &&
                       reinterpret_cast<uintptr_t>(args.queries.data) % 4 == 0;
  const bool few = tokens <= kFewTokens || !aligned;
  const int64_t heads_a_block = kWarps * (few ? 1 : kHeadsAWarp);
  const dim3 grid(
      static_cast<unsigned>(tokens),
      static_cast<unsigned>(1 + (args.query_heads + heads_a_block - 1) / heads_a_block));
  const auto launch = [&](auto kernel) {
    LaunchAfter(kernel, grid, kThreads, 0, op.stream(), params);
  };
  const auto launch_of = [&](auto cell) {
    using Cell = decltype(cell);
    if (!aligned) return launch(MlaRopeStoreKernel<Cell, 1, false>);
    launch(few ? MlaRopeStoreKernel<Cell, 1, true> : MlaRopeStoreKernel<Cell, kHeadsAWarp, true>);
  };
  if (cache == DType::kBF16) {
    launch_of(BFloat16());
  } else {
    launch_of(uint8_t());
  }
}

}  // namespace glm::cuda
