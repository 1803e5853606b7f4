// Grouped-query attention: q, k, v with optional biases and per-head norms, partial rotary
// embedding, causal attention over the paged cache, output projection.
//
// Who calls: Layers, on the thread that owns the device.
#pragma once

#include <string>
#include <vector>

#include "engine/model/config.h"
#include "engine/model/linear.h"
#include "engine/model/trace.h"
#include "engine/model/weight_plan.h"
#include "kernels/ops.h"

namespace glm::engine {

/// One layer's weights.
struct AttentionWeights {
  Weight qkv;       // [(N + 2K) * D, H]: rows of q, then of k, then of v
  Tensor qkv_bias;  // act [(N + 2K) * D], or empty
  Tensor q_norm;    // act [D], or empty
  Tensor k_norm;    // act [D], or empty
  Weight out;       // [H, N * D]
};

/// Puts the weights of the layer with names `prefix` + "self_attn." into the plan.
void PlanAttention(const ModelConfig& config, DType dtype, const std::string& prefix,
                   WeightPlan* plan, AttentionWeights* weights);

/// The attention of all layers: what they share is the rotary table and the buffers of a step.
class Attention {
 public:
  /// Allocates; `dtype` is the activation type, `config` a rank's.
  Attention(Device& device, const ModelConfig& config, DType dtype, const StepLimits& limits);
  /// Device memory that the constructor takes.
  static int64_t BufferBytes(const ModelConfig& config, DType dtype, const StepLimits& limits);

  /// in: [T, H], normalised; out: act [T, H], to be added to the residual: summed over the ranks
  /// `sum_over`, or, when that is null, to be summed yet. `logit_rows`: as Glm::Forward has it, or
  /// null; with it `out` is of its rows, [R, H].
  void Forward(const BatchView& batch, const BatchView* logit_rows, const AttentionWeights& weights,
               const KvLayer& cache, const LinearInput& in, const Tensor& out,
               Communicator* sum_over, const TraceScope& trace) const;

 private:
  Device& device_;
  const ModelConfig& config_;
  Tensor rope_;               // F32 [positions_max, rope_size]
  Tensor qkv_;                // act [T, (N + 2K) * D]
  Tensor heads_;              // act [T, N * D]
  Tensor logit_row_queries_;  // act [R, N * D]
  QuantizedRows quantized_heads_;
};

/// The rotary table of the reference: F32 [positions, rope_size], of each position rope_size/2
/// cosines, then as many sines. Frequencies and angles are floats, as in the reference.
std::vector<float> RopeTable(double theta, int32_t rope_size, int64_t positions);

/// The table of a model in device memory, F32 [positions_max, rope_size].
Tensor NewRopeTensor(Device& device, const ModelConfig& config);

}  // namespace glm::engine
