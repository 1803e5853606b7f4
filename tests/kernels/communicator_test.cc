// One suite over every number of ranks: the sums and gathers of ranks that are threads.
#include "kernels/communicator.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>
#include <thread>
#include <vector>

namespace glm {
namespace {

class CommunicatorTest : public testing::TestWithParam<int32_t> {
 protected:
  static constexpr int64_t kElementsMax = 4000;

  CommunicatorTest()
      : size_(GetParam()), communicators_(CreateLocalCommunicators(size_, kElementsMax)) {}

  // Runs `body` on a thread for each rank.
  void OnEveryRank(const std::function<void(Communicator&, Device&)>& body) {
    std::vector<std::thread> threads;
    for (const auto& communicator : communicators_) {
      threads.emplace_back([&body, &communicator] {
        const auto device = CreateCpuDevice(1);
        body(*communicator, *device);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  const int32_t size_;
  const std::vector<std::unique_ptr<Communicator>> communicators_;
};

// What rank `rank` has at `at` in call `call`: sums of these depend on the order.
float ValueOf(int32_t rank, int64_t call, int64_t at) {
  std::minstd_rand random(static_cast<uint32_t>(1 + rank + 100 * call + 10'000 * at));
  random.discard(3);
  return std::ldexp(static_cast<float>(static_cast<int32_t>(random() % 2001) - 1000),
                    static_cast<int>(random() % 20) - 15);
}

TEST_P(CommunicatorTest, RanksAreNumbered) {
  for (int32_t rank = 0; rank < size_; ++rank) {
    EXPECT_EQ(communicators_[rank]->rank(), rank);
    EXPECT_EQ(communicators_[rank]->size(), size_);
  }
}

// Sizes that the ranks do not divide, fewer elements than ranks, and call after call.
TEST_P(CommunicatorTest, SumsAreThoseInRankOrderToTheBit) {
  const std::vector<std::pair<int64_t, int64_t>> shapes = {{1, 3}, {7, 33}, {5, 512}, {3, 1333}};
  OnEveryRank([&](Communicator& communicator, Device& device) {
    for (int64_t call = 0; call < 12; ++call) {
      const auto [rows, columns] = shapes[call % shapes.size()];
      std::vector<float> values(rows * columns), want(rows * columns);
      for (int64_t i = 0; i < rows * columns; ++i) {
        values[i] = ValueOf(communicator.rank(), call, i);
        for (int32_t rank = 0; rank < size_; ++rank) want[i] += ValueOf(rank, call, i);
      }
      communicator.AllReduceSum(device, Tensor(values.data(), DType::kF32, {rows, columns}));
      EXPECT_EQ(values, want) << "rank " << communicator.rank() << " call " << call;
    }
  });
}

TEST_P(CommunicatorTest, SumsOfBFloat16AreRoundedOnce) {
  constexpr int64_t kRows = 9, kColumns = 70;
  OnEveryRank([&](Communicator& communicator, Device& device) {
    std::vector<BFloat16> values(kRows * kColumns);
    for (int64_t i = 0; i < kRows * kColumns; ++i) {
      values[i] = ToBFloat16(ValueOf(communicator.rank(), 0, i));
    }
    communicator.AllReduceSum(device, Tensor(values.data(), DType::kBF16, {kRows, kColumns}));
    for (int64_t i = 0; i < kRows * kColumns; ++i) {
      float sum = 0;
      for (int32_t rank = 0; rank < size_; ++rank) {
        sum += ToFloat(ToBFloat16(ValueOf(rank, 0, i)));
      }
      ASSERT_EQ(ToFloat(values[i]), ToFloat(ToBFloat16(sum))) << "element " << i;
    }
  });
}

// In two calls, and of views: what lies beside the columns stays.
TEST_P(CommunicatorTest, ColumnsAreSummedInTwoCalls) {
  constexpr int64_t kRows = 7, kColumns = 50, kFirst = 17, kMargin = 3;
  OnEveryRank([&](Communicator& communicator, Device& device) {
    for (int64_t call = 0; call < 4; ++call) {
      std::vector<float> values(kRows * (kColumns + kMargin), -1.0f);
      std::vector<float> want = values;
      const Tensor all(values.data(), DType::kF32, {kRows, kColumns + kMargin});
      for (int64_t r = 0; r < kRows; ++r) {
        for (int64_t j = 0; j < kColumns; ++j) {
          const int64_t at = r * (kColumns + kMargin) + j;
          values[at] = ValueOf(communicator.rank(), call, at);
          want[at] = 0;
          for (int32_t rank = 0; rank < size_; ++rank) want[at] += ValueOf(rank, call, at);
        }
      }
      communicator.BeginSum(device, all.Columns(0, kFirst));
      communicator.EndSum(device, all.Columns(kFirst, kColumns - kFirst));
      EXPECT_EQ(values, want) << "rank " << communicator.rank() << " call " << call;
    }
  });
}

// A rank's columns may be a view of something wider; what lies beside the output stays.
TEST_P(CommunicatorTest, ColumnsAreGathered) {
  constexpr int64_t kRows = 5, kColumns = 6, kMargin = 2;
  OnEveryRank([&](Communicator& communicator, Device& device) {
    for (int64_t call = 0; call < 12; ++call) {
      const int64_t width = kColumns * size_;
      std::vector<float> in(kRows * (kColumns + kMargin));
      std::vector<float> out(kRows * (width + kMargin), -1.0f);
      const Tensor in_all(in.data(), DType::kF32, {kRows, kColumns + kMargin});
      const Tensor out_all(out.data(), DType::kF32, {kRows, width + kMargin});
      for (int64_t r = 0; r < kRows; ++r) {
        for (int64_t j = 0; j < kColumns; ++j) {
          in_all.Row<float>(r)[1 + j] = ValueOf(communicator.rank(), call, r * kColumns + j);
        }
      }
      communicator.AllGatherColumns(device, in_all.Columns(1, kColumns), out_all.Columns(1, width));
      for (int64_t r = 0; r < kRows; ++r) {
        EXPECT_EQ(out_all.Row<float>(r)[0], -1.0f);
        EXPECT_EQ(out_all.Row<float>(r)[1 + width], -1.0f);
        for (int32_t rank = 0; rank < size_; ++rank) {
          for (int64_t j = 0; j < kColumns; ++j) {
            ASSERT_EQ(out_all.Row<float>(r)[1 + rank * kColumns + j],
                      ValueOf(rank, call, r * kColumns + j));
          }
        }
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, CommunicatorTest, testing::Values(1, 2, 4, 8),
                         testing::PrintToStringParamName());

TEST(SingleCommunicatorTest, LeavesEverythingAsItIs) {
  const auto device = CreateCpuDevice(1);
  const auto communicator = CreateSingleCommunicator();
  EXPECT_EQ(communicator->rank(), 0);
  EXPECT_EQ(communicator->size(), 1);
  std::vector<float> values = {1, 2, 3, 4};
  const Tensor tensor(values.data(), DType::kF32, {2, 2});
  communicator->AllReduceSum(*device, tensor);
  communicator->AllGatherColumns(*device, tensor, tensor);
  EXPECT_EQ(values, std::vector<float>({1, 2, 3, 4}));
}

TEST(CommunicatorDeathTest, WhatRanksMustNotDo) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto device = CreateCpuDevice(1);
  const auto communicators = CreateLocalCommunicators(1, 3);
  std::vector<float> values(4);
  EXPECT_DEATH(communicators[0]->AllReduceSum(*device, Tensor(values.data(), DType::kF32, {2, 2})),
               "elements of");
  EXPECT_DEATH(CreateSingleCommunicator()->AllGatherColumns(
                   *device, Tensor(values.data(), DType::kF32, {1, 2}),
                   Tensor(values.data() + 2, DType::kF32, {1, 2})),
               "in place");
}

}  // namespace
}  // namespace glm
