// The draft layer (MTP): from the hidden state of a position and the token after it, the logits of
// the token after that.
//
// Who calls: whoever drafts, after Glm::Forward of the same tokens, on the thread that owns the
// device. It is one mixture layer behind a projection of [embedding ; hidden state], with a KV
// layer, a final norm and, in some checkpoints, an embedding and a head of its own. Where the
// checkpoint leaves these two out, or has copies that equal the model's, the model's are used.
// transformers has no forward of it; tests/golden/make_glm4_moe_mtp.py states the formulas.
#pragma once

#include <string>

#include "engine/model/config.h"
#include "engine/model/layers.h"
#include "engine/model/trace.h"
#include "engine/model/weight_plan.h"
#include "kernels/ops.h"

namespace glm::engine {

struct MtpWeights {
  Tensor embedding;       // act [V / ranks, H]
  Tensor embedding_norm;  // act [H]
  Tensor hidden_norm;     // act [H]
  Weight projection;  // [H, 2H]: columns of the normed embedding, then of the normed hidden state
  LayerWeights layer;
  Tensor norm;  // act [H]
  Weight head;  // [V / ranks, H]
};

/// True when the checkpoint has any tensor of the draft layer.
bool HasMtp(const ModelConfig& config, const StoredTensors& stored);

/// Puts the draft layer's weights into the plan. An embedding or head that is the model's is not
/// loaded and stays empty: UseModelWeights fills it in. Reads the copies to compare them; without a
/// checkpoint they count as the layer's own, but for a head in FP8. Such a head is compared too: if
/// it is the model's, rounded, the model's is used, which is no worse; else it is loaded, and
/// dequantised.
void PlanMtp(const ModelConfig& config, DType dtype, WeightPlan* plan, MtpWeights* weights);
void UseModelWeights(const Tensor& embedding, const Weight& head, MtpWeights* weights);

class Mtp {
 public:
  /// Allocates. `config` and `layers`, whose buffers it uses, must outlive it.
  Mtp(Device& device, const ModelConfig& config, const Layers& layers, DType dtype,
      const StepLimits& limits, const MtpWeights& weights);

  /// Device memory that the constructor takes.
  static int64_t BufferBytes(const ModelConfig& config, DType dtype, const StepLimits& limits);

  const LayerWeights& layer() const { return weights_.layer; }
  /// The output of the last Forward after the layer's norm, act [tokens, H].
  Tensor hidden(int64_t tokens) const { return embedded_.Rows(0, tokens); }

  /// batch: the step's, with the token *after* each position as its token id. hidden: act [T, H],
  /// after the model's final norm, or this layer's own where drafts go on from drafts. Stores K and
  /// V into `cache`, the draft layer's own; writes the logits of batch.logit_tokens to `logits`, as
  /// Layers::Head does.
  void Forward(const BatchView& batch, const Tensor& hidden, const KvLayer& cache,
               const Tensor& logits, const Trace& trace) const;

 private:
  Device& device_;
  const ModelConfig& config_;
  const Layers& layers_;
  const MtpWeights weights_;
  Tensor embedded_;  // act [T, H]; the normed output at the end
  Tensor joined_;    // act [T, 2H]
};

}  // namespace glm::engine
