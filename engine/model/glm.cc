#include "engine/model/glm.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/model/attention.h"
#include "engine/model/ffn.h"
#include "engine/model/loader.h"
#include "engine/model/safetensors.h"
#include "proto/base/log.h"

namespace glm::engine {
namespace {

struct LayerWeights {
  Tensor input_norm;  // act [H]
  AttentionWeights attention;
  Tensor post_attention_norm;  // act [H]
  FfnWeights ffn;
};

struct GlmWeights {
  Tensor embedding;  // act [V, H]
  std::vector<LayerWeights> layers;
  Tensor norm;  // act [H]
  Weight head;  // [V, H]; the embedding, where they are tied
};

WeightPlan PlanWeights(const ModelConfig& config, DType dtype, GlmWeights* weights) {
  WeightPlan plan;
  const Tensor table(nullptr, dtype, {config.vocabulary, config.hidden_size});
  const Tensor norm(nullptr, dtype, {config.hidden_size});
  plan.AddWhole(&weights->embedding, table, "model.embed_tokens.weight");
  weights->layers.resize(config.layers);
  for (int32_t i = 0; i < config.layers; ++i) {
    const std::string prefix = absl::StrCat("model.layers.", i, ".");
    LayerWeights& layer = weights->layers[i];
    plan.AddWhole(&layer.input_norm, norm, prefix + "input_layernorm.weight");
    PlanAttention(config, dtype, prefix, &plan, &layer.attention);
    plan.AddWhole(&layer.post_attention_norm, norm, prefix + "post_attention_layernorm.weight");
    PlanFfn(config, dtype, prefix, /*dense=*/i < config.dense_layers, &plan, &layer.ffn);
  }
  plan.AddWhole(&weights->norm, norm, "model.norm.weight");
  if (!config.tie_word_embeddings) plan.AddWhole(&weights->head.values, table, "lm_head.weight");
  for (int32_t i = 0; i < config.mtp_layers; ++i) {
    plan.SetAside(absl::StrCat("model.layers.", config.layers + i, "."));
  }
  return plan;
}

class PagedGlm final : public Glm {
 public:
  PagedGlm(Device& device, const ModelConfig& config, DType dtype, const StepLimits& limits,
           GlmWeights weights, int64_t weight_bytes)
      : device_(device),
        config_(config),
        limits_(limits),
        weights_(std::move(weights)),
        weight_bytes_(weight_bytes),
        attention_(device, config_, dtype, limits),
        ffn_(device, config_, dtype, limits),
        residual_(device.NewTensor(dtype, {limits.tokens_max, config.hidden_size})),
        normed_(device.NewTensor(dtype, {limits.tokens_max, config.hidden_size})),
        delta_(device.NewTensor(dtype, {limits.tokens_max, config.hidden_size})),
        logit_rows_(device.NewTensor(dtype, {limits.logit_rows_max, config.hidden_size})) {}

  void Forward(const BatchView& batch, const KvCache& cache, const Tensor& logits) override {
    const int64_t tokens = batch.token_ids.shape[0];
    CHECK_LE(tokens, limits_.tokens_max) << "tokens of a step";
    CHECK_LE(logits.shape[0], limits_.logit_rows_max) << "logit rows of a step";
    CHECK_EQ(cache.layers.size(), weights_.layers.size()) << "layers of the cache";
    const Tensor residual = residual_.Rows(0, tokens);
    const Tensor normed = normed_.Rows(0, tokens);
    const Tensor delta = delta_.Rows(0, tokens);

    device_.ops().embed(device_, {.batch = batch, .table = weights_.embedding, .out = residual});
    if (trace_) trace_("embedding", residual);
    for (size_t i = 0; i < weights_.layers.size(); ++i) {
      const LayerWeights& layer = weights_.layers[i];
      const TraceScope trace(trace_, "layers.", static_cast<int64_t>(i));
      AddNorm(batch, i == 0 ? Tensor() : delta, residual, layer.input_norm, normed);
      attention_.Forward(batch, layer.attention, cache.layers[i], normed, delta, trace);
      AddNorm(batch, delta, residual, layer.post_attention_norm, normed);
      ffn_.Forward(batch, layer.ffn, normed, delta, trace);
    }
    AddNorm(batch, delta, residual, weights_.norm, normed);
    if (trace_) trace_("norm", normed);
    if (logits.shape[0] > 0) Head(batch, normed, logits);
  }

  void SetTrace(Trace trace) override { trace_ = std::move(trace); }
  int64_t weight_bytes() const override { return weight_bytes_; }

 private:
  void AddNorm(const BatchView& batch, const Tensor& delta, const Tensor& residual,
               const Tensor& weight, const Tensor& out) const {
    device_.ops().add_rms_norm(device_, {.batch = batch,
                                         .delta = delta,
                                         .residual = residual,
                                         .weight = weight,
                                         .epsilon = static_cast<float>(config_.rms_norm_eps),
                                         .out = out,
                                         .quantized = {}});
  }

  void Head(const BatchView& batch, const Tensor& normed, const Tensor& logits) const {
    const Tensor rows = logit_rows_.Rows(0, logits.shape[0]);
    device_.ops().gather_logit_rows(device_, {.batch = batch, .in = normed, .out = rows});
    device_.ops().linear(device_, {.batch = batch,
                                   .in = {rows, {}},
                                   .weight = weights_.head,
                                   .bias = {},
                                   .out = logits,
                                   .per_logit_row = true});
    if (trace_) trace_("logits", logits);
  }

  Device& device_;
  const ModelConfig config_;
  const StepLimits limits_;
  const GlmWeights weights_;
  const int64_t weight_bytes_;
  const Attention attention_;
  const Ffn ffn_;
  Trace trace_;
  Tensor residual_;    // act [T, H]
  Tensor normed_;      // act [T, H]
  Tensor delta_;       // act [T, H]  what attention or ffn adds to the residual
  Tensor logit_rows_;  // act [R, H]
};

}  // namespace

int64_t KvCache::BytesPerBlock(const ModelConfig& config, DType dtype, int32_t block_size) {
  return int64_t{2} * config.layers * config.kv_heads * block_size * config.head_size *
         ByteSize(dtype);
}

KvCache KvCache::Allocate(Device& device, const ModelConfig& config, DType dtype, int64_t blocks,
                          int32_t block_size) {
  KvCache cache;
  for (int32_t i = 0; i < config.layers; ++i) {
    KvLayer layer;
    for (Tensor* tensor : {&layer.keys, &layer.values}) {
      *tensor = device.NewTensor(dtype, {blocks, config.kv_heads, block_size, config.head_size});
    }
    cache.layers.push_back(layer);
  }
  return cache;
}

absl::StatusOr<std::unique_ptr<Glm>> Glm::Load(Device& device, const ModelConfig& config,
                                               const std::string& folder, DType dtype,
                                               const StepLimits& limits) {
  CHECK(dtype == DType::kF32 || dtype == DType::kBF16) << "activation type " << Name(dtype);
  absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(folder);
  if (!checkpoint.ok()) return checkpoint.status();
  GlmWeights weights;
  const WeightPlan plan = PlanWeights(config, dtype, &weights);
  const absl::Status status = LoadWeights(device, *checkpoint, plan);
  if (!status.ok()) return status;
  if (config.tie_word_embeddings) weights.head.values = weights.embedding;
  return std::make_unique<PagedGlm>(device, config, dtype, limits, std::move(weights),
                                    plan.bytes());
}

StepLimits Glm::CompleteLimits(const ModelConfig& config, StepLimits limits) {
  limits.hidden = config.hidden_size;
  limits.query_heads = config.query_heads;
  limits.kv_heads = config.kv_heads;
  limits.head_size = config.head_size;
  if (config.dense_layers < config.layers) {
    limits.experts = config.experts + config.shared_experts;
    limits.experts_per_token = config.experts_per_token + config.shared_experts;
    limits.expert_width = config.expert_width;
  }
  if (config.dense_layers > 0) limits.dense_width = config.dense_width;
  limits.vocabulary = config.vocabulary;
  return limits;
}

}  // namespace glm::engine
