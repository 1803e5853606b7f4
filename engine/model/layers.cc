#include "engine/model/layers.h"

#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace glm::engine {
namespace {

// The one number of a tensor [] or [1], or NaN.
float ScalarOf(const StoredTensor& stored) {
  const bool one = stored.shape.empty() || stored.shape == std::vector<int64_t>{1};
  if (one && stored.dtype == DType::kF32) {
    float value;
    std::memcpy(&value, stored.data, sizeof(value));
    return value;
  }
  if (one && stored.dtype == DType::kBF16) {
    BFloat16 value;
    std::memcpy(&value, stored.data, sizeof(value));
    return ToFloat(value);
  }
  return std::nanf("");
}

// The cache scale of keys ("k") or values ("v"), under whichever of its names it has; 1 when it is
// not there and need not be.
float TakeCacheScale(const std::string& attention, const std::string& letter, bool required,
                     WeightPlan* plan) {
  const StoredTensors* stored = plan->terms().stored;
  if (stored == nullptr) return 1;
  for (const char* middle : {"", "attn.", letter == "k" ? "k_proj." : "v_proj."}) {
    const std::string name = absl::StrCat(attention, middle, letter, "_scale");
    const auto found = stored->find(name);
    if (found == stored->end()) continue;
    plan->Take(name);
    const float scale = ScalarOf(found->second);
    if (std::isfinite(scale) && scale > 0) return scale;
    plan->Refuse(absl::InvalidArgumentError(absl::StrCat(
        "tensor ", name, " ", ShapeText(found->second.shape), " is ", Name(found->second.dtype),
        "; accepted: one F32 or BF16 number, finite and above 0")));
    return 1;
  }
  if (required) {
    plan->Refuse(absl::NotFoundError(absl::StrCat("tensor ", attention, letter,
                                                  "_scale is missing, and kv_cache_scheme of "
                                                  "config.json speaks of it")));
  }
  return 1;
}

}  // namespace

void PlanLayer(const ModelConfig& config, DType dtype, const std::string& prefix, bool dense,
               WeightPlan* plan, LayerWeights* weights) {
  const Tensor norm(nullptr, dtype, {config.hidden_size});
  plan->AddWhole(&weights->input_norm, norm, prefix + "input_layernorm.weight");
  if (config.latent_attention()) {
    PlanLatentAttention(config, dtype, prefix, plan, &weights->latent_attention);
  } else {
    PlanAttention(config, dtype, prefix, plan, &weights->attention);
  }
  plan->AddWhole(&weights->post_attention_norm, norm, prefix + "post_attention_layernorm.weight");
  PlanFfn(config, dtype, prefix, dense, plan, &weights->ffn);
  const bool required = config.quantization.cache_scales;
  weights->key_scale = TakeCacheScale(prefix + "self_attn.", "k", required, plan);
  weights->value_scale = TakeCacheScale(prefix + "self_attn.", "v", required, plan);
}

Layers::Layers(Device& device, Communicator& communicator, const ModelConfig& config, DType dtype,
               const StepLimits& limits, int64_t overlap_tokens_min)
    : device_(device),
      communicator_(communicator),
      config_(config),
      overlap_tokens_min_(overlap_tokens_min),
      ffn_(device, config, dtype, limits),
      residual_(device.NewTensor(dtype, {limits.tokens_max, config.hidden_size})),
      normed_(device.NewTensor(dtype, {limits.tokens_max, config.hidden_size})),
      delta_(device.NewTensor(dtype, {limits.tokens_max, config.hidden_size})),
      quantized_(device, limits.tokens_max, config.hidden_size),
      logit_rows_(device.NewTensor(dtype, {limits.logit_rows_max, config.hidden_size})) {
  CHECK_EQ(communicator.size(), config.ranks);
  if (config.ranks > 1) {
    logits_part_ =
        device.NewTensor(DType::kF32, {limits.logit_rows_max, config.vocabulary / config.ranks});
  }
  if (config.latent_attention()) {
    latent_attention_.emplace(device, config, dtype, limits);
  } else {
    attention_.emplace(device, config, dtype, limits);
  }
}

int64_t Layers::BufferBytes(const ModelConfig& config, DType dtype, const StepLimits& limits) {
  const int64_t attention = config.latent_attention()
                                ? LatentAttention::BufferBytes(config, dtype, limits)
                                : Attention::BufferBytes(config, dtype, limits);
  const int64_t logits_part = config.ranks > 1 ? config.vocabulary / config.ranks : 0;
  return attention + Ffn::BufferBytes(config, dtype, limits) +
         (3 * limits.tokens_max + limits.logit_rows_max) * config.hidden_size * ByteSize(dtype) +
         QuantizedRows::Bytes(limits.tokens_max, config.hidden_size) +
         limits.logit_rows_max * logits_part * ByteSize(DType::kF32);
}

void Layers::Embed(const BatchView& batch, const Tensor& table, const Tensor& out) const {
  device_.ops().embed(device_, {.batch = batch,
                                .table = table,
                                .out = out,
                                .vocabulary_begin = communicator_.rank() * table.shape[0]});
  communicator_.AllReduceSum(device_, out);
}

void Layers::Run(const BatchView& batch, const LayerWeights& weights, const KvLayer& cache,
                 bool first, const TraceScope& trace, const BatchView* logit_rows) const {
  const int64_t tokens = batch.token_ids.shape[0];
  const BatchView& behind = logit_rows != nullptr ? *logit_rows : batch;  // keys and values
  const int64_t tokens_behind = behind.token_ids.shape[0];
  const Tensor delta = delta_.Rows(0, tokens_behind);
  Tensor stream = residual_.Rows(0, tokens);
  Communicator* const sum_over = SumOver(tokens_behind);
  // What a layer's feed-forward part adds is summed over the ranks where it is added, at the head
  // of the next layer, unless it was overlapped; a trace wants to see it before.
  const Delta made = sum_over != nullptr ? Delta::kSummed : Delta::kParts;
  const bool came_summed = trace.on() || SumOver(tokens) != nullptr;
  const Delta came = first ? Delta::kNone : came_summed ? Delta::kSummed : Delta::kParts;
  if (latent_attention_.has_value()) {
    const LatentAttentionWeights& attention = weights.latent_attention;
    const LinearInput in = AddNorm(batch, stream, came, weights.input_norm, attention.down, false);
    latent_attention_->Forward(batch, logit_rows, attention, cache, in, delta, sum_over, trace);
  } else {
    const AttentionWeights& attention = weights.attention;
    const LinearInput in = AddNorm(batch, stream, came, weights.input_norm, attention.qkv, false);
    attention_->Forward(batch, logit_rows, attention, cache, in, delta, sum_over, trace);
  }
  if (logit_rows != nullptr) {
    const Tensor rows = logit_rows_.Rows(0, tokens_behind);
    device_.ops().gather_logit_rows(device_, {.batch = batch, .in = stream, .out = rows});
    stream = rows;
  }
  // The router of a mixture reads plain rows whatever the experts read.
  const LinearInput in = AddNorm(behind, stream, made, weights.post_attention_norm,
                                 weights.ffn.first(), /*plain_too=*/!weights.ffn.dense());
  trace("attention", delta);
  ffn_.Forward(behind, weights.ffn, in, delta, sum_over, trace);
  if (!trace.on()) return;
  if (made == Delta::kParts) communicator_.AllReduceSum(device_, delta);
  trace("ffn", delta);
}

void Layers::End(const BatchView& batch, const Tensor& weight, const Tensor& out, bool traced,
                 bool of_logit_rows) const {
  const int64_t tokens = batch.token_ids.shape[0];
  const bool summed = traced || SumOver(tokens) != nullptr;
  const Tensor& stream = of_logit_rows ? logit_rows_ : residual_;
  AddNorm(batch, stream.Rows(0, tokens), summed ? Delta::kSummed : Delta::kParts, weight,
          LinearInput(out));
}

LinearInput Layers::AddNorm(const BatchView& batch, const Tensor& stream, Delta delta,
                            const Tensor& weight, const Weight& next, bool plain_too) const {
  const int64_t tokens = batch.token_ids.shape[0];
  LinearInput rows;
  rows.quantized = quantized_.For(next, tokens, config_.hidden_size);
  if (plain_too || rows.quantized.values.empty()) rows.plain = normed_.Rows(0, tokens);
  AddNorm(batch, stream, delta, weight, rows);
  return rows;
}

void Layers::AddNorm(const BatchView& batch, const Tensor& stream, Delta delta,
                     const Tensor& weight, const LinearInput& out) const {
  const int64_t tokens = batch.token_ids.shape[0];
  const AddRmsNormArgs args = {.batch = batch,
                               .delta = delta == Delta::kNone ? Tensor() : delta_.Rows(0, tokens),
                               .residual = stream,
                               .weight = weight,
                               .epsilon = static_cast<float>(config_.rms_norm_eps),
                               .out = out.plain,
                               .quantized = out.quantized};
  if (delta == Delta::kParts) {
    communicator_.AllReduceAddRmsNorm(device_, args);
  } else {
    device_.ops().add_rms_norm(device_, args);
  }
}

void Layers::Head(const BatchView& batch, const Tensor& normed, const Weight& head,
                  const Tensor& logits) const {
  const Tensor rows = logit_rows_.Rows(0, logits.shape[0]);
  const bool whole = logits.shape[1] == config_.vocabulary;
  const Tensor part = whole && config_.ranks > 1 ? logits_part_.Rows(0, logits.shape[0]) : logits;
  device_.ops().gather_logit_rows(device_, {.batch = batch, .in = normed, .out = rows});
  device_.ops().linear(device_, {.batch = batch,
                                 .in = {rows, {}},
                                 .weight = head,
                                 .bias = {},
                                 .out = part,
                                 .per_logit_row = true});
  if (whole) communicator_.AllGatherColumns(device_, part, logits);
}

}  // namespace glm::engine
