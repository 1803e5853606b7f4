// The mixture of experts: who computes what, and the computation grouped by expert.
#include <algorithm>
#include <cmath>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gemm.h"
#include "kernels/output_parts.h"

namespace glm::cpu {
namespace {

constexpr int64_t kGroup = 128;  // columns of h that share a scale

/// Chooses the k experts of one token; `scores` are its logits on entry, sigmoids on exit.
void ChooseExperts(const MoeRouteArgs& args, int64_t t, float* scores) {
  const int64_t experts = args.gate.shape[0];
  const int64_t k = args.out.expert_ids.shape[1];
  const float* bias = args.correction_bias.Data<float>();
  int32_t* ids = args.out.expert_ids.Row<int32_t>(t);
  float* weights = args.out.expert_weights.Row<float>(t);
  for (int64_t e = 0; e < experts; ++e) scores[e] = 1.0f / (1.0f + std::exp(-scores[e]));
  float total = 0;
  for (int64_t j = 0; j < k; ++j) {
    int64_t best = -1;
    for (int64_t e = 0; e < experts; ++e) {
      if (std::find(ids, ids + j, static_cast<int32_t>(e)) != ids + j) continue;
      if (best < 0 || scores[e] + bias[e] > scores[best] + bias[best]) best = e;
    }
    ids[j] = static_cast<int32_t>(best);
    weights[j] = scores[best];
    total += scores[best];
  }
  for (int64_t j = 0; j < k; ++j) {
    if (args.normalize) weights[j] /= total + 1e-20f;
    weights[j] *= args.scaling;
  }
}

/// Counting sort of the valid pairs by expert; pair numbers rise within an expert.
void OrderPairs(const Routing& routing, int64_t pairs) {
  const int32_t* ids = routing.expert_ids.Data<int32_t>();
  int32_t* starts = routing.expert_starts.Data<int32_t>();
  int32_t* order = routing.pair_order.Data<int32_t>();
  const int64_t experts = routing.expert_starts.shape[0] - 1;
  std::fill_n(starts, experts + 1, 0);
  for (int64_t pair = 0; pair < pairs; ++pair) ++starts[ids[pair] + 1];
  for (int64_t e = 0; e < experts; ++e) starts[e + 1] += starts[e];
  for (int64_t pair = 0; pair < pairs; ++pair) order[starts[ids[pair]]++] = pair;
  // Each start has moved to its expert's end, which is the next one's start.
  for (int64_t e = experts; e > 0; --e) starts[e] = starts[e - 1];
  starts[0] = 0;
}

void CheckRouting(const Routing& routing, int64_t tokens, int64_t experts, const char* name) {
  const int64_t k = routing.expert_ids.shape[1];
  CHECK(k >= 1 && k <= experts) << name << ": " << k << " of " << experts << " experts";
  CheckShape(routing.expert_ids, DType::kI32, {tokens, k}, name);
  CheckShape(routing.expert_weights, DType::kF32, {tokens, k}, name);
  CheckShape(routing.pair_order, DType::kI32, {tokens * k}, name);
  CheckShape(routing.expert_starts, DType::kI32, {experts + 1}, name);
  CHECK(routing.expert_ids.contiguous() && routing.expert_weights.contiguous()) << name;
}

/// Everything that the passes over the experts share. Rows of the scratch arrays are the sorted
/// pairs, then one row a token for the shared expert.
struct ExpertsRun {
  const MoeExpertsArgs& args;
  const Scratch& scratch;
  DType act;
  int64_t tokens;   // valid
  int64_t k;        // choices a token
  int64_t experts;  // E
  int64_t hidden;   // H
  int64_t width;    // M
  const float* in = nullptr;
  int64_t in_stride = 0;

  int64_t pairs() const { return tokens * k; }
  bool float8() const { return args.gate_up.values.dtype == DType::kF8E4M3; }
  int64_t scales_stride() const { return (width + kGroup - 1) / kGroup; }
  int64_t FirstRow(int64_t e) const {
    return e < experts ? args.routing.expert_starts.Data<int32_t>()[e] : pairs();
  }
  int64_t RowCount(int64_t e) const { return e < experts ? FirstRow(e + 1) - FirstRow(e) : tokens; }
};

Weight ExpertWeight(const Weight& weight, int64_t e) {
  return {weight.values.Slice(e), weight.scales.empty() ? Tensor() : weight.scales.Slice(e),
          weight.scale_column_offset};
}

MatrixProduct GateUpProduct(const ExpertsRun& run, int64_t e) {
  const bool shared = e == run.experts;
  MatrixProduct product;
  product.in = run.in;
  product.in_stride = run.in_stride;
  if (!shared) {
    product.in_order = run.args.routing.pair_order.Data<int32_t>() + run.FirstRow(e);
    product.in_divisor = run.k;
  }
  if (!run.args.in.scales.empty()) {
    product.in_scales = run.args.in.scales.Data<float>();
    product.in_scales_stride = run.args.in.scales.stride[0];
    product.in_scales_grouped = run.args.in.scales.rank == 2;
  }
  product.weight = ExpertWeight(run.args.gate_up, e);
  product.out_stride = 2 * run.width;
  product.out = run.scratch.gate_up + run.FirstRow(e) * product.out_stride;
  return product;
}

MatrixProduct DownProduct(const ExpertsRun& run, int64_t e) {
  const bool shared = e == run.experts;
  MatrixProduct product;
  product.in_stride = 2 * run.width;
  product.in = run.scratch.gate_up + run.FirstRow(e) * product.in_stride;
  if (run.float8()) {
    product.in_scales_stride = run.scales_stride();
    product.in_scales = run.scratch.expert_scales + run.FirstRow(e) * product.in_scales_stride;
    product.in_scales_grouped = true;
  }
  product.weight = ExpertWeight(run.args.down, e);
  product.out_stride = run.hidden;
  product.out = run.scratch.expert_out;
  if (shared) {
    product.out = run.scratch.expert_out + run.FirstRow(e) * run.hidden;
  } else {
    product.out_order = run.args.routing.pair_order.Data<int32_t>() + run.FirstRow(e);
  }
  return product;
}

/// Outputs first .. first + outputs - 1 of one product for every expert with rows, cut by outputs.
template <typename MakeProduct>
void RunExperts(Device& device, const ExpertsRun& run, int64_t first, int64_t outputs, int64_t k,
                const MakeProduct& make_product) {
  const int64_t experts_all = run.experts + run.args.shared_experts;
  const Cut cut = CutFor(std::max<int64_t>(1, run.pairs() / run.experts), k);
  const int64_t output_cuts = (outputs + cut.outputs - 1) / cut.outputs;
  ParallelFor(CpuDevice::Of(device).pool(), experts_all * output_cuts, 1, [&](int64_t i) {
    const int64_t e = i / output_cuts;
    if (run.RowCount(e) == 0) return;
    const int64_t begin = first + i % output_cuts * cut.outputs;
    ComputeRectangle(make_product(run, e), 0, run.RowCount(e), begin,
                     std::min(begin + cut.outputs, first + outputs));
  });
}

/// h of one row, over its gate values.
void ActivateRow(const ExpertsRun& run, int64_t row) {
  float* gate = run.scratch.gate_up + row * 2 * run.width;
  const float* up = gate + run.width;
  for (int64_t i = 0; i < run.width; ++i) {
    gate[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
    if (!run.float8() && run.act == DType::kBF16) gate[i] = ToFloat(ToBFloat16(gate[i]));
  }
  if (!run.float8()) return;
  float* scales = run.scratch.expert_scales + row * run.scales_stride();
  for (int64_t begin = 0; begin < run.width; begin += kGroup) {
    scales[begin / kGroup] = QuantizeGroup(gate + begin, std::min(kGroup, run.width - begin));
  }
}

/// Columns first .. first + count - 1 of a token.
void CombineToken(const ExpertsRun& run, int64_t t, int64_t first, int64_t count) {
  const float* weights = run.args.routing.expert_weights.Row<float>(t);
  const float* pairs = run.scratch.expert_out + t * run.k * run.hidden;
  const float* shared = run.scratch.expert_out + (run.pairs() + t) * run.hidden;
  WithActivationType(run.act, [&](auto type) {
    using T = decltype(type);
    T* out = run.args.out.Row<T>(t);
    for (int64_t i = first; i < first + count; ++i) {
      float sum = 0;
      for (int64_t j = 0; j < run.k; ++j) sum += weights[j] * pairs[j * run.hidden + i];
      if (run.args.shared_experts > 0) sum += shared[i];
      out[i] = FromFloat<T>(sum);
    }
  });
}

}  // namespace

void MoeRoute(Device& device, const MoeRouteArgs& args) {
  const int64_t rows = args.in.shape[0];
  const int64_t experts = args.gate.shape[0];
  const int64_t hidden = args.in.shape[1];
  CheckShape(args.in, args.in.dtype, {rows, hidden}, "moe_route.in");
  CheckShape(args.gate, args.in.dtype, {experts, hidden}, "moe_route.gate");
  WithActivationType(args.in.dtype, [](auto) {});
  CheckShape(args.correction_bias, DType::kF32, {experts}, "moe_route.correction_bias");
  CheckRouting(args.out, rows, experts, "moe_route.out");
  CpuDevice& cpu = CpuDevice::Of(device);
  const int64_t tokens = ValidTokens(args.batch, rows);
  CHECK_LE(tokens * experts, cpu.scratch().route_floats)
      << "the step is larger than PlanScratch was told";

  MatrixProduct product;
  product.in = FloatRows(device, args.in, tokens, &product.in_stride);
  product.weight.values = args.gate;
  product.out = cpu.scratch().route_logits;
  product.out_stride = experts;
  ParallelFor(cpu.pool(), tokens, std::max<int64_t>(1, 65536 / (experts * hidden)), [&](int64_t t) {
    ComputeRectangle(product, t, t + 1, 0, experts);
    ChooseExperts(args, t, cpu.scratch().route_logits + t * experts);
  });
  OrderPairs(args.out, tokens * args.out.expert_ids.shape[1]);
}

void MoeExperts(Device& device, const MoeExpertsArgs& args) {
  const int64_t rows = args.out.shape[0];
  const int64_t experts = args.routing.expert_starts.shape[0] - 1;
  const int64_t experts_all = experts + args.shared_experts;
  const int64_t hidden = args.in.values.shape[1];
  const int64_t width = args.down.values.shape[2];
  CHECK(args.shared_experts == 0 || args.shared_experts == 1) << args.shared_experts;
  CheckShape(args.in.values, args.in.values.dtype, {rows, hidden}, "moe_experts.in");
  CheckRouting(args.routing, rows, experts, "moe_experts.routing");
  CheckWeight(args.gate_up, experts_all, 2 * width, hidden, "moe_experts.gate_up");
  CheckWeight(args.down, experts_all, hidden, width, "moe_experts.down");
  CHECK_EQ(args.gate_up.scales.rank, args.down.scales.rank) << "moe_experts: one kind of scales";
  CheckActivation(args.in, args.gate_up, "moe_experts.in");
  CheckShape(args.out, args.out.dtype, {rows, hidden}, "moe_experts.out");

  CpuDevice& cpu = CpuDevice::Of(device);
  const Scratch& scratch = cpu.scratch();
  ExpertsRun run{.args = args,
                 .scratch = scratch,
                 .act = args.out.dtype,
                 .tokens = ValidTokens(args.batch, rows),
                 .k = args.routing.expert_ids.shape[1],
                 .experts = experts,
                 .hidden = hidden,
                 .width = width};
  const int64_t rows_all = run.pairs() + args.shared_experts * run.tokens;
  CHECK(rows_all <= scratch.pair_rows && width <= scratch.expert_width && hidden <= scratch.hidden)
      << "the step is larger than PlanScratch was told: " << rows_all << " pairs of "
      << scratch.pair_rows;
  run.in = FloatRows(device, args.in.values, run.tokens, &run.in_stride);

  RunExperts(device, run, 0, 2 * width, hidden, GateUpProduct);
  ParallelFor(cpu.pool(), rows_all, std::max<int64_t>(1, 4096 / width),
              [&](int64_t row) { ActivateRow(run, row); });
  const auto compute = [&](int64_t first, int64_t count) {
    RunExperts(device, run, first, count, width, DownProduct);
    ParallelFor(cpu.pool(), run.tokens, std::max<int64_t>(1, 8192 / (count * (run.k + 1))),
                [&](int64_t t) { CombineToken(run, t, first, count); });
  };
  if (args.sum_over == nullptr) return compute(0, hidden);
  SumInParts(device, *args.sum_over, args.out, compute);
}

}  // namespace glm::cpu
