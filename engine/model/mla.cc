#include "engine/model/mla.h"

#include <cmath>

#include "engine/model/attention.h"

namespace glm::engine {

void PlanLatentAttention(const ModelConfig& config, DType dtype, const std::string& prefix,
                         WeightPlan* plan, LatentAttentionWeights* weights) {
  const std::string name = prefix + "self_attn.";
  const int64_t hidden = config.hidden_size;
  const int64_t heads = config.query_heads;
  const int64_t query_latent = config.query_latent;
  const int64_t kv_latent = config.kv_latent;
  const int64_t cell = config.cell_size();
  const int64_t up_rows = config.head_size - config.rope_size + config.value_size;
  const int64_t out_columns = heads * config.value_size;

  const int32_t down =
      plan->Add(&weights->down.values, Tensor(nullptr, dtype, {query_latent + cell, hidden}));
  plan->Fill(down, 0, name + "q_a_proj.weight", {query_latent, hidden});
  plan->Fill(down, query_latent, name + "kv_a_proj_with_mqa.weight", {cell, hidden});
  plan->AddWhole(&weights->query_norm, Tensor(nullptr, dtype, {query_latent}),
                 name + "q_a_layernorm.weight");
  plan->AddWhole(&weights->query_up.values,
                 Tensor(nullptr, dtype, {heads * config.head_size, query_latent}),
                 name + "q_b_proj.weight");
  plan->AddWhole(&weights->kv_norm, Tensor(nullptr, dtype, {kv_latent}),
                 name + "kv_a_layernorm.weight");
  const int32_t kv_up =
      plan->Add(&weights->kv_up, Tensor(nullptr, dtype, {heads, up_rows, kv_latent}));
  plan->Fill(kv_up, 0, name + "kv_b_proj.weight", {heads * up_rows, kv_latent});
  plan->AddWhole(&weights->out.values, Tensor(nullptr, dtype, {hidden, out_columns}),
                 name + "o_proj.weight");
}

LatentAttention::LatentAttention(Device& device, const ModelConfig& config, DType dtype,
                                 const StepLimits& limits)
    : device_(device), config_(config) {
  const int64_t tokens = limits.tokens_max;
  const int64_t heads = config.query_heads;
  rope_ = NewRopeTensor(device, config);
  latents_ = device.NewTensor(dtype, {tokens, config.query_latent + config.cell_size()});
  query_latent_ = device.NewTensor(dtype, {tokens, config.query_latent});
  queries_ = device.NewTensor(dtype, {tokens, heads * config.head_size});
  heads_ = device.NewTensor(dtype, {tokens, heads * config.value_size});
}

void LatentAttention::Forward(const BatchView& batch, const LatentAttentionWeights& weights,
                              const KvLayer& cache, const Tensor& in, const Tensor& out,
                              const TraceScope& trace) const {
  const OpTable& ops = device_.ops();
  const int64_t tokens = in.shape[0];
  const Tensor latents = latents_.Rows(0, tokens);
  const Tensor query_latent = query_latent_.Rows(0, tokens);
  const Tensor queries = queries_.Rows(0, tokens);
  const Tensor heads = heads_.Rows(0, tokens);
  const float epsilon = static_cast<float>(config_.rms_norm_eps);

  ops.linear(device_,
             {.batch = batch, .in = {in, {}}, .weight = weights.down, .bias = {}, .out = latents});
  trace("latents", latents);
  ops.add_rms_norm(device_, {.batch = batch,
                             .delta = latents.Columns(0, config_.query_latent),
                             .residual = {},
                             .weight = weights.query_norm,
                             .epsilon = epsilon,
                             .out = query_latent,
                             .quantized = {}});
  ops.linear(device_, {.batch = batch,
                       .in = {query_latent, {}},
                       .weight = weights.query_up,
                       .bias = {},
                       .out = queries});
  ops.mla_rope_store(device_, {.batch = batch,
                               .queries = queries,
                               .latent = latents.Columns(config_.query_latent, config_.cell_size()),
                               .latent_norm = weights.kv_norm,
                               .epsilon = epsilon,
                               .rope = rope_,
                               .query_heads = config_.query_heads,
                               .cache = cache});
  trace("queries", queries);
  ops.mla_attention(device_, {.batch = batch,
                              .queries = queries,
                              .cache = cache,
                              .kv_up = weights.kv_up,
                              .scale = 1.0f / std::sqrt(static_cast<float>(config_.head_size)),
                              .out = heads,
                              .quantized = {}});
  trace("heads", heads);
  ops.linear(device_,
             {.batch = batch, .in = {heads, {}}, .weight = weights.out, .bias = {}, .out = out});
  trace("attention", out);
}

}  // namespace glm::engine
