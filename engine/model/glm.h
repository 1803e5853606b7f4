// The GLM-4 MoE model (glm4_moe, and glm4_moe_lite with latent attention), written once over the op
// table.
//
// Who calls: a rank, on the thread that owns the device. Source of the formulas: huggingface
// transformers' modeling_glm4_moe.py (Glm4MoeForCausalLM) and modeling_glm4_moe_lite.py; rounding
// points are those of kernels/ops.h.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/config.h"
#include "engine/model/trace.h"
#include "engine/model/weight_plan.h"
#include "kernels/communicator.h"
#include "kernels/ops.h"

namespace glm::engine {

/// The paged cache of all layers of a rank: [B, K, P, D] keys and values a layer, of the rank's kv
/// heads. With latent attention [B, 1, P, L + rope] keys, the same on every rank, and no values.
/// `config` is a rank's: ModelConfig::OfRank.
struct KvCache {
  std::vector<KvLayer> layers;
  KvLayer mtp;        // of the draft layer; empty without it
  TokenCache tokens;  // whose K and V the blocks hold

  /// Device bytes of one block over all layers, and of its tokens; `mtp`: with the draft layer.
  static int64_t BytesPerBlock(const ModelConfig& config, DType dtype, int32_t block_size,
                               bool mtp = false);
  static KvCache Allocate(Device& device, const ModelConfig& config, DType dtype, int64_t blocks,
                          int32_t block_size, bool mtp = false);
};

/// What of a checkpoint is loaded.
struct GlmOptions {
  bool mtp = false;  // the draft layer too, where the checkpoint has one
  /// The ranks that share the model, this one's place among them; must outlive the model. Null:
  /// there is only one. All ranks call Forward and ForwardMtp for the same steps in the same order.
  Communicator* communicator = nullptr;
  /// Steps of so many tokens sum over the ranks what of a product is done while the rest of it is
  /// multiplied. With fewer the sums are short, and a product in two parts costs more than they do.
  /// More than StepGraphs::kTokensMax, so captured steps, those of decoding, have none of it. Off
  /// unless asked for: with two H200s a prompt of 8000 takes 87 ms so and 81 ms without.
  static constexpr int64_t kNoOverlap = std::numeric_limits<int64_t>::max();
  int64_t overlap_tokens_min = kNoOverlap;
  /// What is asked for.
  static constexpr int64_t kOverlapTokensMin = 1024;
};

/// Where the weights of a model come from, and in which form they are held.
struct WeightSource {
  /// Seed of the weights that come from no checkpoint.
  static constexpr uint64_t kRandomSeed = 20240229;

  WeightSource(std::string folder_in) : folder(std::move(folder_in)) {}  // NOLINT: a folder is one

  std::string folder;     // of the checkpoint
  bool random = false;    // seeded random weights instead, by the config alone
  bool quantize = false;  // linears that are not FP8 become FP8, one scale an output channel
  int32_t threads = 4;    // that read, convert and quantise
  /// Called with the bytes of the weights when the checkpoint was found right, before memory is
  /// taken; what it refuses is not loaded. May be left out.
  std::function<absl::Status(int64_t weight_bytes)> admit;
};

class Glm {
 public:
  /// OK when `size` ranks can share the model; INVALID_ARGUMENT says what it does not divide, and
  /// which sizes do.
  static absl::Status CheckRanks(const ModelConfig& config, int32_t size);
  /// Every part of a checkpoint that a rank reads and every weight that it holds, for reading only.
  /// Pure: with terms.stored left out, no checkpoint is needed.
  static absl::StatusOr<WeightPlan> Plan(const ModelConfig& config, DType dtype,
                                         const PlanTerms& terms, const GlmOptions& options = {});

  /// Reads this rank's weights of `source` into `device` and plans the buffers of the largest step.
  /// `config` is the whole model's, `limits` are the rank's; `dtype` is the activation type.
  /// NOT_FOUND / INVALID_ARGUMENT name the tensor or file; UNIMPLEMENTED when the device has no
  /// latent attention and the model needs it.
  static absl::StatusOr<std::unique_ptr<Glm>> Load(Device& device, const ModelConfig& config,
                                                   const WeightSource& source, DType dtype,
                                                   const StepLimits& limits,
                                                   const GlmOptions& options = {});

  /// Device memory of the buffers of the largest step, but for scratch of the device; of one rank,
  /// if `config` is a rank's.
  static int64_t BufferBytes(const ModelConfig& config, DType dtype, const StepLimits& limits,
                             const GlmOptions& options = {});

  /// What the largest step needs: fills the sizes of the model into limits given in T, S and R; of
  /// one rank, if `config` is a rank's.
  static StepLimits CompleteLimits(const ModelConfig& config, StepLimits limits);

  virtual ~Glm() = default;

  /// Runs embedding, layers, norm and head for one step; stores K and V into `cache`; writes the
  /// logits of batch.logit_tokens to `logits`, F32 [R, V]; or F32 [R, V / ranks], for this rank's
  /// columns alone, which then are not gathered. `logit_rows`: the batch of those tokens alone, R
  /// of T; with it the last layer computes nothing of the others but their K and V. Null where
  /// hidden() will be asked for.
  virtual void Forward(const BatchView& batch, const KvCache& cache, const Tensor& logits,
                       const BatchView* logit_rows = nullptr) = 0;

  /// The hidden states of the last Forward after the final norm, act [tokens, H]; of all its
  /// tokens, not only of those whose logits were wanted. Valid until the next Forward.
  virtual Tensor hidden(int64_t tokens) const = 0;

  /// True when the draft layer was asked for and the checkpoint has one.
  virtual bool has_mtp() const = 0;
  /// Runs the draft layer on the `hidden` states of the batch's tokens, act [T, H]: those of the
  /// last Forward, or, for a draft after a draft, mtp_hidden of the ForwardMtp before. The batch
  /// has the token *after* each position as its token id. Stores K and V into cache.mtp; writes
  /// the draft logits of batch.logit_tokens to `logits`, as Forward does; R = 0: none. REQUIRES
  /// has_mtp(), and that `hidden` is not what mtp_hidden returns itself.
  virtual void ForwardMtp(const BatchView& batch, const Tensor& hidden, const KvCache& cache,
                          const Tensor& logits) = 0;
  /// The draft layer's output of the last ForwardMtp after its norm, act [tokens, H]. Valid until
  /// the next ForwardMtp.
  virtual Tensor mtp_hidden(int64_t tokens) const = 0;

  /// The hook for every named intermediate; null turns it off.
  virtual void SetTrace(Trace trace) = 0;
  /// Gives the layers of an FP8 cache the scales that the checkpoint has for them.
  virtual void ScaleCache(KvCache* cache) const = 0;
  /// Device bytes of the weights.
  virtual int64_t weight_bytes() const = 0;
};

}  // namespace glm::engine
