#include "engine/model/ffn.h"

#include <vector>

#include "absl/strings/str_cat.h"

namespace glm::engine {
namespace {

// The linears of gated MLPs, packed: of each MLP its gate rows, then its up rows; and its down
// rows.
WeightScaling PlanMlps(const std::vector<std::string>& names, int64_t width, int64_t hidden,
                       int64_t experts, DType dtype, WeightPlan* plan, Weight* gate_up,
                       Weight* down) {
  std::vector<LinearPart> gate_up_parts, down_parts;
  for (const std::string& name : names) {
    gate_up_parts.push_back({name + "gate_proj", width});
    gate_up_parts.push_back({name + "up_proj", width});
    down_parts.push_back({name + "down_proj", hidden});
  }
  const WeightScaling scaling =
      PlanLinear(gate_up_parts, hidden, LinearSplit::kOutputs, experts, dtype, plan, gate_up);
  const WeightScaling down_scaling =
      PlanLinear(down_parts, width, LinearSplit::kInputs, experts, dtype, plan, down);
  if (experts > 0 && scaling != down_scaling) {
    plan->Refuse(absl::InvalidArgumentError(
        absl::StrCat("tensors ", names[0], "down_proj.weight and ", names[0],
                     "gate_proj.weight are not quantised alike; accepted: all linears of the "
                     "experts alike")));
  }
  return scaling;
}

}  // namespace

void PlanFfn(const ModelConfig& config, DType dtype, const std::string& prefix, bool dense,
             WeightPlan* plan, FfnWeights* weights) {
  const std::string name = prefix + "mlp.";
  const int64_t hidden = config.hidden_size;
  if (dense) {
    const int64_t width = config.dense_width;
    PlanMlps({name}, width, hidden, 0, dtype, plan, &weights->gate_up, &weights->down);
    return;
  }
  const int64_t experts = config.experts + config.shared_experts;
  const int64_t width = config.expert_width;
  plan->AddWhole(&weights->router, Tensor(nullptr, dtype, {config.experts, hidden}),
                 name + "gate.weight");
  plan->AddWhole(&weights->correction_bias, Tensor(nullptr, DType::kF32, {config.experts}),
                 name + "gate.e_score_correction_bias");
  std::vector<std::string> names;
  for (int64_t expert = 0; expert < experts; ++expert) {
    names.push_back(expert < config.experts ? absl::StrCat(name, "experts.", expert, ".")
                                            : name + "shared_experts.");
  }
  PlanMlps(names, width, hidden, experts, dtype, plan, &weights->experts_gate_up,
           &weights->experts_down);
}

Ffn::Ffn(Device& device, const ModelConfig& config, DType dtype, const StepLimits& limits)
    : device_(device), config_(config) {
  const int64_t tokens = limits.tokens_max;
  if (config.dense_layers > 0) {
    gate_up_ = device.NewTensor(dtype, {tokens, 2 * int64_t{config.dense_width}});
    product_ = device.NewTensor(dtype, {tokens, config.dense_width});
    quantized_product_ = QuantizedRows(device, tokens, config.dense_width);
  }
  if (config.has_mixture()) {
    const int64_t choices = config.experts_per_token;
    routing_ = {.expert_ids = device.NewTensor(DType::kI32, {tokens, choices}),
                .expert_weights = device.NewTensor(DType::kF32, {tokens, choices}),
                .pair_order = device.NewTensor(DType::kI32, {tokens * choices}),
                .expert_starts = device.NewTensor(DType::kI32, {config.experts + 1})};
  }
}

int64_t Ffn::BufferBytes(const ModelConfig& config, DType dtype, const StepLimits& limits) {
  const int64_t tokens = limits.tokens_max;
  int64_t bytes = 0;
  if (config.dense_layers > 0) {
    bytes += tokens * 3 * config.dense_width * ByteSize(dtype) +
             QuantizedRows::Bytes(tokens, config.dense_width);
  }
  if (config.has_mixture()) {
    bytes += (tokens * 3 * config.experts_per_token + config.experts + 1) * ByteSize(DType::kI32);
  }
  return bytes;
}

void Ffn::Forward(const BatchView& batch, const FfnWeights& weights, const LinearInput& in,
                  const Tensor& out, Communicator* sum_over, const TraceScope& trace) const {
  if (weights.dense()) {
    Dense(batch, weights, in, out, sum_over, trace);
  } else {
    Mixture(batch, weights, in, out, sum_over, trace);
  }
}

void Ffn::Dense(const BatchView& batch, const FfnWeights& weights, const LinearInput& in,
                const Tensor& out, Communicator* sum_over, const TraceScope& trace) const {
  const OpTable& ops = device_.ops();
  const int64_t tokens = out.shape[0];
  const Tensor gate_up = gate_up_.Rows(0, tokens);
  const Tensor product = product_.Rows(0, tokens);
  const bool plain = weights.down.scales.empty();
  const Activation quantized = quantized_product_.For(weights.down, tokens, product.shape[1]);
  ops.linear(device_, {.batch = batch,
                       .in = in.For(weights.gate_up),
                       .weight = weights.gate_up,
                       .bias = {},
                       .out = gate_up});
  ops.silu_mul(device_, {.batch = batch,
                         .gate_up = gate_up,
                         .out = plain ? product : Tensor(),
                         .quantized = quantized});
  trace("product", plain ? product : quantized.values);
  ops.linear(device_, {.batch = batch,
                       .in = LinearInput(product, quantized).For(weights.down),
                       .weight = weights.down,
                       .bias = {},
                       .out = out,
                       .sum_over = sum_over});
}

void Ffn::Mixture(const BatchView& batch, const FfnWeights& weights, const LinearInput& in,
                  const Tensor& out, Communicator* sum_over, const TraceScope& trace) const {
  const OpTable& ops = device_.ops();
  const int64_t tokens = out.shape[0];
  const Routing routing = {
      .expert_ids = routing_.expert_ids.Rows(0, tokens),
      .expert_weights = routing_.expert_weights.Rows(0, tokens),
      .pair_order = routing_.pair_order.Rows(0, tokens * config_.experts_per_token),
      .expert_starts = routing_.expert_starts};
  ops.moe_route(device_, {.batch = batch,
                          .in = in.plain,
                          .gate = weights.router,
                          .correction_bias = weights.correction_bias,
                          .normalize = config_.norm_topk_prob,
                          .scaling = static_cast<float>(config_.routed_scaling_factor),
                          .out = routing});
  trace("expert_ids", routing.expert_ids);
  trace("expert_weights", routing.expert_weights);
  ops.moe_experts(device_, {.batch = batch,
                            .in = in.For(weights.experts_gate_up),
                            .routing = routing,
                            .gate_up = weights.experts_gate_up,
                            .down = weights.experts_down,
                            .shared_experts = config_.shared_experts,
                            .out = out,
                            .sum_over = sum_over});
}

}  // namespace glm::engine
