// The feed-forward part of a layer: a dense gated MLP in the first layers, a mixture of experts
// with a sigmoid router and a shared expert in the others.
//
// Who calls: Layers, on the thread that owns the device.
#pragma once

#include <string>

#include "engine/model/config.h"
#include "engine/model/linear.h"
#include "engine/model/trace.h"
#include "engine/model/weight_plan.h"
#include "kernels/ops.h"

namespace glm::engine {

/// One layer's weights: either of a dense MLP or of a mixture, the other's are empty.
struct FfnWeights {
  Weight gate_up;  // [2I, H]: gate rows, then up rows
  Weight down;     // [H, I]

  Tensor router;           // act [E, H]
  Tensor correction_bias;  // F32 [E]
  Weight experts_gate_up;  // [E + s, 2M, H]: an expert's gate rows, then its up rows; shared last
  Weight experts_down;     // [E + s, H, M]

  bool dense() const { return router.empty(); }
  /// The weight that reads the normalised rows.
  const Weight& first() const { return dense() ? gate_up : experts_gate_up; }
};

/// Puts the weights of the layer with names `prefix` + "mlp." into the plan.
void PlanFfn(const ModelConfig& config, DType dtype, const std::string& prefix, bool dense,
             WeightPlan* plan, FfnWeights* weights);

/// The feed-forward part of all layers: what they share is the buffers of a step.
class Ffn {
 public:
  /// Allocates; `dtype` is the activation type, `config` a rank's.
  Ffn(Device& device, const ModelConfig& config, DType dtype, const StepLimits& limits);
  /// Device memory that the constructor takes.
  static int64_t BufferBytes(const ModelConfig& config, DType dtype, const StepLimits& limits);

  /// in: [T, H], normalised, with the plain form too before a mixture, whose router reads it; out:
  /// act [T, H], to be added to the residual: summed over the ranks `sum_over`, or, when that is
  /// null, to be summed yet.
  void Forward(const BatchView& batch, const FfnWeights& weights, const LinearInput& in,
               const Tensor& out, Communicator* sum_over, const TraceScope& trace) const;

 private:
  void Dense(const BatchView& batch, const FfnWeights& weights, const LinearInput& in,
             const Tensor& out, Communicator* sum_over, const TraceScope& trace) const;
  void Mixture(const BatchView& batch, const FfnWeights& weights, const LinearInput& in,
               const Tensor& out, Communicator* sum_over, const TraceScope& trace) const;

  Device& device_;
  const ModelConfig& config_;
  Tensor gate_up_;  // act [T, 2I]; empty without dense layers
  Tensor product_;  // act [T, I]
  QuantizedRows quantized_product_;
  Routing routing_;  // of [T, k]; empty without mixture layers
};

}  // namespace glm::engine
