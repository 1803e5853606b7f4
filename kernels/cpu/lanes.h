// The two inner loops of the CPU backend, eight floats at a time.
//
// Who calls: gemm.cc and the attention ops, from any thread of the pool. They run with AVX2 and FMA
// where the processor has them, chosen at run time, so that one program serves every x86-64 host.
//
// Every sum has a fixed order that depends on nothing but its own length: lane l of eight adds the
// products l, l + 8, l + 16, ..., and the lanes are then added in one tree. Hence a result depends
// neither on the rows beside it nor on the number of threads.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace glm::cpu {

/// Bounds of one DotBlock call.
inline constexpr int kDotRowsMax = 32;
inline constexpr int kDotOutputsMax = 24;

/// sums[r * kDotOutputsMax + n] = rows[r][0 .. k) . weights[n * stride + (0 .. k)], for r below
/// `row_count` and n below `output_count`.
void DotBlock(const float* const* rows, int row_count, const float* weights, int64_t stride,
              int output_count, int64_t k, float* sums);
void DotBlock(const float* const* rows, int row_count, const BFloat16* weights, int64_t stride,
              int output_count, int64_t k, float* sums);
void DotBlock(const float* const* rows, int row_count, const Float8* weights, int64_t stride,
              int output_count, int64_t k, float* sums);

/// Rows of factors of one AddWeightedRows call, at most.
inline constexpr int kWeightedHeadsMax = 4;

/// sums[h * sums_stride + d] += sum over i of factors[h * factors_stride + i] * rows[i * stride +
/// d], for h below `heads`, i below `row_count` and d below `width`; i in rising order.
void AddWeightedRows(const float* factors, int64_t factors_stride, int heads, const float* rows,
                     int64_t stride, int row_count, int64_t width, float* sums,
                     int64_t sums_stride);
void AddWeightedRows(const float* factors, int64_t factors_stride, int heads, const BFloat16* rows,
                     int64_t stride, int row_count, int64_t width, float* sums,
                     int64_t sums_stride);
void AddWeightedRows(const float* factors, int64_t factors_stride, int heads, const Float8* rows,
                     int64_t stride, int row_count, int64_t width, float* sums,
                     int64_t sums_stride);

}  // namespace glm::cpu
