// Reductions over a warp and a block, 16-byte vectors, packed conversions.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "kernels/dtype.h"

namespace glm::cuda {

inline constexpr int kWarp = 32;
inline constexpr uint32_t kAllLanes = 0xFFFFFFFFu;

__device__ __forceinline__ float WarpSum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}

__device__ __forceinline__ float WarpMax(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  return value;
}

/// A value that is the same in all lanes, known as such to the compiler: what depends on nothing
/// else is computed once a warp, in uniform registers, where tensor cores look for addresses.
__device__ __forceinline__ int Uniform(int value) { return __reduce_max_sync(kAllLanes, value); }

/// The sum over the block, in every thread. `shared` holds 32 floats; the order of summation is
/// fixed, so equal inputs give equal bits.
__device__ __forceinline__ float BlockSum(float value, float* shared) {
  const int warps = (blockDim.x + kWarp - 1) / kWarp;
  value = WarpSum(value);
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  const int lane = threadIdx.x % kWarp;
  const float total = WarpSum(lane < warps ? shared[lane] : 0.0f);
  __syncthreads();
  return total;
}

/// The largest of non-negative values over the block, in every thread.
__device__ __forceinline__ float BlockMax(float value, float* shared) {
  const int warps = (blockDim.x + kWarp - 1) / kWarp;
  value = WarpMax(value);
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  const int lane = threadIdx.x % kWarp;
  const float total = WarpMax(lane < warps ? shared[lane] : 0.0f);
  __syncthreads();
  return total;
}

/// 8 bf16 values in one 16-byte register quad.
struct alignas(16) Bf16x8 {
  uint32_t words[4];

  __device__ __forceinline__ float2 Pair(int i) const {
    return float2{__uint_as_float(words[i] << 16), __uint_as_float(words[i] & 0xFFFF0000u)};
  }
  __device__ __forceinline__ void SetPair(int i, float2 pair) {
    const __nv_bfloat162 packed = __floats2bfloat162_rn(pair.x, pair.y);
    words[i] = *reinterpret_cast<const uint32_t*>(&packed);
  }
};

__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 packed = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&packed);
}

__device__ __forceinline__ float RoundBf16(float value) {
  return __bfloat162float(__float2bfloat16_rn(value));
}

/// Two floats as saturated fp8 e4m3, the first in the low byte.
__device__ __forceinline__ uint16_t PackFp8(float low, float high) {
  return __nv_cvt_float2_to_fp8x2(float2{low, high}, __NV_SATFINITE, __NV_E4M3);
}

__device__ __forceinline__ uint32_t PackFp8x4(float a, float b, float c, float d) {
  return PackFp8(a, b) | (static_cast<uint32_t>(PackFp8(c, d)) << 16);
}

/// The scale under which values up to `largest` fill fp8's range; 1 for a row of zeros.
__device__ __forceinline__ float Fp8Scale(float largest) {
  return largest > 0.0f ? largest / kFloat8Max : 1.0f;
}

__device__ __forceinline__ float SiluMulOne(float gate, float up) {
  return __fdividef(gate, 1.0f + __expf(-gate)) * up;
}

}  // namespace glm::cuda
