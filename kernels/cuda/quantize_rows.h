// The quantisation of kernels/ops.h ("Quantized") as a step of its own, for ops whose rows are not
// computed by one block.
#pragma once

#include "kernels/cuda/cuda_device.h"

namespace glm::cuda {

/// quantized = in, BF16 [T, K]; rows from counts[0] on are left alone.
void QuantizeRows(const OpScope& op, const Tensor& counts, const Tensor& in,
                  const Activation& quantized);

}  // namespace glm::cuda
