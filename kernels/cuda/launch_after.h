// Launches a kernel so that its blocks may start while the kernel before it ends (programmatic
// dependent launch): what it does before DependencyStart() (ptx.cuh) overlaps the other's tail and
// the launch.
//
// Who calls: the ops of a decode step. A kernel launched this way must call DependencyStart() in
// every thread before it touches what a kernel before it may have written, or writes anything
// itself.
#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "kernels/cuda/cuda_check.h"

namespace glm::cuda {

template <typename... Params, typename... Args>
void LaunchAfter(void (*kernel)(Params...), dim3 grid, int threads, int shared_bytes,
                 cudaStream_t stream, Args&&... args) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...));
}

}  // namespace glm::cuda
