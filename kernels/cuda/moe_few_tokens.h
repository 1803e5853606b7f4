// The expert layer of a step of few tokens.
//
// Who calls: moe_experts.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/moe_gemm.h"
#include "kernels/dtype.h"

namespace glm::cuda {

/// What MoeGemmParams has not. There `y` holds pair_rows rows of `width` floats, each what feeds
/// down; pair_order, expert_starts, row_scales, h and h_scales are not read.
struct MoeFewTokens {
  const uint8_t* gate_up;       // [E + s, 2M, H]
  const uint8_t* down;          // [E + s, H, M]
  const int32_t* expert_ids;    // [T, k]
  const float* expert_weights;  // [T, k]
  BFloat16* out;                // [T, H]
  int64_t out_stride;
};

/// Whether RunMoeFewTokens can compute this, and does it faster than the grouped GEMMs: where these
/// have fewer tiles than there are multiprocessors.
bool TakesMoeFewTokens(const MoeGemmParams& params, MoeScales scales, int sm_count);
void RunMoeFewTokens(cudaStream_t stream, int sm_count, MoeScales scales,
                     const MoeGemmParams& params, const MoeFewTokens& few);

}  // namespace glm::cuda
