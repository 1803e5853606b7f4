// A decoder layer, and what all layers of a rank share: the parts with their buffers, and the
// residual stream of a step.
//
// Who calls: Glm for its layers and Mtp for its one, on the thread that owns the device. One pass
// over layers runs at a time.
#pragma once

#include <optional>
#include <string>

#include "engine/model/attention.h"
#include "engine/model/config.h"
#include "engine/model/ffn.h"
#include "engine/model/loader.h"
#include "engine/model/mla.h"
#include "engine/model/trace.h"
#include "kernels/ops.h"

namespace glm::engine {

/// One layer's weights: of one kind of attention, the other's are empty.
struct LayerWeights {
  Tensor input_norm;  // act [H]
  AttentionWeights attention;
  LatentAttentionWeights latent_attention;
  Tensor post_attention_norm;  // act [H]
  FfnWeights ffn;
};

/// Puts the weights of the layer with names `prefix` + ... into the plan.
void PlanLayer(const ModelConfig& config, DType dtype, const std::string& prefix, bool dense,
               WeightPlan* plan, LayerWeights* weights);

class Layers {
 public:
  /// Allocates; `dtype` is the activation type. `config` must outlive it.
  Layers(Device& device, const ModelConfig& config, DType dtype, const StepLimits& limits);

  /// The stream that a pass starts from: act [T, H], for an embedding or a projection to write.
  Tensor Begin(int64_t tokens) const { return residual_.Rows(0, tokens); }
  /// Runs one layer on the stream. `first`: nothing was run on it since Begin.
  void Run(const BatchView& batch, const LayerWeights& weights, const KvLayer& cache, bool first,
           const TraceScope& trace) const;
  /// Ends a pass of at least one layer: out = norm of the stream, act [T, H].
  void End(const BatchView& batch, const Tensor& weight, const Tensor& out) const;

 private:
  void AddNorm(const BatchView& batch, const Tensor& delta, const Tensor& weight,
               const Tensor& out) const;

  Device& device_;
  const ModelConfig& config_;
  std::optional<Attention> attention_;               // one of the two
  std::optional<LatentAttention> latent_attention_;  // is there
  const Ffn ffn_;
  Tensor residual_;  // act [T, H]
  Tensor normed_;    // act [T, H]
  Tensor delta_;     // act [T, H]  what attention or ffn adds to the residual
};

/// logits = head . the rows of `normed` that the batch names; `rows` act [R, H] is overwritten.
void RunHead(Device& device, const BatchView& batch, const Tensor& normed, const Weight& head,
             const Tensor& rows, const Tensor& logits);

}  // namespace glm::engine
