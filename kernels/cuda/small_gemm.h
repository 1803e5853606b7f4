// GEMMs of our own for few rows, where reading the weight is all the time there is, and for shapes
// that cuBLASLt does not take.
//
// Who calls: linear and moe_route.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/dtype.h"

namespace glm::cuda {

/// out[m, n] = in[m, k] . weight[n, k]^T, scaled, plus bias. Strides count elements between rows.
struct SmallGemm {
  int64_t rows = 0;     // m
  int64_t outputs = 0;  // n
  int64_t depth = 0;    // k
  const void* in = nullptr;
  int64_t in_stride = 0;
  const void* weight = nullptr;
  int64_t weight_stride = 0;
  void* out = nullptr;
  int64_t out_stride = 0;
  DType in_dtype = DType::kBF16;         // of in and weight: BF16, or F8E4M3
  DType out_dtype = DType::kBF16;        // BF16 or F32
  const float* row_scales = nullptr;     // with fp8: F32 [m], or [m, k/128] with block_scales
  const float* output_scales = nullptr;  // with fp8: F32 [n], or [n/128, k/128] with block_scales
  bool block_scales = false;
  const BFloat16* bias = nullptr;       // [n], or null
  const int32_t* valid_rows = nullptr;  // device memory: rows from *valid_rows on are left alone
};

/// True when RunSmallGemm can and should (of FP8, mid_gemm.h is asked first): at most 32 rows,
/// 16-byte aligned rows of in and weight, no block scales.
bool TakesSmallGemm(const SmallGemm& gemm);
void RunSmallGemm(cudaStream_t stream, int sm_count, const SmallGemm& gemm);

/// Any shape and scale form; slow.
void RunPlainGemm(cudaStream_t stream, const SmallGemm& gemm);

/// out[m, n] += bias[n], for F32 outputs of cuBLASLt.
void AddBias(cudaStream_t stream, float* out, int64_t out_stride, const BFloat16* bias,
             int64_t rows, int64_t outputs);

}  // namespace glm::cuda
