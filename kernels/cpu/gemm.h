// One matrix product of the CPU backend, computed rectangle by rectangle.
//
// Who calls: linear here, and moe.cc with one product per expert. ComputeRectangle runs on any
// thread of the pool; rectangles of one product may run at once.
#pragma once

#include <cstdint>

#include "kernels/ops.h"

namespace glm::cpu {

/// out[row] = in[row] . weight^T, for rows and outputs that ComputeRectangle is told.
struct MatrixProduct {
  const float* in = nullptr;  // rows of k floats; FP8 activations unscaled
  int64_t in_stride = 0;
  const int32_t* in_order = nullptr;  // row r reads in[in_order[r] / in_divisor]; null: in[r]
  int64_t in_divisor = 1;
  const float* in_scales = nullptr;  // of the row read: one, or one per 128 columns
  int64_t in_scales_stride = 1;
  bool in_scales_grouped = false;

  Weight weight;  // [N, K]
  Tensor bias;    // act [N], or empty

  void* out = nullptr;  // rows of N
  DType out_dtype = DType::kF32;
  int64_t out_stride = 0;
  const int32_t* out_order = nullptr;  // row r goes to out[out_order[r]]; null: out[r]
};

/// Rows and outputs of the rectangles that products are cut into, for `rows` rows of `k` columns.
struct Cut {
  int64_t rows;
  int64_t outputs;
};
Cut CutFor(int64_t rows, int64_t k);

void ComputeRectangle(const MatrixProduct& product, int64_t row_begin, int64_t row_end,
                      int64_t output_begin, int64_t output_end);

/// The `rows` first rows of `in` as floats: where they are, or converted into `scratch`.
const float* FloatRows(Device& device, const Tensor& in, int64_t rows, int64_t* stride);

/// CHECKs values and scales of a weight [N, K], or [E, N, K] with `experts` >= 0.
void CheckWeight(const Weight& weight, int64_t experts, int64_t outputs, int64_t k,
                 const char* name);

/// CHECKs an activation [T, K] that `weight` multiplies.
void CheckActivation(const Activation& in, const Weight& weight, const char* name);

}  // namespace glm::cpu
