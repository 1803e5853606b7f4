// The ops that norm and rotate queries and keys, and store keys and values in the paged cache.
#include <cstring>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/rms_norm.h"

namespace glm::cpu {

void CheckCache(const KvLayer& cache, DType act, int64_t kv_heads, int64_t head_size,
                const char* name) {
  const DType cell = cache.keys.dtype;
  CHECK(cell == act || cell == DType::kF8E4M3) << name << " is " << cache.keys.ToString();
  CheckShape(cache.keys, cell, {-1, kv_heads, -1, head_size}, name);
  CHECK(cache.key_scale > 0 && cache.value_scale > 0)
      << name << " has scales " << cache.key_scale << ", " << cache.value_scale;
}

namespace {

void CheckValues(const KvLayer& cache, const char* name) {
  const auto& shape = cache.keys.shape;
  CheckShape(cache.values, cache.keys.dtype, {shape[0], shape[1], shape[2], shape[3]}, name);
}

/// Where the cache keeps a token's position.
struct Place {
  int64_t block;
  int64_t slot;
};

Place PlaceOf(const BatchView& batch, const Tensor& keys, int64_t token) {
  const int64_t position = batch.positions.Data<int32_t>()[token];
  const int64_t sequence = batch.token_sequences.Data<int32_t>()[token];
  const int64_t block_size = keys.shape[2];
  DCHECK(position >= 0 && position / block_size < batch.block_tables.shape[1]);
  const int64_t block = batch.block_tables.Row<int32_t>(sequence)[position / block_size];
  DCHECK(block >= 0 && block < keys.shape[0]);
  return {block, position % block_size};
}

/// Stores n values, rounded to act already, from column `column` of the cell on; FP8 ones divided
/// by the scale.
template <typename Cell, typename T>
void StoreCell(const Tensor& cache, const Place& place, int64_t head, int64_t column, const T* from,
               int64_t n, float scale) {
  Cell* to = cache.Data<Cell>() + place.block * cache.stride[0] + head * cache.stride[1] +
             place.slot * cache.stride[2] + column;
  if constexpr (sizeof(Cell) == 1) {
    for (int64_t i = 0; i < n; ++i) to[i] = ToFloat8(ToFloat(from[i]) / scale);
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = FromFloat<Cell>(ToFloat(from[i]));
  }
}

/// One head of q or k, in place: norm, then rotation.
template <typename T>
void NormRope(T* head, int64_t head_size, const Tensor& weight, float epsilon, const float* angles,
              int64_t rope_size) {
  float values[kHeadSizeMax];
  for (int64_t i = 0; i < head_size; ++i) values[i] = ToFloat(head[i]);
  if (!weight.empty()) {
    RmsNorm(values, head_size, weight.Data<T>(), epsilon);
    for (int64_t i = 0; i < head_size; ++i) values[i] = ToFloat(FromFloat<T>(values[i]));
  }
  const int64_t half = rope_size / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float cosine = angles[i];
    const float sine = angles[half + i];
    const float low = values[i];
    const float high = values[half + i];
    values[i] = low * cosine - high * sine;
    values[half + i] = high * cosine + low * sine;
  }
  for (int64_t i = 0; i < head_size; ++i) head[i] = FromFloat<T>(values[i]);
}

template <typename T, typename Cell>
void NormRopeStoreToken(const NormRopeStoreArgs& args, int64_t head_size, int64_t t) {
  const KvLayer& cache = args.cache;
  const Place place = PlaceOf(args.batch, cache.keys, t);
  const float* angles = args.rope.Row<float>(args.batch.positions.Data<int32_t>()[t]);
  const int64_t rope_size = args.rope.shape[1];

  T* head = args.qkv.Row<T>(t);
  for (int64_t h = 0; h < args.query_heads; ++h, head += head_size) {
    NormRope(head, head_size, args.q_norm, args.epsilon, angles, rope_size);
  }
  const T* value = head + args.kv_heads * head_size;
  for (int64_t h = 0; h < args.kv_heads; ++h, head += head_size, value += head_size) {
    NormRope(head, head_size, args.k_norm, args.epsilon, angles, rope_size);
    StoreCell<Cell>(cache.keys, place, h, 0, head, head_size, cache.key_scale);
    StoreCell<Cell>(cache.values, place, h, 0, value, head_size, cache.value_scale);
  }
}

/// Rotates pairs of neighbours, from one place to another or in place.
template <typename T>
void RotatePairs(const T* from, const float* angles, int64_t rope_size, T* to) {
  const int64_t half = rope_size / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float cosine = angles[i];
    const float sine = angles[half + i];
    const float even = ToFloat(from[2 * i]);
    const float odd = ToFloat(from[2 * i + 1]);
    to[2 * i] = FromFloat<T>(even * cosine - odd * sine);
    to[2 * i + 1] = FromFloat<T>(odd * cosine + even * sine);
  }
}

template <typename T, typename Cell>
void MlaRopeStoreToken(const MlaRopeStoreArgs& args, int64_t t) {
  const KvLayer& cache = args.cache;
  const Place place = PlaceOf(args.batch, cache.keys, t);
  const float* angles = args.rope.Row<float>(args.batch.positions.Data<int32_t>()[t]);
  const int64_t rope_size = args.rope.shape[1];
  const int64_t latent_size = args.latent_norm.shape[0];
  const int64_t query_size = args.queries.shape[1] / args.query_heads;

  T* query = args.queries.Row<T>(t);
  for (int64_t h = 0; h < args.query_heads; ++h, query += query_size) {
    T* rotated = query + query_size - rope_size;
    RotatePairs(rotated, angles, rope_size, rotated);
  }
  const T* latent = args.latent.Row<T>(t);
  float values[kLatentCellMax];
  T cell[kLatentCellMax];
  for (int64_t i = 0; i < latent_size; ++i) values[i] = ToFloat(latent[i]);
  RmsNorm(values, latent_size, args.latent_norm.Data<T>(), args.epsilon);
  for (int64_t i = 0; i < latent_size; ++i) cell[i] = FromFloat<T>(values[i]);
  RotatePairs(latent + latent_size, angles, rope_size, cell + latent_size);
  StoreCell<Cell>(cache.keys, place, 0, 0, cell, latent_size + rope_size, cache.key_scale);
}

}  // namespace

void NormRopeStore(Device& device, const NormRopeStoreArgs& args) {
  const DType act = args.qkv.dtype;
  const int64_t rows = args.qkv.shape[0];
  const int64_t head_size = args.cache.keys.shape[3];
  const int64_t width = (args.query_heads + 2 * args.kv_heads) * head_size;
  CHECK_LE(head_size, kHeadSizeMax);
  CheckShape(args.qkv, act, {rows, width}, "norm_rope_store.qkv");
  CheckCache(args.cache, act, args.kv_heads, head_size, "norm_rope_store.keys");
  CheckValues(args.cache, "norm_rope_store.values");
  CheckShape(args.rope, DType::kF32, {-1, -1}, "norm_rope_store.rope");
  CHECK(args.rope.shape[1] % 2 == 0 && args.rope.shape[1] <= head_size)
      << "rope size " << args.rope.shape[1];
  if (!args.q_norm.empty()) CheckShape(args.q_norm, act, {head_size}, "norm_rope_store.q_norm");
  if (!args.k_norm.empty()) CheckShape(args.k_norm, act, {head_size}, "norm_rope_store.k_norm");
  WithActivationType(act, [&](auto type) {
    WithCacheType(args.cache.keys.dtype, [&](auto cell) {
      ParallelFor(CpuDevice::Of(device).pool(), ValidTokens(args.batch, rows), RowGrain(width),
                  [&](int64_t t) {
                    NormRopeStoreToken<decltype(type), decltype(cell)>(args, head_size, t);
                  });
    });
  });
}

void MlaRopeStore(Device& device, const MlaRopeStoreArgs& args) {
  const DType act = args.queries.dtype;
  const int64_t rows = args.queries.shape[0];
  const int64_t rope_size = args.rope.shape[1];
  const int64_t cell_size = args.latent_norm.shape[0] + rope_size;
  CHECK_LE(cell_size, kLatentCellMax);
  CHECK(rope_size > 0 && rope_size % 2 == 0) << "rope size " << rope_size;
  CHECK(args.query_heads > 0 && args.queries.shape[1] % args.query_heads == 0 &&
        args.queries.shape[1] / args.query_heads >= rope_size)
      << "mla_rope_store.queries is " << args.queries.ToString();
  CheckShape(args.queries, act, {rows, -1}, "mla_rope_store.queries");
  CheckShape(args.latent, act, {rows, cell_size}, "mla_rope_store.latent");
  CheckShape(args.latent_norm, act, {-1}, "mla_rope_store.latent_norm");
  CheckShape(args.rope, DType::kF32, {-1, rope_size}, "mla_rope_store.rope");
  CheckCache(args.cache, act, 1, cell_size, "mla_rope_store.keys");
  WithActivationType(act, [&](auto type) {
    WithCacheType(args.cache.keys.dtype, [&](auto cell) {
      ParallelFor(CpuDevice::Of(device).pool(), ValidTokens(args.batch, rows),
                  RowGrain(args.queries.shape[1]),
                  [&](int64_t t) { MlaRopeStoreToken<decltype(type), decltype(cell)>(args, t); });
    });
  });
}

}  // namespace glm::cpu
