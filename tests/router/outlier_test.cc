#include "router/fleet/outlier.h"

#include <gtest/gtest.h>

#include <string>

namespace glm::router {
namespace {

class OutlierTest : public ::testing::Test {
 protected:
  bool Error(const std::string& worker, int64_t now_ms) {
    return outliers_.TakeFault(worker, WorkerFault::kError, fleet_size_, now_ms);
  }
  bool Lose(const std::string& worker, int64_t now_ms) {
    return outliers_.TakeFault(worker, WorkerFault::kLost, fleet_size_, now_ms);
  }
  /// How long it is out, from `now_ms` on.
  int64_t OutFor(const std::string& worker, int64_t now_ms) {
    int64_t out = 0;
    while (outliers_.IsEjected(worker, now_ms + out)) ++out;
    return out;
  }

  FleetOptions options_{.eject_errors = 3, .eject_ms = 1000, .eject_max_ms = 5000};
  Outliers outliers_{options_};
  int32_t fleet_size_ = 4;
};

TEST_F(OutlierTest, SoManyErrorsInARowEject) {
  EXPECT_FALSE(Error("a", 0));
  EXPECT_FALSE(Error("a", 1));
  EXPECT_FALSE(outliers_.IsEjected("a", 1));
  EXPECT_TRUE(Error("a", 2));
  EXPECT_TRUE(outliers_.IsEjected("a", 2));
  EXPECT_FALSE(outliers_.IsEjected("b", 2));
  EXPECT_EQ(outliers_.CountEjected(2), 1);
  EXPECT_EQ(OutFor("a", 2), 1000);
  EXPECT_EQ(outliers_.CountEjected(1002), 0);
}

TEST_F(OutlierTest, AnAnswerBetweenBeginsTheRowAnew) {
  for (int i = 0; i < 10; ++i) {
    EXPECT_FALSE(Error("a", i));
    EXPECT_FALSE(Error("a", i));
    outliers_.TakeSuccess("a", i);
  }
}

TEST_F(OutlierTest, ALostOneIsOutAtOnce) {
  EXPECT_TRUE(Lose("a", 0));
  // All that was under way there says so too, and what was sent before fails late.
  EXPECT_FALSE(Lose("a", 1));
  EXPECT_FALSE(Error("a", 500));
  EXPECT_EQ(OutFor("a", 0), 1000);
}

TEST_F(OutlierTest, TheTimeDoublesUpToItsMostAndHealsWithAnswers) {
  int64_t now = 0;
  for (const int64_t expected : {1000, 2000, 4000, 5000, 5000}) {
    EXPECT_TRUE(Lose("a", now));
    EXPECT_EQ(OutFor("a", now), expected);
    now += expected;
  }
  outliers_.TakeSuccess("a", now);  // one of five doublings
  outliers_.TakeSuccess("a", now);
  outliers_.TakeSuccess("a", now);
  outliers_.TakeSuccess("a", now);
  EXPECT_TRUE(Lose("a", now));
  EXPECT_EQ(OutFor("a", now), 2000);
}

TEST_F(OutlierTest, AnAnswerFromBeforeDoesNotTakeItBack) {
  EXPECT_TRUE(Lose("a", 0));
  outliers_.TakeSuccess("a", 10);
  EXPECT_TRUE(outliers_.IsEjected("a", 11));
}

TEST_F(OutlierTest, NeverMoreThanHalfAndThenNoneAtAll) {
  EXPECT_TRUE(Lose("a", 0));
  EXPECT_TRUE(Lose("b", 0));
  EXPECT_EQ(outliers_.CountEjected(0), 2);
  EXPECT_FALSE(Lose("c", 0));
  EXPECT_EQ(outliers_.CountEjected(0), 0);
  // And it begins anew, with the shortest time.
  EXPECT_TRUE(Lose("c", 1));
  EXPECT_EQ(OutFor("c", 1), 1000);
}

TEST_F(OutlierTest, HalfOfAnOddFleetIsRoundedDown) {
  fleet_size_ = 1;
  EXPECT_FALSE(Lose("a", 0));
  fleet_size_ = 2;
  EXPECT_TRUE(Lose("a", 0));
  EXPECT_FALSE(Lose("b", 0));
  fleet_size_ = 3;
  EXPECT_TRUE(Lose("c", 0));
  EXPECT_FALSE(Lose("d", 0));
}

TEST_F(OutlierTest, AStormEjectsNoMoreThanHalfAtAnyTime) {
  fleet_size_ = 8;
  for (int64_t now = 0; now < 5000; ++now) {
    for (int i = 0; i < 3; ++i) Error(std::string(1, static_cast<char>('a' + (now + i) % 8)), now);
    ASSERT_LE(outliers_.CountEjected(now), 4);
  }
  EXPECT_EQ(outliers_.CountEjected(7000), 0);  // recovered two seconds after
}

TEST_F(OutlierTest, AddressesThatAreGoneAreForgotten) {
  fleet_size_ = 4;
  for (int i = 0; i < 1000; ++i) Lose(std::to_string(i), i * 10'000);
  EXPECT_TRUE(Lose("0", 10'000'000));
  EXPECT_EQ(OutFor("0", 10'000'000), 1000);  // not a second time
}

}  // namespace
}  // namespace glm::router
