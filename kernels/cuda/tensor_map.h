// Tensor maps: what the bulk copy engine must know of a matrix in device memory.
//
// Who calls: ops on the host, when they launch. A map is passed to its kernel by value.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernels/dtype.h"

namespace glm::cuda {

/// A [rows, columns] matrix fetched in boxes of 128 bytes x `box_rows` (at most 256) rows, laid out
/// with the 128-byte swizzle. Parts of a box outside the matrix become zeros. Rows start 16-byte
/// aligned, `row_stride` elements apart.
CUtensorMap MakeTensorMap(const void* base, DType dtype, int64_t rows, int64_t columns,
                          int64_t row_stride, int box_rows);

}  // namespace glm::cuda
