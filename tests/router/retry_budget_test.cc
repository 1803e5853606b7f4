#include "router/admit/retry_budget.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "router/admit/retry_after.h"

namespace glm::router {
namespace {

int TakeAll(RetryBudget* budget) {
  int taken = 0;
  while (budget->Take()) ++taken;
  return taken;
}

TEST(RetryBudgetTest, StartsWithItsBurstAndGrowsByItsShare) {
  RetryBudget budget(8, 10);
  EXPECT_EQ(TakeAll(&budget), 10);
  for (int i = 0; i < 12; ++i) budget.Offer();
  EXPECT_FALSE(budget.Take());  // 0.96
  budget.Offer();
  EXPECT_TRUE(budget.Take());
  EXPECT_EQ(budget.hundredths(), 4);
  for (int i = 0; i < 1000; ++i) budget.Offer();
  EXPECT_EQ(TakeAll(&budget), 10);  // no more is saved up
}

TEST(RetryBudgetTest, NoneAtAll) {
  RetryBudget budget(0, 0);
  budget.Offer();
  EXPECT_FALSE(budget.Take());
}

TEST(RetryBudgetTest, AHundredPercentIsOneEach) {
  RetryBudget budget(100, 1);
  for (int i = 0; i < 5; ++i) {
    budget.Offer();
    EXPECT_TRUE(budget.Take());
    EXPECT_FALSE(budget.Take());
  }
}

TEST(RetryBudgetTest, ManyThreadsTakeNoMoreThanThereIs) {
  RetryBudget budget(10, 100);
  std::atomic<int> taken{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int j = 0; j < 10'000; ++j) {
        budget.Offer();
        if (budget.Take()) ++taken;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(taken, 100 + 4000);
  EXPECT_GE(taken + budget.hundredths() / 100, 4000);
}

TEST(RetryAfterTest, IsWholeSecondsRoundedUpWithinBounds) {
  const absl::Status refusal = absl::ResourceExhaustedError("full");
  EXPECT_FALSE(RetryAfterOf(refusal).has_value());
  EXPECT_EQ(RetryAfterOf(WithRetryAfter(refusal, 0)), 1);
  EXPECT_EQ(RetryAfterOf(WithRetryAfter(refusal, 1)), 1);
  EXPECT_EQ(RetryAfterOf(WithRetryAfter(refusal, 1.01)), 2);
  EXPECT_EQ(RetryAfterOf(WithRetryAfter(refusal, 1e300)), kRetryAfterMaxS);
  EXPECT_EQ(WithRetryAfter(refusal, 5).message(), "full");
}

}  // namespace
}  // namespace glm::router
