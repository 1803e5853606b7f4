// A decoder layer, and what all layers of a rank share: the parts with their buffers, the residual
// stream of a step, and the two ends of it, embedding and head.
//
// Ranks that share the model hold the same residual stream. Each computes its heads, its part of
// every expert's width and its rows of the vocabulary; what attention and the feed-forward part add
// to the stream is summed over the ranks, each once a layer, from values rounded to act. In a step
// of few tokens the sum is one operation with the norm behind it. In one of many tokens, where sums
// take as long as the products before them, the product itself sums what of it is done while the
// rest is multiplied (sum_over of kernels/ops.h), and the norm comes alone.
//
// Who calls: Glm for its layers and Mtp for its one, on the thread that owns the device. One pass
// over layers runs at a time.
#pragma once

#include <optional>
#include <string>

#include "engine/model/attention.h"
#include "engine/model/config.h"
#include "engine/model/ffn.h"
#include "engine/model/linear.h"
#include "engine/model/mla.h"
#include "engine/model/trace.h"
#include "engine/model/weight_plan.h"
#include "kernels/communicator.h"
#include "kernels/ops.h"

namespace glm::engine {

/// One layer's weights: of one kind of attention, the other's are empty.
struct LayerWeights {
  Tensor input_norm;  // act [H]
  AttentionWeights attention;
  LatentAttentionWeights latent_attention;
  Tensor post_attention_norm;  // act [H]
  FfnWeights ffn;
  // Of an FP8 cache: a stored value stands for value * scale.
  float key_scale = 1;
  float value_scale = 1;
};

/// Puts the weights of the layer with names `prefix` + ... into the plan.
void PlanLayer(const ModelConfig& config, DType dtype, const std::string& prefix, bool dense,
               WeightPlan* plan, LayerWeights* weights);

class Layers {
 public:
  /// Allocates; `dtype` is the activation type. `config` is a rank's; it and `communicator`, of as
  /// many ranks, must outlive this. `overlap_tokens_min`: as GlmOptions has it.
  Layers(Device& device, Communicator& communicator, const ModelConfig& config, DType dtype,
         const StepLimits& limits, int64_t overlap_tokens_min);
  /// Device memory that the constructor takes.
  static int64_t BufferBytes(const ModelConfig& config, DType dtype, const StepLimits& limits);

  /// out = the embeddings of the step's tokens, act [T, H]. table: act [V / ranks, H], this rank's
  /// rows.
  void Embed(const BatchView& batch, const Tensor& table, const Tensor& out) const;
  /// The stream that a pass starts from: act [T, H], for an embedding or a projection to write.
  Tensor Begin(int64_t tokens) const { return residual_.Rows(0, tokens); }
  /// Runs one layer on the stream. `first`: nothing was run on it since Begin. `logit_rows`, for
  /// the last layer of a pass: as Glm::Forward has it; the stream is that of these rows then.
  void Run(const BatchView& batch, const LayerWeights& weights, const KvLayer& cache, bool first,
           const TraceScope& trace, const BatchView* logit_rows = nullptr) const;
  /// Ends a pass of at least one layer: out = norm of the stream, act [T, H]. `traced`: the layers
  /// ran with a trace; `of_logit_rows`: the last one had them, and so has `batch`.
  void End(const BatchView& batch, const Tensor& weight, const Tensor& out, bool traced,
           bool of_logit_rows = false) const;
  /// logits = head . the rows of `normed` that the batch names. Of `head`, [V / ranks, H], each
  /// rank has its rows: with logits F32 [R, V] all ranks get all of them, with F32 [R, V / ranks]
  /// each keeps its own.
  void Head(const BatchView& batch, const Tensor& normed, const Weight& head,
            const Tensor& logits) const;

 private:
  /// What delta_ holds for the stream: nothing yet, this rank's part of a sum, or the sum.
  enum class Delta { kNone, kParts, kSummed };

  /// By whom attention and the feed-forward part of so many tokens sum what they give; null: that
  /// is done where it is added.
  Communicator* SumOver(int64_t tokens) const {
    return communicator_.size() > 1 && tokens >= overlap_tokens_min_ ? &communicator_ : nullptr;
  }
  /// Adds the delta, summed over the ranks, to `stream`, act [T, H]. Returns its normalised rows in
  /// the form that `next` reads, in the layers' buffers; in the plain form besides when told so.
  LinearInput AddNorm(const BatchView& batch, const Tensor& stream, Delta delta,
                      const Tensor& weight, const Weight& next, bool plain_too) const;
  void AddNorm(const BatchView& batch, const Tensor& stream, Delta delta, const Tensor& weight,
               const LinearInput& out) const;

  Device& device_;
  Communicator& communicator_;
  const ModelConfig& config_;
  const int64_t overlap_tokens_min_;
  std::optional<Attention> attention_;               // one of the two
  std::optional<LatentAttention> latent_attention_;  // is there
  const Ffn ffn_;
  Tensor residual_;          // act [T, H]
  Tensor normed_;            // act [T, H]
  Tensor delta_;             // act [T, H]  what attention or ffn adds to the residual
  QuantizedRows quantized_;  // of normed, where the next linear is FP8
  Tensor logit_rows_;        // act [R, H]  the stream of these rows, then what the head reads
  Tensor logits_part_;       // F32 [R, V / ranks]; empty with one rank
};

}  // namespace glm::engine
