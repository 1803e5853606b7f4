#include "engine/model/attention.h"

#include <cmath>
#include <vector>

namespace glm::engine {
namespace {

// The biases of a packed linear, one after the other, each cut as the linear's rows are.
void PlanBias(const std::vector<LinearPart>& parts, DType dtype, WeightPlan* plan, Tensor* bias) {
  const RankSlice& slice = plan->terms().slice;
  int64_t rows = 0;
  for (const LinearPart& part : parts) rows += slice.Of(part.rows).count;
  const int32_t weight = plan->Add(bias, Tensor(nullptr, dtype, {rows}));
  int64_t row = 0;
  for (const LinearPart& part : parts) {
    const Range share = slice.Of(part.rows);
    plan->Fill({.name = part.name + ".bias",
                .shape = {part.rows},
                .rows = share,
                .columns = {0, 1},
                .weight = weight,
                .weight_row = row});
    row += share.count;
  }
}

}  // namespace

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
  const LinearPart q{name + "q_proj", query_rows};
  const LinearPart k{name + "k_proj", kv_rows};
  const LinearPart v{name + "v_proj", kv_rows};
  PlanLinear({q, k, v}, hidden, LinearSplit::kOutputs, 0, dtype, plan, &weights->qkv);
  if (config.attention_bias) PlanBias({q, k, v}, dtype, plan, &weights->qkv_bias);
  if (config.use_qk_norm) {
    const Tensor norm(nullptr, dtype, {config.head_size});
    plan->AddWhole(&weights->q_norm, norm, name + "q_norm.weight");
    plan->AddWhole(&weights->k_norm, norm, name + "k_norm.weight");
  }
  PlanLinear({{name + "o_proj", hidden}}, query_rows, LinearSplit::kInputs, 0, dtype, plan,
             &weights->out);
}

Attention::Attention(Device& device, const ModelConfig& config, DType dtype,
                     const StepLimits& limits)
    : device_(device), config_(config) {
  const int64_t query_width = int64_t{config.query_heads} * config.head_size;
  const int64_t kv_width = int64_t{config.kv_heads} * config.head_size;
  rope_ = NewRopeTensor(device, config);
  qkv_ = device.NewTensor(dtype, {limits.tokens_max, query_width + 2 * kv_width});
  heads_ = device.NewTensor(dtype, {limits.tokens_max, query_width});
  logit_row_queries_ = device.NewTensor(dtype, {limits.logit_rows_max, query_width});
  quantized_heads_ = QuantizedRows(device, limits.tokens_max, query_width);
}

int64_t Attention::BufferBytes(const ModelConfig& config, DType dtype, const StepLimits& limits) {
  const int64_t query_width = int64_t{config.query_heads} * config.head_size;
  const int64_t kv_width = int64_t{config.kv_heads} * config.head_size;
  return int64_t{config.positions_max} * config.rope_size * ByteSize(DType::kF32) +
         limits.tokens_max * 2 * (query_width + kv_width) * ByteSize(dtype) +
         limits.logit_rows_max * query_width * ByteSize(dtype) +
         QuantizedRows::Bytes(limits.tokens_max, query_width);
}

void Attention::Forward(const BatchView& batch, const BatchView* logit_rows,
                        const AttentionWeights& weights, const KvLayer& cache,
                        const LinearInput& in, const Tensor& out, Communicator* sum_over,
                        const TraceScope& trace) const {
  const OpTable& ops = device_.ops();
  const BatchView& behind = logit_rows != nullptr ? *logit_rows : batch;
  const int64_t rows = out.shape[0];
  const Tensor qkv = qkv_.Rows(0, batch.token_ids.shape[0]);
  const Tensor heads = heads_.Rows(0, rows);
  Tensor queries = qkv.Columns(0, heads.shape[1]);
  const float epsilon = static_cast<float>(config_.rms_norm_eps);

  ops.linear(device_, {.batch = batch,
                       .in = in.For(weights.qkv),
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
  if (logit_rows != nullptr) {
    const Tensor gathered = logit_row_queries_.Rows(0, rows);
    ops.gather_logit_rows(device_, {.batch = batch, .in = queries, .out = gathered});
    queries = gathered;
  }
  const bool plain = weights.out.scales.empty();
  const Activation quantized = quantized_heads_.For(weights.out, rows, heads.shape[1]);
  ops.attention(device_, {.batch = behind,
                          .queries = queries,
                          .cache = cache,
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
