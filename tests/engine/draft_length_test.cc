#include "engine/schedule/draft_length.h"

#include <gtest/gtest.h>

#include <functional>

namespace glm::engine {
namespace {

/// Steps of `decodes` sequences whose drafts are right every time but each `wrong_each`-th; a step
/// with k drafts takes seconds(k). How many steps had each length.
std::array<int, DraftLength::kDraftsMax + 1> Drive(DraftLength* length, int steps, int32_t decodes,
                                                   int wrong_each,
                                                   const std::function<double(int)>& seconds) {
  std::array<int, DraftLength::kDraftsMax + 1> count{};
  int32_t made = 0;
  int judged_ever = 0;
  for (int step = 0; step < steps; ++step) {
    const int32_t judged = made;
    made = length->Choose(decodes);
    ++count[made];
    for (int32_t s = 0; s < decodes; ++s) {
      int32_t accepted = 0;
      while (accepted < judged && ++judged_ever % wrong_each != 0) ++accepted;
      if (judged > 0) length->NoteDrafts(judged, accepted);
    }
    length->NoteStep(decodes, judged, made, seconds(std::max(judged, made)));
  }
  return count;
}

TEST(DraftLengthTest, WithoutAdaptionItIsTheLargest) {
  DraftLength length(3, /*adaptive=*/false);
  const auto count = Drive(&length, 1000, 4, 1, [](int k) { return 1.0 + k; });
  EXPECT_EQ(count[3], 1000);
}

TEST(DraftLengthTest, StaysLongWhereDraftsAreCheapAndRight) {
  DraftLength length(3, true);
  const auto count = Drive(&length, 20000, 4, 20, [](int k) { return 1.0 + 0.05 * k; });
  EXPECT_GT(count[3], 19000);
  EXPECT_EQ(length.now(), 3);
}

TEST(DraftLengthTest, FallsToNoneWhereDraftsAreNeverRight) {
  DraftLength length(3, true);
  const auto first = Drive(&length, 4000, 4, 1, [](int k) { return 1.0 + 0.05 * k; });
  EXPECT_GT(first[0], 2500);
  const auto later = Drive(&length, 20000, 4, 1, [](int k) { return 1.0 + 0.05 * k; });
  // Probes alone, and seldom.
  EXPECT_GT(later[0], 19800);
  EXPECT_GT(later[1], 0);
}

TEST(DraftLengthTest, FindsTheMiddleWhereTheStepGrowsSteep) {
  DraftLength length(5, true);
  // Two drafts are as good as free, a third costs a whole step.
  Drive(&length, 4000, 8, 5, [](int k) { return k <= 2 ? 1.0 + 0.02 * k : 2.0 + k; });
  const auto count =
      Drive(&length, 10000, 8, 5, [](int k) { return k <= 2 ? 1.0 + 0.02 * k : 2.0 + k; });
  EXPECT_GT(count[2], 9500);
}

TEST(DraftLengthTest, ComesBackWhenDraftsPayAgain) {
  DraftLength length(2, true);
  Drive(&length, 10000, 4, 1, [](int k) { return 1.0 + 0.1 * k; });
  EXPECT_EQ(length.now(), 0);
  const auto count = Drive(&length, 60000, 4, 50, [](int k) { return 1.0 + 0.1 * k; });
  EXPECT_GT(count[2], 30000);
}

TEST(DraftLengthTest, BatchesOfOtherSizesAreJudgedApart) {
  DraftLength length(2, true);
  for (int round = 0; round < 40; ++round) {
    Drive(&length, 500, 2, 4, [](int k) { return 1.0 + 0.05 * k; });
    Drive(&length, 500, 200, 4, [](int k) { return 1.0 + 1.0 * k; });
  }
  EXPECT_GT(Drive(&length, 1000, 2, 4, [](int k) { return 1.0 + 0.05 * k; })[2], 900);
  EXPECT_GT(Drive(&length, 1000, 200, 4, [](int k) { return 1.0 + 1.0 * k; })[0], 900);
}

TEST(DraftLengthTest, ExpectedTokensFollowWhatWasJudged) {
  DraftLength length(2, true);
  for (int i = 0; i < 5000; ++i) length.NoteDrafts(2, i % 2 == 0 ? 2 : 0);
  // The first is right half of the time, and the second whenever the first is.
  EXPECT_NEAR(length.TokensExpected(0), 1.0, 1e-9);
  EXPECT_NEAR(length.TokensExpected(1), 1.5, 0.02);
  EXPECT_NEAR(length.TokensExpected(2), 2.0, 0.04);
}

}  // namespace
}  // namespace glm::engine
