// The loops are written once with GCC's vector types and inlined into two frames: one for AVX2 with
// FMA, one for any x86-64. The product and sum of `acc += a * b` contract to one FMA in the first.
#include "kernels/cpu/lanes.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace glm::cpu {
namespace {

#define GLM_INLINE [[gnu::always_inline]] inline
#define GLM_AVX2 [[gnu::target("avx2,fma")]]

constexpr int kLanes = 8;
using Lanes = float __attribute__((vector_size(32)));
using Words = uint32_t __attribute__((vector_size(32)));
using Halves = uint16_t __attribute__((vector_size(16)));

GLM_INLINE Lanes Load(const float* source) {
  Lanes value;
  std::memcpy(&value, source, sizeof(value));
  return value;
}

GLM_INLINE Lanes Load(const BFloat16* source) {
  Halves halves;
  std::memcpy(&halves, source, sizeof(halves));
  return reinterpret_cast<Lanes>(__builtin_convertvector(halves, Words) << 16);
}

constexpr std::array<float, 256> MakeFloat8Values() {
  std::array<float, 256> values{};
  for (int code = 0; code < 256; ++code) values[code] = ToFloat(Float8{static_cast<uint8_t>(code)});
  return values;
}
constexpr std::array<float, 256> kFloat8Values = MakeFloat8Values();

GLM_INLINE Lanes Load(const Float8* source) {
  Lanes value;
#pragma GCC unroll 8
  for (int l = 0; l < kLanes; ++l) value[l] = kFloat8Values[source[l].bits];
  return value;
}

template <typename T>
GLM_INLINE Lanes LoadPart(const T* source, int64_t count) {
  T part[kLanes] = {};
  std::memcpy(part, source, count * sizeof(T));
  return Load(part);
}

GLM_INLINE float SumOf(Lanes v) {
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

/// kRows x kOutputs dot products with all accumulators in registers.
template <int kRows, int kOutputs, typename W>
GLM_INLINE void DotTile(const float* const* rows, const W* weights, int64_t stride, int64_t k,
                        float* sums) {
  Lanes acc[kRows][kOutputs] = {};
  Lanes w[kOutputs];
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) {
#pragma GCC unroll 8
    for (int n = 0; n < kOutputs; ++n) w[n] = Load(weights + n * stride + i);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Lanes a = Load(rows[r] + i);
#pragma GCC unroll 8
      for (int n = 0; n < kOutputs; ++n) acc[r][n] += a * w[n];
    }
  }
  if (i < k) {
#pragma GCC unroll 8
    for (int n = 0; n < kOutputs; ++n) w[n] = LoadPart(weights + n * stride + i, k - i);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Lanes a = LoadPart(rows[r] + i, k - i);
#pragma GCC unroll 8
      for (int n = 0; n < kOutputs; ++n) acc[r][n] += a * w[n];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < kOutputs; ++n) sums[r * kDotOutputsMax + n] = SumOf(acc[r][n]);
  }
}

/// kRows rows against all outputs, kOutputs at a time. The tile shape changes the speed only.
template <int kRows, int kOutputs, typename W>
GLM_INLINE void DotRows(const float* const* rows, const W* weights, int64_t stride,
                        int output_count, int64_t k, float* sums) {
  int n = 0;
  for (; n + kOutputs <= output_count; n += kOutputs) {
    DotTile<kRows, kOutputs>(rows, weights + n * stride, stride, k, sums + n);
  }
  for (; n < output_count; ++n) {
    DotTile<kRows, 1>(rows, weights + n * stride, stride, k, sums + n);
  }
}

template <typename W>
GLM_INLINE void DotAll(const float* const* rows, int row_count, const W* weights, int64_t stride,
                       int output_count, int64_t k, float* sums) {
  int r = 0;
  for (; r + 4 <= row_count; r += 4) {
    DotRows<4, 3>(rows + r, weights, stride, output_count, k, sums + r * kDotOutputsMax);
  }
  float* rest = sums + r * kDotOutputsMax;
  if (row_count - r == 3) DotRows<3, 4>(rows + r, weights, stride, output_count, k, rest);
  if (row_count - r == 2) DotRows<2, 4>(rows + r, weights, stride, output_count, k, rest);
  if (row_count - r == 1) DotRows<1, 8>(rows + r, weights, stride, output_count, k, rest);
}

template <typename W>
GLM_AVX2 void DotAvx2(const float* const* rows, int row_count, const W* weights, int64_t stride,
                      int output_count, int64_t k, float* sums) {
  DotAll(rows, row_count, weights, stride, output_count, k, sums);
}

template <typename W>
void DotPlain(const float* const* rows, int row_count, const W* weights, int64_t stride,
              int output_count, int64_t k, float* sums) {
  DotAll(rows, row_count, weights, stride, output_count, k, sums);
}

template <int kHeads, typename W>
GLM_INLINE void WeightedRows(const float* factors, int64_t factors_stride, const W* rows,
                             int64_t stride, int row_count, int64_t width, float* sums,
                             int64_t sums_stride) {
  for (int64_t d = 0; d < width; d += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, width - d);
    Lanes acc[kHeads];
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) acc[h] = LoadPart(sums + h * sums_stride + d, count);
    for (int i = 0; i < row_count; ++i) {
      const W* row = rows + i * stride + d;
      const Lanes value = count == kLanes ? Load(row) : LoadPart(row, count);
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) acc[h] += factors[h * factors_stride + i] * value;
    }
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      std::memcpy(sums + h * sums_stride + d, &acc[h], count * sizeof(float));
    }
  }
}

template <typename W>
GLM_INLINE void WeightedAll(const float* factors, int64_t factors_stride, int heads, const W* rows,
                            int64_t stride, int row_count, int64_t width, float* sums,
                            int64_t sums_stride) {
  switch (heads) {
    case 4:
      return WeightedRows<4>(factors, factors_stride, rows, stride, row_count, width, sums,
                             sums_stride);
    case 3:
      return WeightedRows<3>(factors, factors_stride, rows, stride, row_count, width, sums,
                             sums_stride);
    case 2:
      return WeightedRows<2>(factors, factors_stride, rows, stride, row_count, width, sums,
                             sums_stride);
    default:
      return WeightedRows<1>(factors, factors_stride, rows, stride, row_count, width, sums,
                             sums_stride);
  }
}

template <typename W>
GLM_AVX2 void WeightedAvx2(const float* factors, int64_t factors_stride, int heads, const W* rows,
                           int64_t stride, int row_count, int64_t width, float* sums,
                           int64_t sums_stride) {
  WeightedAll(factors, factors_stride, heads, rows, stride, row_count, width, sums, sums_stride);
}

template <typename W>
void WeightedPlain(const float* factors, int64_t factors_stride, int heads, const W* rows,
                   int64_t stride, int row_count, int64_t width, float* sums, int64_t sums_stride) {
  WeightedAll(factors, factors_stride, heads, rows, stride, row_count, width, sums, sums_stride);
}

bool HasAvx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

}  // namespace

void DotBlock(const float* const* rows, int row_count, const float* weights, int64_t stride,
              int output_count, int64_t k, float* sums) {
  (HasAvx2() ? DotAvx2<float> : DotPlain<float>)(rows, row_count, weights, stride, output_count, k,
                                                 sums);
}

void DotBlock(const float* const* rows, int row_count, const BFloat16* weights, int64_t stride,
              int output_count, int64_t k, float* sums) {
  (HasAvx2() ? DotAvx2<BFloat16> : DotPlain<BFloat16>)(rows, row_count, weights, stride,
                                                       output_count, k, sums);
}

void DotBlock(const float* const* rows, int row_count, const Float8* weights, int64_t stride,
              int output_count, int64_t k, float* sums) {
  (HasAvx2() ? DotAvx2<Float8> : DotPlain<Float8>)(rows, row_count, weights, stride, output_count,
                                                   k, sums);
}

void AddWeightedRows(const float* factors, int64_t factors_stride, int heads, const float* rows,
                     int64_t stride, int row_count, int64_t width, float* sums,
                     int64_t sums_stride) {
  (HasAvx2() ? WeightedAvx2<float> : WeightedPlain<float>)(factors, factors_stride, heads, rows,
                                                           stride, row_count, width, sums,
                                                           sums_stride);
}

void AddWeightedRows(const float* factors, int64_t factors_stride, int heads, const BFloat16* rows,
                     int64_t stride, int row_count, int64_t width, float* sums,
                     int64_t sums_stride) {
  (HasAvx2() ? WeightedAvx2<BFloat16> : WeightedPlain<BFloat16>)(factors, factors_stride, heads,
                                                                 rows, stride, row_count, width,
                                                                 sums, sums_stride);
}

void AddWeightedRows(const float* factors, int64_t factors_stride, int heads, const Float8* rows,
                     int64_t stride, int row_count, int64_t width, float* sums,
                     int64_t sums_stride) {
  (HasAvx2() ? WeightedAvx2<Float8> : WeightedPlain<Float8>)(factors, factors_stride, heads, rows,
                                                             stride, row_count, width, sums,
                                                             sums_stride);
}

}  // namespace glm::cpu
