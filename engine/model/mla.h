// Latent attention (MLA) of GLM-4.7-Flash: queries and keys go through narrow latents, and the
// cache holds one normed latent and one rotated key a position, shared by all heads.
//
// Who calls: Layers, on the thread that owns the device. Source of the formulas: huggingface
// transformers' Glm4MoeLiteAttention, but for the epsilon of the two latent norms, which is
// rms_norm_eps as the published model is served elsewhere (transformers leaves its class default).
#pragma once

#include <string>

#include "engine/model/config.h"
#include "engine/model/linear.h"
#include "engine/model/trace.h"
#include "engine/model/weight_plan.h"
#include "kernels/ops.h"

namespace glm::engine {

/// One layer's weights. No biases.
struct LatentAttentionWeights {
  Weight down;        // [Q + L + rope, H]: rows of q_a_proj, then of kv_a_proj_with_mqa
  Tensor query_norm;  // act [Q]
  Weight query_up;    // [N * D, Q]: a head's plain rows, then its rope rows
  Tensor kv_norm;     // act [L]
  Tensor kv_up;       // act [N, D - rope + v, L]: a head's key rows, then its value rows
  Weight out;         // [H, N * v]
};

/// Puts the weights of the layer with names `prefix` + "self_attn." into the plan.
void PlanLatentAttention(const ModelConfig& config, DType dtype, const std::string& prefix,
                         WeightPlan* plan, LatentAttentionWeights* weights);

/// The latent attention of all layers: what they share is the rotary table and the buffers of a
/// step.
class LatentAttention {
 public:
  /// Allocates; `dtype` is the activation type, `config` a rank's.
  LatentAttention(Device& device, const ModelConfig& config, DType dtype, const StepLimits& limits);

  /// Device memory that the constructor takes.
  static int64_t BufferBytes(const ModelConfig& config, DType dtype, const StepLimits& limits);

  /// in: [T, H], normalised; out: act [T, H], to be added to the residual: summed over the ranks
  /// `sum_over`, or, when that is null, to be summed yet. `logit_rows`: as Glm::Forward has it, or
  /// null; with it `out` is of its rows, [R, H].
  void Forward(const BatchView& batch, const BatchView* logit_rows,
               const LatentAttentionWeights& weights, const KvLayer& cache, const LinearInput& in,
               const Tensor& out, Communicator* sum_over, const TraceScope& trace) const;

 private:
  Device& device_;
  const ModelConfig& config_;
  Tensor rope_;               // F32 [positions_max, rope_size]
  Tensor latents_;            // act [T, Q + L + rope]
  Tensor query_latent_;       // act [T, Q], normed
  Tensor queries_;            // act [T, N * D]
  Tensor heads_;              // act [T, N * v]
  Tensor logit_row_queries_;  // act [R, N * D]
  QuantizedRows quantized_query_latent_;
  QuantizedRows quantized_heads_;
};

}  // namespace glm::engine
