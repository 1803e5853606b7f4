// Products whose outputs are summed over ranks in two parts, on the CPU.
#include "kernels/output_parts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "tests/kernels/case_parts.h"
#include "tests/kernels/sum_cases.h"

namespace glm::test {
namespace {

TEST(FirstPartTest, IsHalfInWholeUnits) {
  EXPECT_EQ(FirstPart(5120), 2560);
  EXPECT_EQ(FirstPart(4096), 2048);
  EXPECT_EQ(FirstPart(2048), 1024);
  EXPECT_EQ(FirstPart(1216), 640);
  EXPECT_EQ(FirstPart(136), 128);
  EXPECT_EQ(FirstPart(128), 64);
  EXPECT_EQ(FirstPart(48), 32);
  EXPECT_EQ(FirstPart(2), 1);
  for (int64_t columns = 2; columns < 2000; ++columns) {
    const int64_t first = FirstPart(columns);
    ASSERT_TRUE(first > 0 && first < columns) << columns;
    ASSERT_TRUE(columns <= 128 || first % 128 == 0) << columns;
  }
}

TEST(OutputsOfTest, ScalesGoWithTheirOutputs) {
  const BatchView batch;
  std::vector<float> memory(1);
  const auto tensor = [&](std::initializer_list<int64_t> shape) {
    return Tensor(memory.data(), DType::kF32, shape);
  };
  LinearArgs args{.batch = batch,
                  .in = {tensor({3, 300})},
                  .weight = {tensor({320, 300}), tensor({320})},
                  .bias = {},
                  .out = tensor({3, 320})};
  const auto row_of = [&](const Tensor& part, int64_t row_elements) {
    return (part.Data<float>() - memory.data()) / row_elements;
  };
  args.weight.scale_column_offset = 5;
  const LinearArgs channel = OutputsOf(args, 256, 64);
  EXPECT_EQ(channel.weight.values.shape[0], 64);
  EXPECT_EQ(row_of(channel.weight.values, 300), 256);
  EXPECT_EQ(channel.weight.scales.shape[0], 64);
  EXPECT_EQ(row_of(channel.weight.scales, 1), 256);
  EXPECT_EQ(channel.weight.scale_column_offset, 5);
  EXPECT_EQ(channel.out.shape[1], 64);
  EXPECT_EQ(row_of(channel.out, 1), 256);
  args.weight.scales = tensor({3, 3});
  const LinearArgs blocks = OutputsOf(args, 256, 64);
  EXPECT_EQ(blocks.weight.scales.shape[0], 1);
  EXPECT_EQ(row_of(blocks.weight.scales, 3), 2);
  EXPECT_EQ(OutputsOf(args, 0, 256).weight.scales.shape[0], 2);
  args.weight.scales = tensor({320, 3});
  const LinearArgs rows = OutputsOf(args, 256, 64);
  EXPECT_EQ(rows.weight.scales.shape[0], 64);
  EXPECT_EQ(row_of(rows.weight.scales, 3), 256);
}

class SumOverTest : public testing::TestWithParam<int32_t> {};

TEST_P(SumOverTest, IsTheSumOfWhatRanksComputeToTheBit) {
  const int32_t size = GetParam();
  for (const SumCase& one : SumCases()) {
    const auto communicators = CreateLocalCommunicators(size, 1 << 20);
    std::vector<std::vector<uint8_t>> apart(size), beside(size);
    std::vector<std::thread> threads;
    for (int32_t rank = 0; rank < size; ++rank) {
      threads.emplace_back([&, rank] {
        const auto device = CreateCpuDevice(1 + rank % 2);
        device->PlanScratch(one.limits);
        const RankProduct product = one.prepare(*device, rank);
        Communicator& ranks = *communicators[rank];
        product.issue(*device, nullptr, product.apart);
        ranks.AllReduceSum(*device, product.apart);
        product.issue(*device, &ranks, product.beside);
        apart[rank] = ValidBytes(*device, one, product.apart);
        beside[rank] = ValidBytes(*device, one, product.beside);
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (int32_t rank = 0; rank < size; ++rank) {
      EXPECT_TRUE(apart[rank] == apart[0]) << one.name << " rank " << rank;
      EXPECT_TRUE(beside[rank] == apart[0]) << one.name << " rank " << rank;
    }
    const auto zeros = std::count(apart[0].begin(), apart[0].end(), 0);
    EXPECT_LT(zeros, static_cast<int64_t>(apart[0].size() * 3 / 4)) << one.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, SumOverTest, testing::Values(1, 2, 4),
                         testing::PrintToStringParamName());

TEST(SumOverDeathTest, ABiasWouldBeAddedByEveryRank) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto device = CreateCpuDevice(1);
  const auto communicators = CreateLocalCommunicators(1, 64);
  const BatchView batch;
  std::vector<float> values(16);
  const Tensor square(values.data(), DType::kF32, {4, 4});
  EXPECT_DEATH(device->ops().linear(*device, {.batch = batch,
                                              .in = {square},
                                              .weight = {square},
                                              .bias = Tensor(values.data(), DType::kF32, {4}),
                                              .out = square,
                                              .sum_over = communicators[0].get()}),
               "linear.sum_over");
}

}  // namespace
}  // namespace glm::test
