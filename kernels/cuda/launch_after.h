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

/// With blocks in clusters of `cluster` along x.
template <typename... Params, typename... Args>
void LaunchClustersAfter(void (*kernel)(Params...), dim3 grid, int cluster, int threads,
                         int shared_bytes, cudaStream_t stream, Args&&... args) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = static_cast<unsigned>(cluster);
  attributes[1].val.clusterDim.y = 1;
  attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : 1;
  CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...));
}

template <typename... Params, typename... Args>
void LaunchAfter(void (*kernel)(Params...), dim3 grid, int threads, int shared_bytes,
                 cudaStream_t stream, Args&&... args) {
  LaunchClustersAfter(kernel, grid, 1, threads, shared_bytes, stream, std::forward<Args>(args)...);
}

}  // namespace glm::cuda
