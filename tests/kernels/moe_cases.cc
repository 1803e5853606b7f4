// Cases of moe_route and moe_experts.
#include <algorithm>
#include <cmath>
#include <memory>

#include "tests/kernels/case_parts.h"

namespace glm::test {
namespace {

constexpr DType kActs[] = {DType::kF32, DType::kBF16};
constexpr int64_t kGroup = 128;

int64_t GroupsOf(int64_t columns) { return (columns + kGroup - 1) / kGroup; }

struct MoeShape {
  int32_t tokens;
  int64_t hidden;
  int64_t experts;  // routed
  int64_t choices;  // k
  int64_t width;    // M
  int64_t shared;   // s

  std::string Text() const {
    return std::to_string(tokens) + "x" + std::to_string(hidden) + " top " +
           std::to_string(choices) + " of " + std::to_string(experts) + "+" +
           std::to_string(shared) + "x" + std::to_string(width);
  }
  StepLimits Limits(int32_t padding) const {
    StepLimits limits;
    limits.tokens_max = tokens + padding;
    limits.sequences_max = 1;
    limits.logit_rows_max = 1;
    limits.hidden = hidden;
    limits.experts = experts + shared;
    limits.experts_per_token = choices + shared;
    limits.expert_width = width;
    return limits;
  }
};

Routing NewRouting(Device& device, int64_t rows, int64_t experts, int64_t k) {
  return {HostTensor(DType::kI32, {rows, k}).Upload(device),
          HostTensor(DType::kF32, {rows, k}).Upload(device),
          HostTensor(DType::kI32, {rows * k}).Upload(device),
          HostTensor(DType::kI32, {experts + 1}).Upload(device)};
}

/// pair_order and expert_starts that belong to `ids`.
void OrderOf(const std::vector<int32_t>& ids, int64_t experts, std::vector<int32_t>* order,
             std::vector<int32_t>* starts) {
  *starts = {0};
  for (int32_t e = 0; e < experts; ++e) {
    for (size_t pair = 0; pair < ids.size(); ++pair) {
      if (ids[pair] == e) order->push_back(static_cast<int32_t>(pair));
    }
    starts->push_back(static_cast<int32_t>(order->size()));
  }
}

// ---- moe_route ----

enum class Gates : uint8_t { kRandom, kOneWins, kTies };

OpCase MoeRouteCase(DType act, const MoeShape& shape, Gates gates, bool normalize) {
  const char* const gate_names[] = {"random", "one wins", "ties"};
  const std::string name = std::string("moe_route ") + Name(act) + " " + shape.Text() + " " +
                           gate_names[static_cast<int>(gates)] + (normalize ? " normalized" : "");
  constexpr int32_t kPadding = 2;
  const auto run = [=](Device& device) {
    Random random(SeedOf(name));
    const int64_t rows = shape.tokens + kPadding;
    const int64_t k = shape.choices;
    const CaseBatch batch(random, BatchSpec::OneSequence(shape.tokens, kPadding));
    const HostTensor in(random, act, {rows, shape.hidden}, 1, shape.tokens);
    HostTensor gate(random, act, {shape.experts, shape.hidden}, 0.5);
    HostTensor bias(random, DType::kF32, {shape.experts}, 0.1);
    if (gates == Gates::kOneWins) bias.Set(shape.experts / 2, 10);
    if (gates == Gates::kTies) {
      // Experts 2i and 2i + 1 are twins.
      for (int64_t i = 0; i < gate.elements(); ++i) {
        const int64_t e = i / shape.hidden;
        gate.Set(i, gate.At((e & ~1) * shape.hidden + i % shape.hidden));
      }
      for (int64_t e = 0; e < shape.experts; ++e) bias.Set(e, bias.At(e & ~1));
    }
    const BatchView view = batch.Upload(device);
    const MoeRouteArgs args{.batch = view,
                            .in = in.Upload(device),
                            .gate = gate.Upload(device),
                            .correction_bias = bias.Upload(device),
                            .normalize = normalize,
                            .scaling = 2.5f,
                            .out = NewRouting(device, rows, shape.experts, k)};
    device.ops().moe_route(device, args);

    Verdict verdict;
    std::vector<double> want_weights;
    const std::vector<int32_t> ids = DownloadInts(device, args.out.expert_ids, shape.tokens * k);
    std::vector<int32_t> want_ids;
    for (int64_t t = 0; t < shape.tokens; ++t) {
      std::vector<double> scores;
      std::vector<int32_t> ranking;
      for (int32_t e = 0; e < shape.experts; ++e) {
        double logit = 0;
        for (int64_t i = 0; i < shape.hidden; ++i) {
          logit += gate.At(e * shape.hidden + i) * in.At(t * shape.hidden + i);
        }
        scores.push_back(1 / (1 + std::exp(-logit)));
        ranking.push_back(e);
      }
      // Sums in float leave differences below 1e-6 open: there the op's own order is taken.
      const auto rank_in_op = [&](int32_t e) {
        return std::find(ids.begin() + t * k, ids.begin() + (t + 1) * k, e) - ids.begin();
      };
      std::stable_sort(ranking.begin(), ranking.end(), [&](int32_t a, int32_t b) {
        const double difference = (scores[a] + bias.At(a)) - (scores[b] + bias.At(b));
        if (gates != Gates::kTies && std::abs(difference) < 1e-6) {
          return rank_in_op(a) < rank_in_op(b);
        }
        return difference > 0;
      });
      double total = 0;
      for (int64_t j = 0; j < k; ++j) total += scores[ranking[j]];
      for (int64_t j = 0; j < k; ++j) {
        want_ids.push_back(ranking[j]);
        want_weights.push_back(scores[ranking[j]] / (normalize ? total + 1e-20 : 1) * 2.5);
      }
    }
    verdict.Equal("expert_ids", ids, want_ids);
    verdict.Near(device, "expert_weights", args.out.expert_weights, shape.tokens, want_weights,
                 ToleranceOf(DType::kF32, 1));
    std::vector<int32_t> want_order;
    std::vector<int32_t> want_starts;
    OrderOf(want_ids, shape.experts, &want_order, &want_starts);
    verdict.Equal("pair_order", DownloadInts(device, args.out.pair_order, shape.tokens * k),
                  want_order);
    verdict.Equal("expert_starts", DownloadInts(device, args.out.expert_starts, shape.experts + 1),
                  want_starts);
    return verdict.Finish();
  };
  return {name, act, shape.Limits(kPadding), run};
}

// ---- moe_experts ----

enum class Scales : uint8_t { kNone, kChannel, kBlock };

/// A weight of all experts, [E, N, K], and what it stands for.
struct ExpertsWeight {
  HostTensor values;
  HostTensor scales;
  Scales kind;

  ExpertsWeight(Random& random, DType dtype, int64_t experts, int64_t outputs, int64_t k,
                Scales kind_in)
      : values(random, dtype, {experts, outputs, k}, kind_in == Scales::kNone ? 0.3 : 400),
        scales(DType::kF32, {experts, outputs}),
        kind(kind_in) {
    if (kind == Scales::kBlock) {
      scales = HostTensor(DType::kF32, {experts, GroupsOf(outputs), GroupsOf(k)});
    }
    for (int64_t i = 0; i < scales.elements(); ++i) {
      scales.Set(i, random.Uniform(0.5, 1.5) * 0.3 / 400);
    }
  }

  double At(int64_t e, int64_t n, int64_t i) const {
    const int64_t outputs = values.shape()[1];
    const int64_t k = values.shape()[2];
    const double value = values.At((e * outputs + n) * k + i);
    if (kind == Scales::kNone) return value;
    if (kind == Scales::kChannel) return value * scales.At(e * outputs + n);
    return value * scales.At((e * GroupsOf(outputs) + n / kGroup) * GroupsOf(k) + i / kGroup);
  }

  Weight Upload(Device& device) const {
    return {values.Upload(device), kind == Scales::kNone ? Tensor() : scales.Upload(device)};
  }
};

/// What expert e makes of a row.
std::vector<double> ExpertOracle(const ExpertsWeight& gate_up, const ExpertsWeight& down, int64_t e,
                                 const std::vector<double>& row, DType act) {
  const int64_t width = down.values.shape()[2];
  std::vector<double> h(width);
  for (int64_t m = 0; m < width; ++m) {
    double gate = 0;
    double up = 0;
    for (size_t i = 0; i < row.size(); ++i) {
      gate += row[i] * gate_up.At(e, m, static_cast<int64_t>(i));
      up += row[i] * gate_up.At(e, width + m, static_cast<int64_t>(i));
    }
    h[m] = gate / (1 + std::exp(-gate)) * up;
    if (down.kind == Scales::kNone) h[m] = RoundTo(act, h[m]);
  }
  if (down.kind != Scales::kNone) {
    for (int64_t begin = 0; begin < width; begin += kGroup) {
      const int64_t end = std::min(begin + kGroup, width);
      double largest = 0;
      for (int64_t m = begin; m < end; ++m) largest = std::max(largest, std::abs(h[m]));
      const double scale = largest == 0 ? 1 : largest / 448;
      for (int64_t m = begin; m < end; ++m) h[m] = RoundTo(DType::kF8E4M3, h[m] / scale) * scale;
    }
  }
  std::vector<double> out(down.values.shape()[1], 0.0);
  for (size_t n = 0; n < out.size(); ++n) {
    for (int64_t m = 0; m < width; ++m) out[n] += h[m] * down.At(e, static_cast<int64_t>(n), m);
  }
  return out;
}

enum class Spread : uint8_t { kRandom, kOneExpert };

std::vector<int32_t> ChooseIds(Random& random, const MoeShape& shape, Spread spread) {
  std::vector<int32_t> ids;
  for (int32_t t = 0; t < shape.tokens; ++t) {
    std::vector<int32_t> left;
    for (int32_t e = 0; e < shape.experts; ++e) left.push_back(e);
    for (int64_t j = 0; j < shape.choices; ++j) {
      // With kOneExpert every token takes the same ones and most stay empty.
      const int64_t at = spread == Spread::kOneExpert ? static_cast<int64_t>(left.size()) / 2
                                                      : random.Below(left.size());
      ids.push_back(left[at]);
      left.erase(left.begin() + at);
    }
  }
  return ids;
}

OpCase MoeExpertsCase(DType act, const MoeShape& shape, Scales scales, Spread spread) {
  const char* const scale_names[] = {"", " channel scales", " block scales"};
  const std::string name = std::string("moe_experts ") + Name(act) + " " + shape.Text() +
                           scale_names[static_cast<int>(scales)] +
                           (spread == Spread::kOneExpert ? " one expert" : "");
  constexpr int32_t kPadding = 2;
  const auto run = [=](Device& device) {
    Random random(SeedOf(name));
    const int64_t rows = shape.tokens + kPadding;
    const int64_t k = shape.choices;
    const bool float8 = scales != Scales::kNone;
    const DType weight_dtype = float8 ? DType::kF8E4M3 : act;
    const CaseBatch batch(random, BatchSpec::OneSequence(shape.tokens, kPadding));
    const HostTensor in(random, float8 ? DType::kF8E4M3 : act, {rows, shape.hidden},
                        float8 ? 400 : 1, shape.tokens);
    const int64_t in_groups = scales == Scales::kBlock ? GroupsOf(shape.hidden) : 1;
    HostTensor in_scales(DType::kF32, scales == Scales::kBlock
                                          ? std::vector<int64_t>{rows, in_groups}
                                          : std::vector<int64_t>{rows});
    for (int64_t i = 0; i < shape.tokens * in_groups; ++i) {
      in_scales.Set(i, random.Uniform(0.5, 1.5) / 400);
    }
    const int64_t experts_all = shape.experts + shape.shared;
    const ExpertsWeight gate_up(random, weight_dtype, experts_all, 2 * shape.width, shape.hidden,
                                scales);
    const ExpertsWeight down(random, weight_dtype, experts_all, shape.hidden, shape.width, scales);

    std::vector<int32_t> ids = ChooseIds(random, shape, spread);
    std::vector<int32_t> order;
    std::vector<int32_t> starts;
    OrderOf(ids, shape.experts, &order, &starts);
    ids.resize(rows * k, 0x7F7F7F7F);
    order.resize(rows * k, 0x7F7F7F7F);
    HostTensor weights(DType::kF32, {rows, k});
    for (int64_t i = 0; i < shape.tokens * k; ++i) weights.Set(i, random.Uniform(0.1, 1));

    const BatchView view = batch.Upload(device);
    const MoeExpertsArgs args{
        .batch = view,
        .in = {in.Upload(device), float8 ? in_scales.Upload(device) : Tensor()},
        .routing = {HostTensor::OfInts(ids, {rows, k}).Upload(device), weights.Upload(device),
                    HostTensor::OfInts(order, {rows * k}).Upload(device),
                    HostTensor::OfInts(starts, {shape.experts + 1}).Upload(device)},
        .gate_up = gate_up.Upload(device),
        .down = down.Upload(device),
        .shared_experts = shape.shared,
        .out = HostTensor(act, {rows, shape.hidden}).Upload(device)};
    device.ops().moe_experts(device, args);
    std::unique_ptr<DeviceGraph> graph;
    if (device.CanCapture()) {
      // Twice with no wait between: the second finds what the first has left.
      device.BeginCapture();
      device.ops().moe_experts(device, args);
      device.ops().moe_experts(device, args);
      graph = device.EndCapture();
      graph->Launch();
    }

    std::vector<double> want;
    for (int64_t t = 0; t < shape.tokens; ++t) {
      std::vector<double> row(shape.hidden);
      for (int64_t i = 0; i < shape.hidden; ++i) {
        row[i] = in.At(t * shape.hidden + i);
        if (scales == Scales::kChannel) row[i] *= in_scales.At(t);
        if (scales == Scales::kBlock) row[i] *= in_scales.At(t * in_groups + i / kGroup);
      }
      std::vector<double> sum(shape.hidden, 0.0);
      const auto add = [&](int64_t e, double weight) {
        const std::vector<double> out = ExpertOracle(gate_up, down, e, row, act);
        for (int64_t i = 0; i < shape.hidden; ++i) sum[i] += weight * out[i];
      };
      for (int64_t j = 0; j < k; ++j) add(ids[t * k + j], weights.At(t * k + j));
      if (shape.shared > 0) add(shape.experts, 1);
      for (const double x : sum) want.push_back(RoundTo(act, x));
    }
    // h rounded on the other side moves the sum by a share of its largest terms, and h, a product
    // of two sums, grows with hidden. The largest FP8 h of a group has steps of a 14th.
    Tolerance tolerance = ToleranceOf(act, 4);
    const double growth = static_cast<double>(shape.hidden) / 64;
    if (float8) {
      tolerance.absolute = 0.2 * growth;
      tolerance.similarity = 0.9998;
    } else if (act == DType::kBF16) {
      tolerance.absolute = 0.02 * growth;
    }
    Verdict verdict;
    verdict.Near(device, "out", args.out, shape.tokens, want, tolerance);
    return verdict.Finish();
  };
  return {name, act, shape.Limits(kPadding), run};
}

}  // namespace

std::vector<OpCase> MoeRouteCases() {
  std::vector<OpCase> cases;
  for (const DType act : kActs) {
    for (const int32_t tokens : {1, 2, 17, 33, 65}) {
      cases.push_back(MoeRouteCase(act, {tokens, 64, 8, 2, 0, 0}, Gates::kRandom, true));
      cases.push_back(MoeRouteCase(act, {tokens, 128, 160, 8, 0, 0}, Gates::kRandom, false));
    }
    cases.push_back(MoeRouteCase(act, {16, 64, 16, 1, 0, 0}, Gates::kOneWins, true));
    cases.push_back(MoeRouteCase(act, {16, 64, 16, 3, 0, 0}, Gates::kOneWins, false));
    cases.push_back(MoeRouteCase(act, {32, 64, 16, 5, 0, 0}, Gates::kTies, true));
    cases.push_back(MoeRouteCase(act, {3, 64, 4, 4, 0, 0}, Gates::kRandom, true));
  }
  return cases;
}

std::vector<OpCase> MoeExpertsLargeCases() {
  std::vector<OpCase> cases;
  for (const Scales scales : {Scales::kNone, Scales::kChannel, Scales::kBlock}) {
    for (const int32_t tokens : {1, 3, 60, 130, 300}) {
      cases.push_back(
          MoeExpertsCase(DType::kBF16, {tokens, 1216, 6, 2, 176, 1}, scales, Spread::kRandom));
    }
    cases.push_back(
        MoeExpertsCase(DType::kBF16, {130, 1216, 6, 1, 176, 0}, scales, Spread::kOneExpert));
    // Few tokens for each of many experts, of which a block has several; and for one of them.
    cases.push_back(
        MoeExpertsCase(DType::kBF16, {40, 1216, 24, 4, 272, 1}, scales, Spread::kRandom));
    cases.push_back(
        MoeExpertsCase(DType::kBF16, {40, 512, 24, 1, 272, 0}, scales, Spread::kOneExpert));
    // Widths of a rank of eight and of Flash, as few tokens have them.
    cases.push_back(MoeExpertsCase(DType::kBF16, {2, 5120, 4, 2, 192, 1}, scales, Spread::kRandom));
    cases.push_back(
        MoeExpertsCase(DType::kBF16, {1, 2048, 3, 1, 1536, 1}, scales, Spread::kRandom));
  }
  return cases;
}

std::vector<OpCase> MoeExpertsCases() {
  std::vector<OpCase> cases;
  for (const DType act : kActs) {
    for (const Scales scales : {Scales::kNone, Scales::kChannel, Scales::kBlock}) {
      for (const int32_t tokens : {1, 5, 33}) {
        cases.push_back(MoeExpertsCase(act, {tokens, 64, 8, 2, 32, 1}, scales, Spread::kRandom));
      }
      cases.push_back(MoeExpertsCase(act, {4, 64, 32, 3, 32, 0}, scales, Spread::kRandom));
      cases.push_back(MoeExpertsCase(act, {40, 64, 8, 1, 32, 1}, scales, Spread::kOneExpert));
      cases.push_back(MoeExpertsCase(act, {3, 256, 4, 2, 144, 1}, scales, Spread::kRandom));
      // With their padding: 8 tokens and 32 choices, the most of a step of few tokens.
      cases.push_back(MoeExpertsCase(act, {6, 64, 16, 4, 48, 1}, scales, Spread::kRandom));
      cases.push_back(MoeExpertsCase(act, {2, 256, 12, 8, 192, 1}, scales, Spread::kRandom));
      cases.push_back(MoeExpertsCase(act, {6, 64, 4, 1, 32, 1}, scales, Spread::kOneExpert));
    }
  }
  return cases;
}

}  // namespace glm::test
