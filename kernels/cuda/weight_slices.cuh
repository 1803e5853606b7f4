// Weights from device memory straight into tensor core fragments, for kernels of few tokens.
//
// Who calls: small_gemm.cu, whose head tells why, and moe_few_tokens.cu.
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/warp.cuh"

namespace glm::cuda {

constexpr int kSliceBytes = 128;  // of k, that a warp takes at a time
constexpr int kRowTile = 16;      // weight rows of one mma
constexpr int kTokenTile = 8;

template <bool kEarly>
__device__ __forceinline__ uint4 LoadWeight(const uint8_t* pointer, bool valid) {
  if (!valid) return uint4{0, 0, 0, 0};
  return kEarly ? LoadStreamEarly(pointer) : LoadStream(pointer);
}
/// A kernel that starts early must not ask for tokens before its wait: no load that the compiler
/// may move.
template <bool kEarly>
__device__ __forceinline__ uint4 LoadToken(const uint8_t* pointer, bool valid) {
  if (!valid) return uint4{0, 0, 0, 0};
  return kEarly ? *reinterpret_cast<const uint4*>(pointer) : LoadConstant(pointer);
}

/// Four products of 64-byte halves: one slice of 16 weight rows against 8 tokens.
template <bool kFp8>
__device__ __forceinline__ void MultiplySlice(float (&sum)[4], const uint4 (&low)[2],
                                              const uint4 (&high)[2], const uint4 (&token)[2]) {
  float fresh[4] = {0, 0, 0, 0};
  float(&d)[4] = kFp8 ? fresh : sum;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t a0[4] = {low[half].x, high[half].x, low[half].y, high[half].y};
    const uint32_t a1[4] = {low[half].z, high[half].z, low[half].w, high[half].w};
    if constexpr (kFp8) {
      MmaFp8(d, a0, token[half].x, token[half].y);
      MmaFp8(d, a1, token[half].z, token[half].w);
    } else {
      MmaBf16(d, a0, token[half].x, token[half].y);
      MmaBf16(d, a1, token[half].z, token[half].w);
    }
  }
  if constexpr (kFp8) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += fresh[i];
  }
}

/// A warp's weights of some slices of k: rows `group` and group + 8 of the tile, both halves.
template <int kUnroll, int kStride, bool kEarly>
struct WeightSlices {
  uint4 low[kUnroll][2];
  uint4 high[kUnroll][2];

  __device__ __forceinline__ void Load(const uint8_t* low_row, const uint8_t* high_row, int first,
                                       int depth_bytes) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = first + u * kStride + half * 64;
        low[u][half] = LoadWeight<kEarly>(low_row + at, at < depth_bytes);
        high[u][half] = LoadWeight<kEarly>(high_row + at, at < depth_bytes);
      }
    }
  }
};

}  // namespace glm::cuda
