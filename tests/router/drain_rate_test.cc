#include "router/admit/drain_rate.h"

#include <gtest/gtest.h>

namespace glm::router {
namespace {

TEST(DrainRateTest, SaysNothingBeforeItHasSeenEnough) {
  DrainRate rate;
  EXPECT_FALSE(rate.TokensPerSecond(0).has_value());
  rate.SetBusy(true, 1000);
  for (int i = 1; i <= 4; ++i) rate.Served(100, 1000 + i);
  EXPECT_FALSE(rate.TokensPerSecond(1900).has_value());  // not a second of work
  EXPECT_TRUE(rate.TokensPerSecond(2200).has_value());

  DrainRate slow;
  slow.SetBusy(true, 1000);
  for (int i = 1; i <= 3; ++i) slow.Served(100, 1000 + i);
  EXPECT_FALSE(slow.TokensPerSecond(9000).has_value());  // too few requests
  slow.Served(100, 9000);
  EXPECT_TRUE(slow.TokensPerSecond(9000).has_value());
}

TEST(DrainRateTest, MeasuresASteadyRate) {
  DrainRate rate;
  rate.SetBusy(true, 0);
  for (int64_t ms = 10; ms <= 60'000; ms += 10) rate.Served(50, ms);
  EXPECT_NEAR(*rate.TokensPerSecond(60'000), 5000, 50);
}

TEST(DrainRateTest, FollowsWithinSeconds) {
  DrainRate rate;
  rate.SetBusy(true, 0);
  int64_t ms = 0;
  for (; ms < 60'000; ms += 10) rate.Served(50, ms);
  for (; ms < 84'000; ms += 10) rate.Served(100, ms);  // three time constants on
  EXPECT_NEAR(*rate.TokensPerSecond(ms), 10'000, 400);
  // Nothing is served any more: the rate falls.
  EXPECT_LT(*rate.TokensPerSecond(ms + 24'000), 600);
}

TEST(DrainRateTest, TimeWithoutWorkIsNotCounted) {
  DrainRate rate;
  rate.SetBusy(true, 0);
  int64_t ms = 0;
  for (; ms < 10'000; ms += 10) rate.Served(50, ms);
  rate.SetBusy(false, ms);
  const double before = *rate.TokensPerSecond(ms);
  rate.Served(1'000'000, ms + 5000);  // sent without a wait
  rate.SetBusy(true, ms + 3'600'000);
  EXPECT_DOUBLE_EQ(*rate.TokensPerSecond(ms + 3'600'000), before);
}

TEST(DrainRateTest, SaysSinceWhenNothingMoves) {
  DrainRate rate;
  EXPECT_EQ(rate.IdleSeconds(5000), 0);
  rate.SetBusy(true, 5000);
  EXPECT_EQ(rate.IdleSeconds(7500), 2.5);
  rate.SetBusy(true, 7500);  // still
  EXPECT_EQ(rate.IdleSeconds(8000), 3);
  rate.Served(1, 8000);
  EXPECT_EQ(rate.IdleSeconds(8250), 0.25);
  rate.SetBusy(false, 9000);
  EXPECT_EQ(rate.IdleSeconds(10'000), 0);
}

TEST(DrainRateTest, AClockThatStandsStillDoesNoHarm) {
  DrainRate rate;
  rate.SetBusy(true, 5000);
  rate.Served(100, 4000);  // another loop's look was earlier
  EXPECT_EQ(rate.IdleSeconds(3000), 0);
  EXPECT_FALSE(rate.TokensPerSecond(4500).has_value());
}

}  // namespace
}  // namespace glm::router
