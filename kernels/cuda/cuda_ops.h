// The ops of the CUDA backend: what kernels/ops.h says, for BF16 activations on sm_90a.
//
// Who calls: the op table of cuda_device.cc. Each op checks its arguments, then launches; none
// reads device memory from the host or waits, so each can be captured in a graph.
//
// Not here yet, and refused: block-scaled weights that begin inside a block.
#pragma once

#include "kernels/ops.h"

namespace glm::cuda {

void Embed(Device& device, const EmbedArgs& args);
void AddRmsNorm(Device& device, const AddRmsNormArgs& args);
void Linear(Device& device, const LinearArgs& args);
void NormRopeStore(Device& device, const NormRopeStoreArgs& args);
void Attention(Device& device, const AttentionArgs& args);
void MlaRopeStore(Device& device, const MlaRopeStoreArgs& args);
void MlaAttention(Device& device, const MlaAttentionArgs& args);
void SiluMul(Device& device, const SiluMulArgs& args);
void MoeRoute(Device& device, const MoeRouteArgs& args);
void MoeExperts(Device& device, const MoeExpertsArgs& args);
void GatherLogitRows(Device& device, const GatherLogitRowsArgs& args);
void StoreTokens(Device& device, const StoreTokensArgs& args);
void Sample(Device& device, const SampleArgs& args);
void ChooseCandidates(Device& device, const ChooseCandidatesArgs& args);
void BeginDrafts(Device& device, const BeginDraftsArgs& args);
void AdvanceDrafts(Device& device, const AdvanceDraftsArgs& args);

// Scratch bytes of the ops that need any, at most, within `limits`.
int64_t AttentionScratchBytes(const StepLimits& limits, int sm_count);
int64_t MlaScratchBytes(const StepLimits& limits, int sm_count);
int64_t MoeRouteScratchBytes(const StepLimits& limits);
int64_t MoeExpertsScratchBytes(const StepLimits& limits);

}  // namespace glm::cuda
