#include "engine/model/ffn.h"

#include "absl/strings/str_cat.h"

namespace glm::engine {
namespace {

// The three tensors of one gated MLP named `name`, into rows of packed weights.
void FillMlp(const std::string& name, int64_t width, int64_t hidden, int64_t index, int32_t gate_up,
             int32_t down, WeightPlan* plan) {
  plan->Fill(gate_up, index * 2 * width, name + "gate_proj.weight", {width, hidden});
  plan->Fill(gate_up, index * 2 * width + width, name + "up_proj.weight", {width, hidden});
  plan->Fill(down, index * hidden, name + "down_proj.weight", {hidden, width});
}

}  // namespace

void PlanFfn(const ModelConfig& config, DType dtype, const std::string& prefix, bool dense,
             WeightPlan* plan, FfnWeights* weights) {
  const std::string name = prefix + "mlp.";
  const int64_t hidden = config.hidden_size;
  if (dense) {
    const int64_t width = config.dense_width;
    const int32_t gate_up =
        plan->Add(&weights->gate_up.values, Tensor(nullptr, dtype, {2 * width, hidden}));
    const int32_t down = plan->Add(&weights->down.values, Tensor(nullptr, dtype, {hidden, width}));
    FillMlp(name, width, hidden, 0, gate_up, down, plan);
    return;
  }
  const int64_t experts = config.experts + config.shared_experts;
  const int64_t width = config.expert_width;
  plan->AddWhole(&weights->router, Tensor(nullptr, dtype, {config.experts, hidden}),
                 name + "gate.weight");
  plan->AddWhole(&weights->correction_bias, Tensor(nullptr, DType::kF32, {config.experts}),
                 name + "gate.e_score_correction_bias");
  const int32_t gate_up = plan->Add(&weights->experts_gate_up.values,
                                    Tensor(nullptr, dtype, {experts, 2 * width, hidden}));
  const int32_t down =
      plan->Add(&weights->experts_down.values, Tensor(nullptr, dtype, {experts, hidden, width}));
  for (int64_t expert = 0; expert < experts; ++expert) {
    const std::string expert_name = expert < config.experts
                                        ? absl::StrCat(name, "experts.", expert, ".")
                                        : name + "shared_experts.";
    FillMlp(expert_name, width, hidden, expert, gate_up, down, plan);
  }
}

Ffn::Ffn(Device& device, const ModelConfig& config, DType dtype, const StepLimits& limits)
    : device_(device), config_(config) {
  const int64_t tokens = limits.tokens_max;
  if (config.dense_layers > 0) {
    gate_up_ = device.NewTensor(dtype, {tokens, 2 * int64_t{config.dense_width}});
    product_ = device.NewTensor(dtype, {tokens, config.dense_width});
  }
  if (config.has_mixture()) {
    const int64_t choices = config.experts_per_token;
    routing_ = {.expert_ids = device.NewTensor(DType::kI32, {tokens, choices}),
                .expert_weights = device.NewTensor(DType::kF32, {tokens, choices}),
                .pair_order = device.NewTensor(DType::kI32, {tokens * choices}),
                .expert_starts = device.NewTensor(DType::kI32, {config.experts + 1})};
  }
}

void Ffn::Forward(const BatchView& batch, const FfnWeights& weights, const Tensor& in,
                  const Tensor& out, const TraceScope& trace) const {
  if (weights.dense()) {
    Dense(batch, weights, in, out, trace);
  } else {
    Mixture(batch, weights, in, out, trace);
  }
  trace("ffn", out);
}

void Ffn::Dense(const BatchView& batch, const FfnWeights& weights, const Tensor& in,
                const Tensor& out, const TraceScope& trace) const {
  const OpTable& ops = device_.ops();
  const Tensor gate_up = gate_up_.Rows(0, in.shape[0]);
  const Tensor product = product_.Rows(0, in.shape[0]);
  ops.linear(
      device_,
      {.batch = batch, .in = {in, {}}, .weight = weights.gate_up, .bias = {}, .out = gate_up});
  ops.silu_mul(device_, {.batch = batch, .gate_up = gate_up, .out = product, .quantized = {}});
  trace("product", product);
  ops.linear(device_,
             {.batch = batch, .in = {product, {}}, .weight = weights.down, .bias = {}, .out = out});
}

void Ffn::Mixture(const BatchView& batch, const FfnWeights& weights, const Tensor& in,
                  const Tensor& out, const TraceScope& trace) const {
  const OpTable& ops = device_.ops();
  const int64_t tokens = in.shape[0];
  const Routing routing = {
      .expert_ids = routing_.expert_ids.Rows(0, tokens),
      .expert_weights = routing_.expert_weights.Rows(0, tokens),
      .pair_order = routing_.pair_order.Rows(0, tokens * config_.experts_per_token),
      .expert_starts = routing_.expert_starts};
  ops.moe_route(device_, {.batch = batch,
                          .in = in,
                          .gate = weights.router,
                          .correction_bias = weights.correction_bias,
                          .normalize = config_.norm_topk_prob,
                          .scaling = static_cast<float>(config_.routed_scaling_factor),
                          .out = routing});
  trace("expert_ids", routing.expert_ids);
  trace("expert_weights", routing.expert_weights);
  ops.moe_experts(device_, {.batch = batch,
                            .in = {in, {}},
                            .routing = routing,
                            .gate_up = weights.experts_gate_up,
                            .down = weights.experts_down,
                            .shared_experts = config_.shared_experts,
                            .out = out});
}

}  // namespace glm::engine
