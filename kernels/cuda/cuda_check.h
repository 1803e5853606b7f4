// Checks of CUDA and cuBLAS calls. An error of the device is not ours to handle: the process ends
// with the call, the place and the reason.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include "proto/base/log.h"

#define CUDA_CHECK(call)                                                                   \
  do {                                                                                     \
    const cudaError_t cuda_status = (call);                                                \
    CHECK(cuda_status == cudaSuccess) << #call << ": " << cudaGetErrorString(cuda_status); \
  } while (false)

#define CUBLAS_CHECK(call)                                          \
  do {                                                              \
    const cublasStatus_t cublas_status = (call);                    \
    CHECK(cublas_status == CUBLAS_STATUS_SUCCESS)                   \
        << #call << ": " << cublasLtGetStatusString(cublas_status); \
  } while (false)
