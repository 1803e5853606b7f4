#include "router/text/detokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "router/text/utf8.h"
#include "tests/router/golden_text.h"

namespace glm::router {
namespace {

class DetokenizerTest : public testing::Test {
 protected:
  std::vector<int32_t> Bytes(std::string_view bytes) const {
    std::vector<int32_t> ids;
    for (const char c : bytes) ids.push_back((*tokenizer_->Encode(std::string(1, c)))[0]);
    return ids;
  }

  static void ExpectWholeCharacters(const std::string& piece) {
    for (size_t i = 0; i < piece.size();) {
      const Utf8Step step = ReadUtf8(std::string_view(piece).substr(i));
      ASSERT_EQ(step.kind, Utf8Step::Kind::kCharacter);
      i += step.bytes;
    }
  }

  const std::unique_ptr<const Tokenizer> tokenizer_ = GoldenTokenizer();
};

TEST_F(DetokenizerTest, HoldsBackHalfCharacters) {
  Detokenizer detokenizer(tokenizer_.get(), {});
  const std::vector<int32_t> ids = Bytes("a😀");
  EXPECT_EQ(detokenizer.Feed({ids[0]}), "a");
  EXPECT_EQ(detokenizer.Feed({ids[1]}), "");
  EXPECT_EQ(detokenizer.Feed({ids[2], ids[3]}), "");
  EXPECT_EQ(detokenizer.decoded_bytes(), 1);
  EXPECT_EQ(detokenizer.Feed({ids[4]}), "😀");
  EXPECT_EQ(detokenizer.Feed({ids[1]}), "");
  EXPECT_EQ(detokenizer.Finish(), kReplacement);
}

TEST_F(DetokenizerTest, StopStringAcrossTokens) {
  Detokenizer detokenizer(tokenizer_.get(), {.stop = {"STOP", "\n\n"}});
  EXPECT_EQ(detokenizer.Feed(Bytes("one S")), "one ");
  EXPECT_EQ(detokenizer.Feed(Bytes("TAY ST")), "STAY ");
  EXPECT_FALSE(detokenizer.stopped());
  EXPECT_EQ(detokenizer.Feed(Bytes("OP behind")), "");
  ASSERT_TRUE(detokenizer.stopped());
  EXPECT_EQ(detokenizer.stop(), "STOP");
  EXPECT_EQ(detokenizer.Feed(Bytes("more")), "");
  EXPECT_EQ(detokenizer.Finish(), "");
}

TEST_F(DetokenizerTest, WhatIsHeldForAStopComesAtTheEnd) {
  Detokenizer detokenizer(tokenizer_.get(), {.stop = {"STOP"}});
  EXPECT_EQ(detokenizer.Feed(Bytes("a STO")), "a ");
  EXPECT_EQ(detokenizer.Finish(), "STO");
  EXPECT_FALSE(detokenizer.stopped());
}

TEST_F(DetokenizerTest, SpecialTokens) {
  const int32_t user = *tokenizer_->FindToken("<|user|>");
  const int32_t think = *tokenizer_->FindToken("<think>");
  const std::vector<int32_t> ids = {think, user, 1 << 20};
  EXPECT_EQ(Detokenizer(tokenizer_.get(), {}).Feed(ids), "<think>");
  EXPECT_EQ(Detokenizer(tokenizer_.get(), {.skip_special_tokens = false}).Feed(ids),
            "<think><|user|>");
}

// Where the text ends for a set of stop strings: before the first to be complete, and of those that
// are complete together the longest.
std::string CutAtStop(const std::string& text, const std::vector<std::string>& stops) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& stop : stops) {
      if (std::string_view(text).substr(0, end).ends_with(stop)) {
        longest = std::max(longest, stop.size());
      }
    }
    if (longest > 0) return text.substr(0, end - longest);
  }
  return text;
}

TEST_F(DetokenizerTest, PiecesAddUpToTheWholeHoweverSplit) {
  std::mt19937 rng(9);
  int stopped_count = 0;
  for (int round = 0; round < 400; ++round) {
    const bool skips = rng() % 2 == 0;
    const uint32_t id_max = rng() % 2 == 0 ? 256 : tokenizer_->vocabulary() + 20;
    std::vector<int32_t> ids(rng() % 60);
    for (int32_t& id : ids) id = static_cast<int32_t>(rng() % id_max);
    const std::string whole = tokenizer_->Decode(ids, skips);
    std::vector<std::string> stops;
    while (rng() % 2 == 0 && !whole.empty()) {
      // A part of the text, whole characters, or the beginning of one with a twist.
      const std::string part = whole.substr(rng() % whole.size(), 1 + rng() % 8);
      stops.push_back(ReplaceInvalidUtf8(part) + (rng() % 3 == 0 ? "x" : ""));
    }
    Detokenizer detokenizer(tokenizer_.get(), {skips, stops});
    std::string joined;
    for (size_t i = 0; i < ids.size();) {
      const size_t count = std::min<size_t>(ids.size() - i, rng() % 5);
      const std::string piece = detokenizer.Feed(absl::MakeConstSpan(ids).subspan(i, count));
      ExpectWholeCharacters(piece);
      joined += piece;
      i += count;
    }
    joined += detokenizer.Finish();
    EXPECT_EQ(joined, CutAtStop(whole, stops));
    EXPECT_EQ(detokenizer.stopped(), joined != whole);
    stopped_count += detokenizer.stopped();
  }
  EXPECT_GT(stopped_count, 50);
}

}  // namespace
}  // namespace glm::router
