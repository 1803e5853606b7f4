#include "tests/kernels/sum_cases.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "tests/kernels/case_parts.h"

namespace glm::test {
namespace {

constexpr int32_t kPadding = 2;
constexpr int64_t kBlock = 128;

enum class Scales : uint8_t { kNone, kChannel, kBlock };
const char* const kScaleNames[] = {"", " channel scales", " block scales"};

int64_t BlocksOf(int64_t extent) { return (extent + kBlock - 1) / kBlock; }

struct LinearSum {
  int32_t rows;
  int64_t outputs;
  int64_t depth;
};

/// Integers of at most 2 in the first `rows` rows.
HostTensor Integers(Random& random, DType dtype, int64_t rows_all, int64_t columns, int64_t rows) {
  HostTensor tensor(dtype, {rows_all, columns});
  for (int64_t i = 0; i < rows * columns; ++i) {
    tensor.Set(i, static_cast<double>(random.Below(5) - 2));
  }
  return tensor;
}

/// Powers of two.
HostTensor PowerScales(Random& random, std::vector<int64_t> shape) {
  HostTensor scales(DType::kF32, std::move(shape));
  for (int64_t i = 0; i < scales.elements(); ++i) {
    scales.Set(i, std::ldexp(1.0, static_cast<int>(random.Below(3)) - 6));
  }
  return scales;
}

SumCase LinearSumCase(DType act, const LinearSum& shape, Scales scales) {
  SumCase one;
  one.name = std::string("linear ") + Name(act) + " " + std::to_string(shape.rows) + "x" +
             std::to_string(shape.outputs) + "x" + std::to_string(shape.depth) +
             kScaleNames[static_cast<int>(scales)];
  one.act = act;
  one.rows = shape.rows;
  one.limits.tokens_max = shape.rows + kPadding;
  one.limits.sequences_max = 1;
  one.limits.logit_rows_max = 1;
  one.limits.hidden = std::max(shape.outputs, shape.depth);
  one.prepare = [=, name = one.name](Device& device, int32_t rank) {
    Random random(SeedOf(name) + static_cast<uint64_t>(rank));
    const int64_t rows = shape.rows + kPadding;
    const DType dtype = scales == Scales::kNone ? act : DType::kF8E4M3;
    const auto batch = std::make_shared<BatchView>(
        CaseBatch(random, BatchSpec::OneSequence(shape.rows, kPadding)).Upload(device));
    Activation in{Integers(random, dtype, rows, shape.depth, shape.rows).Upload(device)};
    Weight weight{
        Integers(random, dtype, shape.outputs, shape.depth, shape.outputs).Upload(device)};
    if (scales == Scales::kChannel) {
      in.scales = PowerScales(random, {rows}).Upload(device);
      weight.scales = PowerScales(random, {shape.outputs}).Upload(device);
    } else if (scales == Scales::kBlock) {
      in.scales = PowerScales(random, {rows, BlocksOf(shape.depth)}).Upload(device);
      weight.scales =
          PowerScales(random, {BlocksOf(shape.outputs), BlocksOf(shape.depth)}).Upload(device);
    }
    RankProduct product;
    product.apart = HostTensor(act, {rows, shape.outputs}).Upload(device);
    product.beside = HostTensor(act, {rows, shape.outputs}).Upload(device);
    product.issue = [=](Device& on, Communicator* sum_over, const Tensor& out) {
      on.ops().linear(on, {.batch = *batch,
                           .in = in,
                           .weight = weight,
                           .bias = {},
                           .out = out,
                           .sum_over = sum_over});
    };
    return product;
  };
  return one;
}

struct ExpertsSum {
  int32_t tokens;
  int64_t hidden;
  int64_t experts;  // routed; there is a shared one besides
  int64_t choices;
  int64_t width;
};

/// Token t takes expert (t + j) % experts as its j-th, with any weights.
Routing RouteInTurn(Device& device, Random& random, const ExpertsSum& shape) {
  const int64_t rows = shape.tokens + kPadding;
  const int64_t k = shape.choices;
  std::vector<int32_t> ids(rows * k, 0), order, starts{0};
  for (int64_t pair = 0; pair < shape.tokens * k; ++pair) {
    ids[pair] = static_cast<int32_t>((pair / k + pair % k) % shape.experts);
  }
  for (int32_t e = 0; e < shape.experts; ++e) {
    for (int32_t pair = 0; pair < shape.tokens * k; ++pair) {
      if (ids[pair] == e) order.push_back(pair);
    }
    starts.push_back(static_cast<int32_t>(order.size()));
  }
  order.resize(rows * k, 0);
  return {HostTensor::OfInts(ids, {rows, k}).Upload(device),
          HostTensor(random, DType::kF32, {rows, k}, 1).Upload(device),
          HostTensor::OfInts(order, {rows * k}).Upload(device),
          HostTensor::OfInts(starts, {shape.experts + 1}).Upload(device)};
}

Weight ExpertWeights(Device& device, Random& random, DType act, int64_t experts, int64_t outputs,
                     int64_t depth, Scales scales) {
  if (scales == Scales::kNone) {
    return {HostTensor(random, act, {experts, outputs, depth}, 0.3).Upload(device)};
  }
  return {
      HostTensor(random, DType::kF8E4M3, {experts, outputs, depth}, 4).Upload(device),
      PowerScales(random, scales == Scales::kChannel
                              ? std::vector<int64_t>{experts, outputs}
                              : std::vector<int64_t>{experts, BlocksOf(outputs), BlocksOf(depth)})
          .Upload(device)};
}

SumCase ExpertsSumCase(DType act, const ExpertsSum& shape, Scales scales) {
  SumCase one;
  one.name = std::string("moe_experts ") + Name(act) + " " + std::to_string(shape.tokens) + "x" +
             std::to_string(shape.hidden) + "x" + std::to_string(shape.width) +
             kScaleNames[static_cast<int>(scales)];
  one.act = act;
  one.rows = shape.tokens;
  one.limits.tokens_max = shape.tokens + kPadding;
  one.limits.sequences_max = 1;
  one.limits.logit_rows_max = 1;
  one.limits.hidden = shape.hidden;
  one.limits.experts = shape.experts + 1;
  one.limits.experts_per_token = shape.choices + 1;
  one.limits.expert_width = shape.width;
  one.prepare = [=, name = one.name](Device& device, int32_t rank) {
    Random random(SeedOf(name) + static_cast<uint64_t>(rank));
    const int64_t rows = shape.tokens + kPadding;
    const auto batch = std::make_shared<BatchView>(
        CaseBatch(random, BatchSpec::OneSequence(shape.tokens, kPadding)).Upload(device));
    Activation in;
    if (scales == Scales::kNone) {
      in.values = HostTensor(random, act, {rows, shape.hidden}, 1, shape.tokens).Upload(device);
    } else {
      in.values =
          HostTensor(random, DType::kF8E4M3, {rows, shape.hidden}, 4, shape.tokens).Upload(device);
      in.scales = PowerScales(random, scales == Scales::kChannel
                                          ? std::vector<int64_t>{rows}
                                          : std::vector<int64_t>{rows, BlocksOf(shape.hidden)})
                      .Upload(device);
    }
    const Routing routing = RouteInTurn(device, random, shape);
    const Weight gate_up = ExpertWeights(device, random, act, shape.experts + 1, 2 * shape.width,
                                         shape.hidden, scales);
    const Weight down =
        ExpertWeights(device, random, act, shape.experts + 1, shape.hidden, shape.width, scales);
    RankProduct product;
    product.apart = HostTensor(act, {rows, shape.hidden}).Upload(device);
    product.beside = HostTensor(act, {rows, shape.hidden}).Upload(device);
    product.issue = [=](Device& on, Communicator* sum_over, const Tensor& out) {
      on.ops().moe_experts(on, {.batch = *batch,
                                .in = in,
                                .routing = routing,
                                .gate_up = gate_up,
                                .down = down,
                                .shared_experts = 1,
                                .out = out,
                                .sum_over = sum_over});
    };
    return product;
  };
  return one;
}

}  // namespace

std::vector<SumCase> SumCases() {
  std::vector<SumCase> cases;
  for (const DType act : {DType::kF32, DType::kBF16}) {
    for (const Scales scales : {Scales::kNone, Scales::kChannel, Scales::kBlock}) {
      cases.push_back(LinearSumCase(act, {5, 64, 96}, scales));
      cases.push_back(LinearSumCase(act, {3, 144, 272}, scales));
      cases.push_back(LinearSumCase(act, {40, 320, 64}, scales));
      cases.push_back(ExpertsSumCase(act, {1, 64, 8, 2, 32}, scales));
      cases.push_back(ExpertsSumCase(act, {33, 64, 8, 2, 32}, scales));
      cases.push_back(ExpertsSumCase(act, {7, 272, 4, 2, 144}, scales));
    }
  }
  return cases;
}

std::vector<SumCase> SumLargeCases() {
  constexpr DType kBF16 = DType::kBF16;
  std::vector<SumCase> cases;
  for (const Scales scales : {Scales::kNone, Scales::kChannel}) {
    cases.push_back(LinearSumCase(kBF16, {20, 2048, 512}, scales));
    cases.push_back(LinearSumCase(kBF16, {380, 5120, 256}, scales));
  }
  for (const Scales scales : {Scales::kNone, Scales::kChannel, Scales::kBlock}) {
    // Tiles of 16, 64 and 128 tokens; parts that tiles of 256 rows do not fill.
    cases.push_back(ExpertsSumCase(kBF16, {20, 1216, 6, 1, 176}, scales));
    cases.push_back(ExpertsSumCase(kBF16, {130, 1216, 6, 1, 176}, scales));
    cases.push_back(ExpertsSumCase(kBF16, {380, 1216, 6, 2, 176}, scales));
    cases.push_back(ExpertsSumCase(kBF16, {380, 5120, 2, 1, 128}, scales));
  }
  return cases;
}

std::vector<uint8_t> ValidBytes(Device& device, const SumCase& one, const Tensor& out) {
  const HostTensor host = HostTensor::Download(device, out);
  for (int64_t i = 0; i < one.rows * host.columns(); ++i) {
    CHECK(std::isfinite(host.At(i))) << one.name << ": element " << i;
  }
  const int64_t bytes = out.bytes() / out.shape[0] * one.rows;
  return {host.bytes().begin(), host.bytes().begin() + bytes};
}

}  // namespace glm::test
