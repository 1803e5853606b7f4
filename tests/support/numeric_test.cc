#include "tests/support/numeric.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace glm::test {
namespace {

using Numbers = std::vector<double>;

TEST(NumericTest, SimilarityFallsWithDistance) {
  EXPECT_EQ(Similarity(Numbers{1, 2}, Numbers{1, 2}), 1);
  EXPECT_EQ(Similarity(Numbers{1, 0}, Numbers{0, 1}), 0);
  EXPECT_EQ(Similarity(Numbers{1, 2}, Numbers{-1, -2}), -1);
  EXPECT_EQ(Similarity(Numbers{0, 0}, Numbers{0, 0}), 1);
  EXPECT_EQ(Similarity(Numbers{2}, Numbers{1}), 0.8);
}

TEST(NumericTest, MaxErrorSeesNaN) {
  EXPECT_EQ(MaxError(Numbers{1, 5, 3}, Numbers{1, 2, 4}), 3);
  EXPECT_TRUE(std::isnan(MaxError(Numbers{1, NAN}, Numbers{1, 2})));
}

TEST(NumericTest, NearIsSilent) {
  EXPECT_EQ(Compare(Numbers{1.0, 100.5}, Numbers{1.0, 100}, {.relative = 0.01}, 2), "");
  EXPECT_EQ(Compare(Numbers{0.05}, Numbers{0}, {.absolute = 0.1, .similarity = -1}, 1), "");
  EXPECT_EQ(Compare(Numbers{NAN, INFINITY}, Numbers{NAN, INFINITY}, {}, 1), "");
}

TEST(NumericTest, NamesTheFirstBadElement) {
  EXPECT_THAT(Compare(Numbers{1, 2, 3, 9, 5, 7}, Numbers{1, 2, 3, 4, 5, 6}, {.relative = 0.01}, 3),
              testing::HasSubstr("2 of 6 elements bad, first at row 1, column 0: 9, expected 4"));
  EXPECT_THAT(Compare(Numbers{1, NAN}, Numbers{1, 2}, {.relative = 10}, 2),
              testing::HasSubstr("row 0, column 1: nan, expected 2"));
  EXPECT_THAT(Compare(Numbers{1, 2}, Numbers{1, NAN}, {.relative = 10}, 2),
              testing::HasSubstr("row 0, column 1: 2, expected nan"));
  EXPECT_EQ(Compare(Numbers{1}, Numbers{1, 2}, {}, 1), "1 elements, expected 2");
}

TEST(NumericTest, SimilarityAloneCanFail) {
  EXPECT_THAT(Compare(Numbers{1.1, 1.1}, Numbers{1, 1}, {.relative = 0.2, .similarity = 0.999}, 2),
              testing::HasSubstr("similarity 0.995"));
}

}  // namespace
}  // namespace glm::test
