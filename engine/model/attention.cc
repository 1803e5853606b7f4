#include "engine/model/attention.h"

#include <cmath>
#include <vector>

namespace glm::engine {

std::vector<float> RopeTable(double theta, int32_t rope_size, int64_t positions) {
  const int32_t pairs = rope_size / 2;
  std::vector<float> frequencies(pairs);
  for (int32_t i = 0; i < pairs; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(rope_size);
    frequencies[i] = 1.0f / std::pow(static_cast<float>(theta), exponent);
  }
  std::vector<float> table(positions * rope_size);
  for (int64_t position = 0; position < positions; ++position) {
    float* row = table.data() + position * rope_size;
    for (int32_t i = 0; i < pairs; ++i) {
      const float angle = static_cast<float>(position) * frequencies[i];
      row[i] = std::cos(angle);
      row[pairs + i] = std::sin(angle);
    }
  }
  return table;
}

Tensor NewRopeTensor(Device& device, const ModelConfig& config) {
  const std::vector<float> table =
      RopeTable(config.rope_theta, config.rope_size, config.positions_max);
  const Tensor rope = device.NewTensor(DType::kF32, {config.positions_max, config.rope_size});
  device.CopyToDevice(rope.data, table.data(), rope.bytes());
  device.Synchronize();  // the table on the host goes away
  return rope;
}

void PlanAttention(const ModelConfig& config, DType dtype, const std::string& prefix,
                   WeightPlan* plan, AttentionWeights* weights) {
  const std::string name = prefix + "self_attn.";
  const int64_t hidden = config.hidden_size;
  const int64_t query_rows = int64_t{config.query_heads} * config.head_size;
  const int64_t kv_rows = int64_t{config.kv_heads} * config.head_size;
  const int64_t rows = query_rows + 2 * kv_rows;

  const int32_t qkv = plan->Add(&weights->qkv.values, Tensor(nullptr, dtype, {rows, hidden}));
  plan->Fill(qkv, 0, name + "q_proj.weight", {query_rows, hidden});
  plan->Fill(qkv, query_rows, name + "k_proj.weight", {kv_rows, hidden});
  plan->Fill(qkv, query_rows + kv_rows, name + "v_proj.weight", {kv_rows, hidden});
  if (config.attention_bias) {
    const int32_t bias = plan->Add(&weights->qkv_bias, Tensor(nullptr, dtype, {rows}));
    plan->Fill(bias, 0, name + "q_proj.bias", {query_rows});
    plan->Fill(bias, query_rows, name + "k_proj.bias", {kv_rows});
    plan->Fill(bias, query_rows + kv_rows, name + "v_proj.bias", {kv_rows});
  }
  if (config.use_qk_norm) {
    const Tensor norm(nullptr, dtype, {config.head_size});
    plan->AddWhole(&weights->q_norm, norm, name + "q_norm.weight");
    plan->AddWhole(&weights->k_norm, norm, name + "k_norm.weight");
  }
  plan->AddWhole(&weights->out.values, Tensor(nullptr, dtype, {hidden, query_rows}),
                 name + "o_proj.weight");
}

Attention::Attention(Device& device, const ModelConfig& config, DType dtype,
                     const StepLimits& limits)
    : device_(device), config_(config) {
  const int64_t query_width = int64_t{config.query_heads} * config.head_size;
  const int64_t kv_width = int64_t{config.kv_heads} * config.head_size;
  rope_ = NewRopeTensor(device, config);
  qkv_ = device.NewTensor(dtype, {limits.tokens_max, query_width + 2 * kv_width});
  heads_ = device.NewTensor(dtype, {limits.tokens_max, query_width});
}

void Attention::Forward(const BatchView& batch, const AttentionWeights& weights,
                        const KvLayer& cache, const Tensor& in, const Tensor& out,
                        const TraceScope& trace) const {
  const OpTable& ops = device_.ops();
  const int64_t tokens = in.shape[0];
  const Tensor qkv = qkv_.Rows(0, tokens);
  const Tensor heads = heads_.Rows(0, tokens);
  const Tensor queries = qkv.Columns(0, heads.shape[1]);
  const float epsilon = static_cast<float>(config_.rms_norm_eps);

  ops.linear(device_, {.batch = batch,
                       .in = {in, {}},
                       .weight = weights.qkv,
                       .bias = weights.qkv_bias,
                       .out = qkv});
  trace("qkv", qkv);
  ops.norm_rope_store(device_, {.batch = batch,
                                .qkv = qkv,
                                .q_norm = weights.q_norm,
                                .k_norm = weights.k_norm,
                                .epsilon = epsilon,
                                .rope = rope_,
                                .query_heads = config_.query_heads,
                                .kv_heads = config_.kv_heads,
                                .cache = cache});
  trace("queries", queries);
  ops.attention(device_, {.batch = batch,
                          .queries = queries,
                          .cache = cache,
                          .scale = 1.0f / std::sqrt(static_cast<float>(config_.head_size)),
                          .out = heads,
                          .quantized = {}});
  trace("heads", heads);
  ops.linear(device_,
             {.batch = batch, .in = {heads, {}}, .weight = weights.out, .bias = {}, .out = out});
  trace("attention", out);
}

}  // namespace glm::engine
