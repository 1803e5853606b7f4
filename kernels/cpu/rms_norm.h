// The root-mean-square norm of one row, for the ops of the CPU backend that have one inside.
//
// Who calls: pointwise.cc and rope_store.cc, from any thread of the pool.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/dtype.h"

namespace glm::cpu {

/// In eight sums, so that the order does not depend on the compiler.
inline float SumOfSquares(const float* values, int64_t n) {
  float lanes[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int l = 0; l < 8; ++l) lanes[l] += values[i + l] * values[i + l];
  }
  for (int l = 0; i + l < n; ++l) lanes[l] += values[i + l] * values[i + l];
  float sum = 0;
  for (const float lane : lanes) sum += lane;
  return sum;
}

/// values * rms(values)^-1 rounded, times weight; the product is not yet rounded.
template <typename T>
void RmsNorm(float* values, int64_t n, const T* weight, float epsilon) {
  const float mean = SumOfSquares(values, n) / static_cast<float>(n);
  const float factor = 1.0f / std::sqrt(mean + epsilon);
  for (int64_t i = 0; i < n; ++i) {
    values[i] = ToFloat(FromFloat<T>(values[i] * factor)) * ToFloat(weight[i]);
  }
}

}  // namespace glm::cpu
