// FP8 GEMMs of our own for more rows than small_gemm.h's, up to 256, where reading the weight is
// still most of the time.
//
// Who calls: linear.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/small_gemm.h"

namespace glm::cuda {

/// True when RunMidGemm can and should, with `sm_count` multiprocessors to itself: FP8 with a scale
/// a row and one an output, at most 256 rows, 16-byte aligned rows of in and weight.
bool TakesMidGemm(const SmallGemm& gemm, int sm_count);
void RunMidGemm(cudaStream_t stream, int sm_count, const SmallGemm& gemm);

}  // namespace glm::cuda
