// On the CPU a row's result has the same bits whichever rows stand beside it: what a request
// answers does not depend on who else is served.
#include <gtest/gtest.h>

#include "tests/kernels/case_parts.h"

namespace glm::test {
namespace {

std::vector<uint8_t> RowBits(Device& device, const Tensor& tensor, int64_t row) {
  return HostTensor::Download(device, tensor.Rows(row, 1)).bytes();
}

std::unique_ptr<Device> NewDevice() {
  std::unique_ptr<Device> device = CreateCpuDevice(2);
  StepLimits limits;
  limits.tokens_max = 160;
  limits.logit_rows_max = 160;
  limits.hidden = 192;
  limits.query_heads = 12;
  limits.head_size = 32;
  limits.experts = 9;
  limits.experts_per_token = 3;
  limits.expert_width = 80;
  device->PlanScratch(limits);
  return device;
}

struct WeightKind {
  DType act;
  DType weight;
  bool blocked;
};

class InvariantLinearTest : public testing::TestWithParam<WeightKind> {};

TEST_P(InvariantLinearTest, RowsDoNotSeeEachOther) {
  const WeightKind kind = GetParam();
  const bool float8 = kind.weight == DType::kF8E4M3;
  constexpr int64_t kRows = 131;
  constexpr int64_t kOutputs = 75;
  constexpr int64_t kColumns = 141;
  const std::unique_ptr<Device> device = NewDevice();
  Random random(3);
  const Tensor in =
      HostTensor(random, float8 ? kind.weight : kind.act, {kRows, kColumns}, 1).Upload(*device);
  const int64_t groups = (kColumns + 127) / 128;
  Weight weight{HostTensor(random, kind.weight, {kOutputs, kColumns}, 1).Upload(*device)};
  Tensor in_scales;
  if (float8) {
    in_scales = kind.blocked ? HostTensor(random, DType::kF32, {kRows, groups}, 1).Upload(*device)
                             : HostTensor(random, DType::kF32, {kRows}, 1).Upload(*device);
    weight.scales = kind.blocked ? HostTensor(random, DType::kF32, {1, groups}, 1).Upload(*device)
                                 : HostTensor(random, DType::kF32, {kOutputs}, 1).Upload(*device);
  }
  const auto run = [&](int64_t begin, int64_t rows) {
    BatchView batch;
    batch.counts = HostTensor::OfInts({static_cast<int32_t>(rows), 1, 0}, {3}).Upload(*device);
    const Tensor out = device->NewTensor(kind.act, {rows, kOutputs});
    device->ops().linear(
        *device,
        {.batch = batch,
         .in = {in.Rows(begin, rows), in_scales.empty() ? Tensor() : in_scales.Rows(begin, rows)},
         .weight = weight,
         .out = out});
    return out;
  };
  const Tensor together = run(0, kRows);
  for (const int64_t count : {1, 2, 3, 4, 7, 33}) {
    for (int64_t begin = 0; begin + count <= kRows; begin += 13) {
      const Tensor apart = run(begin, count);
      for (int64_t r = 0; r < count; ++r) {
        ASSERT_EQ(RowBits(*device, apart, r), RowBits(*device, together, begin + r))
            << "row " << begin + r << " among " << count;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(AllWeights, InvariantLinearTest,
                         testing::Values(WeightKind{DType::kF32, DType::kF32, false},
                                         WeightKind{DType::kF32, DType::kBF16, false},
                                         WeightKind{DType::kBF16, DType::kBF16, false},
                                         WeightKind{DType::kBF16, DType::kF8E4M3, false},
                                         WeightKind{DType::kBF16, DType::kF8E4M3, true}));

TEST(InvariantMoeTest, TokensDoNotSeeEachOther) {
  constexpr int64_t kTokens = 64;
  constexpr int64_t kHidden = 96;
  constexpr int64_t kExperts = 8;
  constexpr int64_t kChoices = 2;
  constexpr int64_t kWidth = 72;
  const std::unique_ptr<Device> device = NewDevice();
  Random random(4);
  const Tensor in = HostTensor(random, DType::kBF16, {kTokens, kHidden}, 1).Upload(*device);
  const Tensor gate = HostTensor(random, DType::kBF16, {kExperts, kHidden}, 1).Upload(*device);
  const Tensor bias = HostTensor(random, DType::kF32, {kExperts}, 0.1).Upload(*device);
  const Weight gate_up{
      HostTensor(random, DType::kBF16, {kExperts + 1, 2 * kWidth, kHidden}, 1).Upload(*device)};
  const Weight down{
      HostTensor(random, DType::kBF16, {kExperts + 1, kHidden, kWidth}, 1).Upload(*device)};
  const auto run = [&](int64_t begin, int64_t tokens) {
    BatchView batch;
    batch.counts = HostTensor::OfInts({static_cast<int32_t>(tokens), 1, 0}, {3}).Upload(*device);
    const Routing routing{device->NewTensor(DType::kI32, {tokens, kChoices}),
                          device->NewTensor(DType::kF32, {tokens, kChoices}),
                          device->NewTensor(DType::kI32, {tokens * kChoices}),
                          device->NewTensor(DType::kI32, {kExperts + 1})};
    device->ops().moe_route(*device, {.batch = batch,
                                      .in = in.Rows(begin, tokens),
                                      .gate = gate,
                                      .correction_bias = bias,
                                      .normalize = true,
                                      .scaling = 1.8f,
                                      .out = routing});
    const Tensor out = device->NewTensor(DType::kBF16, {tokens, kHidden});
    device->ops().moe_experts(*device, {.batch = batch,
                                        .in = {in.Rows(begin, tokens)},
                                        .routing = routing,
                                        .gate_up = gate_up,
                                        .down = down,
                                        .shared_experts = 1,
                                        .out = out});
    return out;
  };
  const Tensor together = run(0, kTokens);
  for (const int64_t count : {1, 5, 16}) {
    for (int64_t begin = 0; begin + count <= kTokens; begin += count) {
      const Tensor apart = run(begin, count);
      for (int64_t t = 0; t < count; ++t) {
        ASSERT_EQ(RowBits(*device, apart, t), RowBits(*device, together, begin + t))
            << "token " << begin + t << " among " << count;
      }
    }
  }
}

TEST(InvariantAttentionTest, TokensDoNotSeeOtherSequences) {
  constexpr int64_t kHeads = 12;
  constexpr int64_t kKvHeads = 2;
  constexpr int64_t kHeadSize = 32;
  const std::unique_ptr<Device> device = NewDevice();
  Random random(5);
  BatchSpec spec;
  spec.sequences = {{0, 40}, {70, 1}, {33, 5}, {129, 1}};
  const CaseBatch batch(random, spec);
  const Tensor queries =
      HostTensor(random, DType::kBF16, {batch.tokens, kHeads * kHeadSize}, 2).Upload(*device);
  const std::vector<int64_t> cache = {batch.blocks, kKvHeads, batch.block_size, kHeadSize};
  const KvLayer layer{HostTensor(random, DType::kBF16, cache, 2).Upload(*device),
                      HostTensor(random, DType::kBF16, cache, 2).Upload(*device)};
  const BatchView view = batch.Upload(*device);
  const Tensor together = device->NewTensor(DType::kBF16, {batch.tokens, kHeads * kHeadSize});
  device->ops().attention(
      *device, {.batch = view, .queries = queries, .cache = layer, .scale = 0.2f, .out = together});
  for (int32_t t = 0; t < batch.tokens; ++t) {
    BatchView one;
    one.counts = HostTensor::OfInts({1, 1, 0}, {3}).Upload(*device);
    one.positions = view.positions.Rows(t, 1);
    one.token_sequences = HostTensor::OfInts({0}, {1}).Upload(*device);
    one.block_tables = view.block_tables.Rows(batch.token_sequences[t], 1);
    const Tensor apart = device->NewTensor(DType::kBF16, {1, kHeads * kHeadSize});
    device->ops().attention(
        *device,
        {.batch = one, .queries = queries.Rows(t, 1), .cache = layer, .scale = 0.2f, .out = apart});
    ASSERT_EQ(RowBits(*device, apart, 0), RowBits(*device, together, t)) << "token " << t;
  }
}

TEST(InvariantAttentionTest, LatentTokensDoNotSeeOtherSequences) {
  constexpr int64_t kHeads = 6;
  constexpr int64_t kPlain = 20;
  constexpr int64_t kRope = 12;
  constexpr int64_t kValue = 24;
  constexpr int64_t kLatent = 44;
  const std::unique_ptr<Device> device = NewDevice();
  Random random(6);
  BatchSpec spec;
  spec.sequences = {{0, 40}, {70, 1}, {33, 5}, {129, 1}};
  const CaseBatch batch(random, spec);
  const Tensor queries =
      HostTensor(random, DType::kBF16, {batch.tokens, kHeads * (kPlain + kRope)}, 2)
          .Upload(*device);
  const Tensor kv_up =
      HostTensor(random, DType::kBF16, {kHeads, kPlain + kValue, kLatent}, 0.4).Upload(*device);
  for (const DType cell : {DType::kBF16, DType::kF8E4M3}) {
    KvLayer layer;
    layer.keys = HostTensor(random, cell, {batch.blocks, 1, batch.block_size, kLatent + kRope}, 2)
                     .Upload(*device);
    const BatchView view = batch.Upload(*device);
    const Tensor together = device->NewTensor(DType::kBF16, {batch.tokens, kHeads * kValue});
    const auto run = [&](const BatchView& step, const Tensor& rows, const Tensor& out) {
      device->ops().mla_attention(*device, {.batch = step,
                                            .queries = rows,
                                            .cache = layer,
                                            .kv_up = kv_up,
                                            .scale = 0.2f,
                                            .out = out});
    };
    run(view, queries, together);
    for (int32_t t = 0; t < batch.tokens; ++t) {
      BatchView one;
      one.counts = HostTensor::OfInts({1, 1, 0}, {3}).Upload(*device);
      one.positions = view.positions.Rows(t, 1);
      one.token_sequences = HostTensor::OfInts({0}, {1}).Upload(*device);
      one.block_tables = view.block_tables.Rows(batch.token_sequences[t], 1);
      const Tensor apart = device->NewTensor(DType::kBF16, {1, kHeads * kValue});
      run(one, queries.Rows(t, 1), apart);
      ASSERT_EQ(RowBits(*device, apart, 0), RowBits(*device, together, t)) << "token " << t;
    }
  }
}

}  // namespace
}  // namespace glm::test
