#include "router/text/stop_matcher.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

namespace glm::router {
namespace {

TEST(StopMatcherTest, HoldsBackWhatMayBecomeAStop) {
  StopMatcher matcher({"abcd", "xy"});
  EXPECT_FALSE(matcher.Feed("1ab"));
  EXPECT_EQ(matcher.held_bytes(), 2u);
  EXPECT_FALSE(matcher.Feed("x"));
  EXPECT_EQ(matcher.held_bytes(), 1u);
  EXPECT_FALSE(matcher.Feed("z"));
  EXPECT_EQ(matcher.held_bytes(), 0u);
}

TEST(StopMatcherTest, FirstToBeCompleteWins) {
  StopMatcher matcher({"abcd", "bc"});
  const std::optional<StopMatcher::Match> match = matcher.Feed("abcd");
  ASSERT_TRUE(match);
  EXPECT_EQ(match->stop_index, 1u);
  EXPECT_EQ(match->bytes, 2u);
  EXPECT_EQ(match->end, 3u);
}

TEST(StopMatcherTest, LongestOfThoseCompleteTogether) {
  StopMatcher matcher({"c", "abc", "bc"});
  EXPECT_FALSE(matcher.Feed("ab"));
  const std::optional<StopMatcher::Match> match = matcher.Feed("c");
  ASSERT_TRUE(match);
  EXPECT_EQ(match->stop_index, 1u);
  EXPECT_EQ(match->bytes, 3u);
  EXPECT_EQ(match->end, 1u);
}

TEST(StopMatcherTest, EqualsALookAtTheWholeTextEachByte) {
  std::mt19937 rng(5);
  for (int round = 0; round < 500; ++round) {
    std::vector<std::string> stops(1 + rng() % 4);
    for (std::string& stop : stops) {
      for (int i = 1 + static_cast<int>(rng() % 5); i > 0; --i) stop += "ab"[rng() % 2];
    }
    StopMatcher matcher(stops);
    std::string text;
    for (int i = 0; i < 40; ++i) {
      const std::string next(1, "abc"[rng() % 20 == 0 ? 2 : rng() % 2]);
      text += next;
      size_t longest = 0, held = 0;
      for (const std::string& stop : stops) {
        if (text.ends_with(stop)) longest = std::max(longest, stop.size());
        for (size_t bytes = 1; bytes < stop.size(); ++bytes) {
          if (text.ends_with(stop.substr(0, bytes))) held = std::max(held, bytes);
        }
      }
      const std::optional<StopMatcher::Match> match = matcher.Feed(next);
      ASSERT_EQ(match.has_value(), longest > 0) << text;
      if (match) {
        EXPECT_EQ(match->bytes, longest);
        EXPECT_TRUE(text.ends_with(matcher.stop(match->stop_index)));
        break;
      }
      ASSERT_EQ(matcher.held_bytes(), held) << text;
    }
  }
}

}  // namespace
}  // namespace glm::router
