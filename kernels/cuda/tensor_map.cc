#include "kernels/cuda/tensor_map.h"

#include <cuda_runtime_api.h>

#include "kernels/cuda/cuda_check.h"

namespace glm::cuda {
namespace {

// Taken from the driver at run time, so that nothing links against libcuda.
decltype(&cuTensorMapEncodeTiled) EncodeFunction() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result;
  CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                              cudaEnableDefault, &result));
  CHECK(result == cudaDriverEntryPointSuccess) << "the driver has no cuTensorMapEncodeTiled";
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

}  // namespace

CUtensorMap MakeTensorMap(const void* base, DType dtype, int64_t rows, int64_t columns,
                          int64_t row_stride, int box_rows) {
  static const auto kEncode = EncodeFunction();
  const int64_t size = ByteSize(dtype);
  CHECK(reinterpret_cast<uintptr_t>(base) % 16 == 0 && row_stride * size % 16 == 0)
      << "rows of " << Name(dtype) << " must start 16-byte aligned, stride " << row_stride;
  const cuuint64_t extents[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(row_stride * size)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(128 / size),
                             static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  CUtensorMap map;
  const CUresult status =
      kEncode(&map, size == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2,
              const_cast<void*>(base), extents, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
              CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
              CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  CHECK(status == CUDA_SUCCESS) << "cuTensorMapEncodeTiled: error " << status << " for " << rows
                                << " x " << columns << " of " << Name(dtype);
  return map;
}

}  // namespace glm::cuda
