// Decode attention's inner part: 16 rows against a chunk of 16 positions, by one warp.
//
// Who calls: attention_decode_sm90.cu, whose head tells the whole story.
#pragma once

#include <cstdint>

#include "kernels/cuda/attention_params.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/warp.cuh"

namespace glm::cuda {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kRows = 16;   // of an item
constexpr int kChunk = 16;  // positions that a warp takes at a time
constexpr int kUnit = kWarps * kChunk;
constexpr int kBlocksPerSm = 2;
constexpr int kSequencesMax = 4096;
constexpr int kPartsMax = 1024;            // more than there are blocks
constexpr int kCombineSequencesMax = 128;  // of a step whose parts a second kernel adds

template <int kHeadSize, bool kFp8>
struct Shape {
  static constexpr int kRowBytes = kHeadSize * 2;
  static constexpr int kVectors = kRowBytes / 16;  // 16-byte vectors of a row
  static constexpr int kSwizzle = kVectors < 8 ? kVectors - 1 : 7;
  static constexpr int kTileBytes = kChunk * kRowBytes;  // keys or values of a chunk
  static constexpr int kStages = kHeadSize > 128 ? 2 : 3;
  // An FP8 chunk arrives in half the bytes and is made BF16 in a tile of the warp's own.
  static constexpr int kLoadBytes = kFp8 ? kTileBytes / 2 : kTileBytes;
  static constexpr int kWarpBytes = kStages * 2 * kLoadBytes + (kFp8 ? 2 * kTileBytes : 0);
  static constexpr int kRingBytes = kWarps * kWarpBytes;
  static constexpr int kMergeBytes = kWarps * kRows * (kHeadSize + 2) * 4;
  static constexpr int kSharedBytes = kRingBytes > kMergeBytes ? kRingBytes : kMergeBytes;
};

/// Floats of a part of an item: its sums, then the rows' maxima, then their sums.
template <int kHeadSize>
constexpr int PartFloats() {
  return kRows * (kHeadSize + 2);
}

/// The running softmax of a warp's two rows a thread (g and g + 8) and its 16 x D sums.
template <int kHeadSize>
struct Softmax {
  float largest[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};
  float out[kHeadSize / 8][4] = {};
};

/// Cache block of the chunk at position `first`; -1 past the end.
__device__ __forceinline__ int BlockOf(const AttentionParams& p, const int32_t* table, int first,
                                       int length) {
  return first < length ? table[first / p.block_size] : -1;
}

/// Starts the copy of one chunk of keys and values; positions from `length` on become zeros. A
/// chunk past the end is not copied. kWhole: a chunk lies in one cache block, `block`.
template <int kHeadSize, bool kWhole, bool kFp8>
__device__ __forceinline__ void LoadChunk(const AttentionParams& p, uint32_t ring,
                                          const int32_t* table, int block, int kv_head, int first,
                                          int length, int lane) {
  using S = Shape<kHeadSize, kFp8>;
  constexpr int kRowBytes = kFp8 ? kHeadSize : S::kRowBytes;
  constexpr int kVectors = kRowBytes / 16;
  constexpr int kCopies = (kChunk * kVectors + kWarp - 1) / kWarp;
  if (block < 0) return;
  const int64_t first_cell =
      (static_cast<int64_t>(block) * p.kv_heads + kv_head) * p.block_size + first % p.block_size;
  const char* all_keys = static_cast<const char*>(p.keys);
  const char* all_values = static_cast<const char*>(p.values);
#pragma unroll
  for (int i = 0; i < kCopies; ++i) {
    const int row = (i * kWarp + lane) / kVectors;
    const int vector = (i * kWarp + lane) % kVectors;
    if (row >= kChunk) break;
    const bool valid = first + row < length;
    const int place = kFp8 ? vector : vector ^ (row & S::kSwizzle);
    const uint32_t target = ring + row * kRowBytes + place * 16;
    const int64_t offset = first_cell * kRowBytes + (i * kWarp + lane) * 16;
    const char* key = all_keys + offset;
    const char* value = all_values + offset;
    if constexpr (!kWhole) {
      const int position = valid ? first + row : first;
      const int64_t cell =
          (static_cast<int64_t>(table[position / p.block_size]) * p.kv_heads + kv_head) *
              p.block_size +
          position % p.block_size;
      key = all_keys + cell * kRowBytes + vector * 16;
      value = all_values + cell * kRowBytes + vector * 16;
    }
    CopyAsync16(target, key, valid);
    CopyAsync16(target + S::kLoadBytes, value, valid);
  }
}

/// Two FP8 values as two BF16 ones, which hold them exactly.
__device__ __forceinline__ uint32_t Fp8PairToBf16(uint32_t pair) {
  const __half2_raw halves = __nv_cvt_fp8x2_to_halfraw2(static_cast<uint16_t>(pair), __NV_E4M3);
  const float2 values = __half22float2(__half2(halves));
  return PackBf16(values.x, values.y);
}

/// Makes an FP8 chunk's keys and values BF16, in the layout that AddChunk reads.
template <int kHeadSize>
__device__ __forceinline__ void WidenChunk(const uint8_t* chunk, uint8_t* tile, int lane) {
  using S = Shape<kHeadSize, true>;
  constexpr int kVectors = kHeadSize / 16;
#pragma unroll
  for (int i = lane; i < 2 * kChunk * kVectors; i += kWarp) {
    const int row = i / kVectors % kChunk;
    const int vector = i % kVectors * 2;
    const uint4 packed = *reinterpret_cast<const uint4*>(chunk + i * 16);
    uint8_t* target = tile + i / (kChunk * kVectors) * S::kTileBytes + row * S::kRowBytes;
    const auto widen = [](uint32_t low, uint32_t high) {
      return uint4{Fp8PairToBf16(low), Fp8PairToBf16(low >> 16), Fp8PairToBf16(high),
                   Fp8PairToBf16(high >> 16)};
    };
    *reinterpret_cast<uint4*>(target + ((vector ^ (row & S::kSwizzle)) * 16)) =
        widen(packed.x, packed.y);
    *reinterpret_cast<uint4*>(target + (((vector + 1) ^ (row & S::kSwizzle)) * 16)) =
        widen(packed.z, packed.w);
  }
}

/// Adds one chunk, present in shared memory at `ring`, to the running softmax.
template <int kHeadSize>
__device__ __forceinline__ void AddChunk(const AttentionParams& p, Softmax<kHeadSize>& state,
                                         const uint32_t (&query)[kHeadSize / 16][4], uint32_t ring,
                                         int first, const int (&last_seen)[2], int lane) {
  using S = Shape<kHeadSize, false>;
  const int matrix = lane / 8;
  const int matrix_row = lane % 8;
  float scores[2][4] = {};
#pragma unroll
  for (int k = 0; k < kHeadSize / 16; ++k) {
    const int row = matrix / 2 * 8 + matrix_row;
    const int vector = k * 2 + matrix % 2;
    uint32_t keys[4];
    LoadMatrix4(keys, ring + row * S::kRowBytes + ((vector ^ (row & S::kSwizzle)) * 16));
    MmaBf16(scores[0], query[k], keys[0], keys[1]);
    MmaBf16(scores[1], query[k], keys[2], keys[3]);
  }

  float largest[2] = {state.largest[0], state.largest[1]};
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int position = first + n * 8 + lane % 4 * 2 + i % 2;
      scores[n][i] = position <= last_seen[i / 2] ? scores[n][i] * p.scale_log2 : -INFINITY;
      largest[i / 2] = fmaxf(largest[i / 2], scores[n][i]);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    largest[r] = fmaxf(largest[r], __shfl_xor_sync(kAllLanes, largest[r], 1));
    largest[r] = fmaxf(largest[r], __shfl_xor_sync(kAllLanes, largest[r], 2));
  }
  const bool grew = largest[0] != state.largest[0] || largest[1] != state.largest[1];
  if (__any_sync(kAllLanes, grew)) {
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      factor[r] = largest[r] == -INFINITY ? 1.0f : exp2f(state.largest[r] - largest[r]);
      state.largest[r] = largest[r];
      state.sum[r] *= factor[r];
    }
#pragma unroll
    for (int n = 0; n < kHeadSize / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) state.out[n][i] *= factor[i / 2];
    }
  }
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float top = state.largest[i / 2];
      scores[n][i] = top == -INFINITY ? 0.0f : exp2f(scores[n][i] - top);
      state.sum[i / 2] += scores[n][i];
    }
  }
  uint32_t high[4];
  uint32_t low[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float x = scores[i / 2][i % 2 * 2];
    const float y = scores[i / 2][i % 2 * 2 + 1];
    high[i] = PackBf16(x, y);
    low[i] =
        PackBf16(x - __uint_as_float(high[i] << 16), y - __uint_as_float(high[i] & 0xFFFF0000u));
  }
#pragma unroll
  for (int n = 0; n < kHeadSize / 16; ++n) {
    const int row = matrix % 2 * 8 + matrix_row;
    const int vector = n * 2 + matrix / 2;
    uint32_t values[4];
    LoadMatrix4Transposed(
        values, ring + S::kTileBytes + row * S::kRowBytes + ((vector ^ (row & S::kSwizzle)) * 16));
    MmaBf16(state.out[2 * n], high, values[0], values[1]);
    MmaBf16(state.out[2 * n], low, values[0], values[1]);
    MmaBf16(state.out[2 * n + 1], high, values[2], values[3]);
    MmaBf16(state.out[2 * n + 1], low, values[2], values[3]);
  }
}

}  // namespace glm::cuda
