#include "engine/model/glm.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/model/layers.h"
#include "engine/model/loader.h"
#include "engine/model/mtp.h"
#include "engine/model/safetensors.h"
#include "proto/base/log.h"

namespace glm::engine {
namespace {

struct GlmWeights {
  Tensor embedding;  // act [V / ranks, H]
  std::vector<LayerWeights> layers;
  Tensor norm;  // act [H]
  Weight head;  // [V / ranks, H]; the embedding, where they are tied
};

WeightPlan PlanWeights(const ModelConfig& config, DType dtype, const PlanTerms& terms,
                       GlmWeights* weights, MtpWeights* mtp_weights) {
  WeightPlan plan(terms);
  plan.AddRows(&weights->embedding, dtype, "model.embed_tokens.weight", config.vocabulary,
               config.hidden_size);
  weights->layers.resize(config.layers);
  for (int32_t i = 0; i < config.layers; ++i) {
    PlanLayer(config, dtype, absl::StrCat("model.layers.", i, "."),
              /*dense=*/i < config.dense_layers, &plan, &weights->layers[i]);
  }
  plan.AddWhole(&weights->norm, Tensor(nullptr, dtype, {config.hidden_size}), "model.norm.weight");
  if (!config.tie_word_embeddings) {
    plan.AddRows(&weights->head.values, dtype, "lm_head.weight", config.vocabulary,
                 config.hidden_size);
  }
  if (mtp_weights != nullptr) {
    PlanMtp(config, dtype, &plan, mtp_weights);
  } else {
    for (int32_t i = 0; i < config.mtp_layers; ++i) {
      plan.SetAside(absl::StrCat("model.layers.", config.layers + i, "."));
    }
  }
  return plan;
}

/// Whether the draft layer is to be loaded; `stored` null: it is where the config has one.
absl::StatusOr<bool> WantMtp(const ModelConfig& config, const StoredTensors* stored,
                             const GlmOptions& options) {
  if (!options.mtp) return false;
  if (config.mtp_layers > 1) {
    return absl::InvalidArgumentError(absl::StrCat("num_nextn_predict_layers is ",
                                                   config.mtp_layers, "; accepted with MTP: 0, 1"));
  }
  if (stored == nullptr ? config.mtp_layers > 0 : HasMtp(config, *stored)) return true;
  LOG(INFO) << "MTP is off: the checkpoint has no draft layer, "
            << (config.mtp_layers > 0 ? "although num_nextn_predict_layers is 1"
                                      : "and num_nextn_predict_layers is 0");
  return false;
}

class PagedGlm final : public Glm {
 public:
  PagedGlm(Device& device, const GlmOptions& options, const ModelConfig& config, DType dtype,
           const StepLimits& limits, GlmWeights weights,
           const std::optional<MtpWeights>& mtp_weights, int64_t weight_bytes)
      : single_(options.communicator == nullptr ? CreateSingleCommunicator() : nullptr),
        config_(config),
        limits_(limits),
        weights_(std::move(weights)),
        weight_bytes_(weight_bytes),
        layers_(device, single_ != nullptr ? *single_ : *options.communicator, config_, dtype,
                limits, options.overlap_tokens_min),
        hidden_(device.NewTensor(dtype, {limits.tokens_max, config.hidden_size})) {
    if (mtp_weights.has_value()) {
      mtp_.emplace(device, config_, layers_, dtype, limits, *mtp_weights);
    }
  }

  void Forward(const BatchView& batch, const KvCache& cache, const Tensor& logits,
               const BatchView* logit_rows) override {
    const int64_t tokens = batch.token_ids.shape[0];
    CHECK_LE(tokens, limits_.tokens_max) << "tokens of a step";
    CHECK_LE(logits.shape[0], limits_.logit_rows_max) << "logit rows of a step";
    CHECK_EQ(cache.layers.size(), weights_.layers.size()) << "layers of the cache";
    const Tensor residual = layers_.Begin(tokens);
    if (trace_) logit_rows = nullptr;  // it wants to see all

    layers_.Embed(batch, weights_.embedding, residual);
    if (trace_) trace_("embedding", residual);
    for (size_t i = 0; i < weights_.layers.size(); ++i) {
      const bool last = i + 1 == weights_.layers.size();
      layers_.Run(batch, weights_.layers[i], cache.layers[i], /*first=*/i == 0,
                  TraceScope(trace_, "layers.", static_cast<int64_t>(i)),
                  last ? logit_rows : nullptr);
    }
    const BatchView& rows = logit_rows != nullptr ? *logit_rows : batch;
    const Tensor hidden = hidden_.Rows(0, rows.token_ids.shape[0]);
    layers_.End(rows, weights_.norm, hidden, static_cast<bool>(trace_), logit_rows != nullptr);
    if (trace_) trace_("norm", hidden);
    if (logits.shape[0] == 0) return;
    layers_.Head(rows, hidden, weights_.head, logits);
    if (trace_) trace_("logits", logits);
  }

  Tensor hidden(int64_t tokens) const override { return hidden_.Rows(0, tokens); }
  bool has_mtp() const override { return mtp_.has_value(); }

  void ForwardMtp(const BatchView& batch, const Tensor& hidden, const KvCache& cache,
                  const Tensor& logits) override {
    CHECK(mtp_.has_value()) << "the draft layer was not loaded";
    CHECK(!cache.mtp.keys.empty()) << "a cache without the draft layer's";
    const int64_t tokens = batch.token_ids.shape[0];
    CHECK_LE(tokens, limits_.tokens_max) << "tokens of a step";
    CHECK_LE(logits.shape[0], limits_.logit_rows_max) << "logit rows of a step";
    CHECK_EQ(hidden.shape[0], tokens) << "hidden states";
    mtp_->Forward(batch, hidden, cache.mtp, logits, trace_);
  }

  Tensor mtp_hidden(int64_t tokens) const override { return mtp_->hidden(tokens); }

  void SetTrace(Trace trace) override { trace_ = std::move(trace); }
  int64_t weight_bytes() const override { return weight_bytes_; }
  void ScaleCache(KvCache* cache) const override {
    CHECK_EQ(cache->layers.size(), weights_.layers.size()) << "layers of the cache";
    const auto scale = [](const LayerWeights& weights, KvLayer* layer) {
      layer->key_scale = weights.key_scale;
      layer->value_scale = weights.value_scale;
    };
    for (size_t i = 0; i < weights_.layers.size(); ++i) {
      scale(weights_.layers[i], &cache->layers[i]);
    }
    if (mtp_.has_value()) scale(mtp_->layer(), &cache->mtp);
  }

 private:
  const std::unique_ptr<Communicator> single_;  // of the only rank, where none was given
  const ModelConfig config_;                    // of a rank
  const StepLimits limits_;
  const GlmWeights weights_;
  const int64_t weight_bytes_;
  const Layers layers_;
  std::optional<Mtp> mtp_;
  Trace trace_;
  Tensor hidden_;  // act [T, H]  after the final norm
};

KvLayer NewKvLayer(Device& device, const ModelConfig& config, DType dtype, int64_t blocks,
                   int32_t block_size) {
  const auto tensor = [&] {
    return device.NewTensor(dtype, {blocks, config.cache_heads(), block_size, config.cell_size()});
  };
  KvLayer layer;
  layer.keys = tensor();
  if (!config.latent_attention()) layer.values = tensor();
  return layer;
}

}  // namespace

int64_t KvCache::BytesPerBlock(const ModelConfig& config, DType dtype, int32_t block_size,
                               bool mtp) {
  const int64_t layers = config.layers + (mtp ? 1 : 0);
  const int64_t tensors = config.latent_attention() ? 1 : 2;
  const int64_t cells = layers * tensors * config.cache_heads() * block_size * config.cell_size();
  return cells * ByteSize(dtype) + block_size * ByteSize(DType::kI32);
}

KvCache KvCache::Allocate(Device& device, const ModelConfig& config, DType dtype, int64_t blocks,
                          int32_t block_size, bool mtp) {
  KvCache cache;
  for (int32_t i = 0; i < config.layers; ++i) {
    cache.layers.push_back(NewKvLayer(device, config, dtype, blocks, block_size));
  }
  if (mtp) cache.mtp = NewKvLayer(device, config, dtype, blocks, block_size);
  cache.tokens.ids = device.NewTensor(DType::kI32, {blocks, block_size});
  return cache;
}

absl::Status Glm::CheckRanks(const ModelConfig& config, int32_t size) {
  const auto faults = [&](int64_t ranks) {
    std::vector<std::string> list;
    const auto check = [&](const char* key, int64_t extent) {
      if (extent % ranks != 0) list.push_back(absl::StrCat(key, " ", extent));
    };
    check("num_attention_heads", config.query_heads);
    if (!config.latent_attention()) check("num_key_value_heads", config.kv_heads);
    if (config.dense_layers > 0) check("intermediate_size", config.dense_width);
    if (config.has_mixture()) check("moe_intermediate_size", config.expert_width);
    check("vocab_size", config.vocabulary);
    return list;
  };
  if (size >= 1 && faults(size).empty()) return absl::OkStatus();
  std::vector<int64_t> accepted;
  for (int64_t ranks = 1; ranks <= config.query_heads; ++ranks) {
    if (faults(ranks).empty()) accepted.push_back(ranks);
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "tensor_parallel_size is ", size,
      size < 1 ? std::string()
               : absl::StrCat(", which does not divide ", absl::StrJoin(faults(size), ", ")),
      "; accepted: ", absl::StrJoin(accepted, ", ")));
}

absl::StatusOr<WeightPlan> Glm::Plan(const ModelConfig& config, DType dtype, const PlanTerms& terms,
                                     const GlmOptions& options) {
  const absl::Status ranks = CheckRanks(config, terms.slice.size);
  if (!ranks.ok()) return ranks;
  const absl::StatusOr<bool> with_mtp = WantMtp(config, terms.stored, options);
  if (!with_mtp.ok()) return with_mtp.status();
  GlmWeights weights;
  MtpWeights mtp_weights;
  WeightPlan plan = PlanWeights(config, dtype, terms, &weights, *with_mtp ? &mtp_weights : nullptr);
  if (!plan.status().ok()) return plan.status();
  plan.Detach();
  return plan;
}

absl::StatusOr<std::unique_ptr<Glm>> Glm::Load(Device& device, const ModelConfig& config,
                                               const WeightSource& source, DType dtype,
                                               const StepLimits& limits,
                                               const GlmOptions& options) {
  CHECK(dtype == DType::kF32 || dtype == DType::kBF16) << "activation type " << Name(dtype);
  if (config.latent_attention() && device.ops().mla_attention == nullptr) {
    return absl::UnimplementedError(
        absl::StrCat("model_type is \"", config.model_type, "\": ", device.Describe(),
                     " has no latent attention; accepted there: \"glm4_moe\""));
  }
  RankSlice slice;
  if (options.communicator != nullptr) {
    slice = {.rank = options.communicator->rank(), .size = options.communicator->size()};
  }
  const absl::Status ranks = CheckRanks(config, slice.size);
  if (!ranks.ok()) return ranks;
  std::optional<Checkpoint> checkpoint;
  if (!source.random) {
    absl::StatusOr<Checkpoint> opened = Checkpoint::Open(source.folder);
    if (!opened.ok()) return opened.status();
    checkpoint = *std::move(opened);
  }
  const PlanTerms terms{.stored = checkpoint.has_value() ? &checkpoint->tensors() : nullptr,
                        .scaling = config.quantization.weights,
                        .quantize = source.quantize,
                        .cut_blocks = device.ops().takes_cut_blocks,
                        .slice = slice};
  const absl::StatusOr<bool> with_mtp = WantMtp(config, terms.stored, options);
  if (!with_mtp.ok()) {
    return absl::Status(with_mtp.status().code(),
                        absl::StrCat(source.folder, ": ", with_mtp.status().message()));
  }
  GlmWeights weights;
  std::optional<MtpWeights> mtp_weights;
  if (*with_mtp) mtp_weights.emplace();
  const WeightPlan plan =
      PlanWeights(config, dtype, terms, &weights, *with_mtp ? &*mtp_weights : nullptr);
  absl::Status status = checkpoint.has_value() ? CheckPlan(plan, *checkpoint) : plan.status();
  if (status.ok() && source.admit) status = source.admit(plan.bytes());
  if (!status.ok()) return status;
  status = checkpoint.has_value()
               ? LoadWeights(device, *checkpoint, plan, source.threads)
               : LoadRandomWeights(device, WeightSource::kRandomSeed, plan, source.threads);
  if (!status.ok()) return status;
  if (config.tie_word_embeddings) weights.head.values = weights.embedding;
  if (*with_mtp) UseModelWeights(weights.embedding, weights.head, &*mtp_weights);
  return std::make_unique<PagedGlm>(device, options, config.OfRank(slice.size), dtype, limits,
                                    std::move(weights), mtp_weights, plan.bytes());
}

int64_t Glm::BufferBytes(const ModelConfig& config, DType dtype, const StepLimits& limits,
                         const GlmOptions& options) {
  return limits.tokens_max * config.hidden_size * ByteSize(dtype) +
         Layers::BufferBytes(config, dtype, limits) +
         (options.mtp ? Mtp::BufferBytes(config, dtype, limits) : 0);
}

StepLimits Glm::CompleteLimits(const ModelConfig& config, StepLimits limits) {
  limits.hidden = config.hidden_size;
  limits.query_heads = config.query_heads;
  limits.kv_heads = config.cache_heads();
  limits.head_size = std::max(config.head_size, config.value_size);
  if (config.latent_attention()) {
    limits.query_latent = config.query_latent;
    limits.latent = config.cell_size();
  }
  if (config.has_mixture()) {
    limits.experts = config.experts + config.shared_experts;
    limits.experts_per_token = config.experts_per_token + config.shared_experts;
    limits.expert_width = config.expert_width;
  }
  if (config.dense_layers > 0) limits.dense_width = config.dense_width;
  limits.vocabulary = config.vocabulary;
  limits.vocabulary_slices = config.ranks;
  return limits;
}

}  // namespace glm::engine
