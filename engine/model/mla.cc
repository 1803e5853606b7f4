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

  // The latents are small and every rank wants them whole; heads are shared out.
  PlanLinear({{name + "q_a_proj", query_latent}, {name + "kv_a_proj_with_mqa", cell}}, hidden,
             LinearSplit::kNone, 0, dtype, plan, &weights->down);
  plan->AddWhole(&weights->query_norm, Tensor(nullptr, dtype, {query_latent}),
                 name + "q_a_layernorm.weight");
  PlanLinear({{name + "q_b_proj", heads * config.head_size}}, query_latent, LinearSplit::kOutputs,
             0, dtype, plan, &weights->query_up);
  plan->AddWhole(&weights->kv_norm, Tensor(nullptr, dtype, {kv_latent}),
                 name + "kv_a_layernorm.weight");
  const Range up = plan->terms().slice.Of(heads * up_rows);
  const int32_t kv_up =
      plan->Add(&weights->kv_up, Tensor(nullptr, dtype, {up.count / up_rows, up_rows, kv_latent}));
  FillWide({name + "kv_b_proj", heads * up_rows}, kv_latent, up, kv_up, plan);
  PlanLinear({{name + "o_proj", hidden}}, out_columns, LinearSplit::kInputs, 0, dtype, plan,
             &weights->out);
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
  logit_row_queries_ = device.NewTensor(dtype, {limits.logit_rows_max, heads * config.head_size});
  quantized_query_latent_ = QuantizedRows(device, tokens, config.query_latent);
  quantized_heads_ = QuantizedRows(device, tokens, heads * config.value_size);
}

int64_t LatentAttention::BufferBytes(const ModelConfig& config, DType dtype,
                                     const StepLimits& limits) {
  const int64_t tokens = limits.tokens_max;
  const int64_t heads = config.query_heads;
  return int64_t{config.positions_max} * config.rope_size * ByteSize(DType::kF32) +
         tokens *
             (2 * config.query_latent + config.cell_size() +
              heads * (config.head_size + config.value_size)) *
             ByteSize(dtype) +
         limits.logit_rows_max * heads * config.head_size * ByteSize(dtype) +
         QuantizedRows::Bytes(tokens, config.query_latent) +
         QuantizedRows::Bytes(tokens, heads * config.value_size);
}

void LatentAttention::Forward(const BatchView& batch, const BatchView* logit_rows,
                              const LatentAttentionWeights& weights, const KvLayer& cache,
                              const LinearInput& in, const Tensor& out, Communicator* sum_over,
                              const TraceScope& trace) const {
  const OpTable& ops = device_.ops();
  const BatchView& behind = logit_rows != nullptr ? *logit_rows : batch;
  const int64_t tokens = batch.token_ids.shape[0];
  const int64_t rows = out.shape[0];
  const Tensor latents = latents_.Rows(0, tokens);
  const Tensor query_latent = query_latent_.Rows(0, tokens);
  Tensor queries = queries_.Rows(0, tokens);
  const Tensor heads = heads_.Rows(0, rows);
  const float epsilon = static_cast<float>(config_.rms_norm_eps);

  ops.linear(device_, {.batch = batch,
                       .in = in.For(weights.down),
                       .weight = weights.down,
                       .bias = {},
                       .out = latents});
  trace("latents", latents);
  const bool plain_query = weights.query_up.scales.empty();
  const Activation quantized_query =
      quantized_query_latent_.For(weights.query_up, tokens, config_.query_latent);
  ops.add_rms_norm(device_, {.batch = batch,
                             .delta = latents.Columns(0, config_.query_latent),
                             .residual = {},
                             .weight = weights.query_norm,
                             .epsilon = epsilon,
                             .out = plain_query ? query_latent : Tensor(),
                             .quantized = quantized_query});
  ops.linear(device_, {.batch = batch,
                       .in = LinearInput(query_latent, quantized_query).For(weights.query_up),
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
  if (logit_rows != nullptr) {
    const Tensor gathered = logit_row_queries_.Rows(0, rows);
    ops.gather_logit_rows(device_, {.batch = batch, .in = queries, .out = gathered});
    queries = gathered;
  }
  const bool plain = weights.out.scales.empty();
  const Activation quantized = quantized_heads_.For(weights.out, rows, heads.shape[1]);
  ops.mla_attention(device_, {.batch = behind,
                              .queries = queries,
                              .cache = cache,
                              .kv_up = weights.kv_up,
                              .scale = 1.0f / std::sqrt(static_cast<float>(config_.head_size)),
                              .out = plain ? heads : Tensor(),
                              .quantized = quantized});
  trace("heads", plain ? heads : quantized.values);
  ops.linear(device_, {.batch = behind,
                       .in = LinearInput(heads, quantized).For(weights.out),
                       .weight = weights.out,
                       .bias = {},
                       .out = out,
                       .sum_over = sum_over});
}

}  // namespace glm::engine
