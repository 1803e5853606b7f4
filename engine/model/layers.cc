#include "engine/model/layers.h"

namespace glm::engine {

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
}

Layers::Layers(Device& device, const ModelConfig& config, DType dtype, const StepLimits& limits)
    : device_(device),
      config_(config),
      ffn_(device, config, dtype, limits),
      residual_(device.NewTensor(dtype, {limits.tokens_max, config.hidden_size})),
      normed_(device.NewTensor(dtype, {limits.tokens_max, config.hidden_size})),
      delta_(device.NewTensor(dtype, {limits.tokens_max, config.hidden_size})) {
  if (config.latent_attention()) {
    latent_attention_.emplace(device, config, dtype, limits);
  } else {
    attention_.emplace(device, config, dtype, limits);
  }
}

void Layers::Run(const BatchView& batch, const LayerWeights& weights, const KvLayer& cache,
                 bool first, const TraceScope& trace) const {
  const int64_t tokens = batch.token_ids.shape[0];
  const Tensor normed = normed_.Rows(0, tokens);
  const Tensor delta = delta_.Rows(0, tokens);
  AddNorm(batch, first ? Tensor() : delta, weights.input_norm, normed);
  if (latent_attention_.has_value()) {
    latent_attention_->Forward(batch, weights.latent_attention, cache, normed, delta, trace);
  } else {
    attention_->Forward(batch, weights.attention, cache, normed, delta, trace);
  }
  AddNorm(batch, delta, weights.post_attention_norm, normed);
  ffn_.Forward(batch, weights.ffn, normed, delta, trace);
}

void Layers::End(const BatchView& batch, const Tensor& weight, const Tensor& out) const {
  AddNorm(batch, delta_.Rows(0, out.shape[0]), weight, out);
}

void Layers::AddNorm(const BatchView& batch, const Tensor& delta, const Tensor& weight,
                     const Tensor& out) const {
  device_.ops().add_rms_norm(device_, {.batch = batch,
                                       .delta = delta,
                                       .residual = residual_.Rows(0, out.shape[0]),
                                       .weight = weight,
                                       .epsilon = static_cast<float>(config_.rms_norm_eps),
                                       .out = out,
                                       .quantized = {}});
}

void RunHead(Device& device, const BatchView& batch, const Tensor& normed, const Weight& head,
             const Tensor& rows, const Tensor& logits) {
  device.ops().gather_logit_rows(device, {.batch = batch, .in = normed, .out = rows});
  device.ops().linear(device, {.batch = batch,
                               .in = {rows, {}},
                               .weight = head,
                               .bias = {},
                               .out = logits,
                               .per_logit_row = true});
}

}  // namespace glm::engine
