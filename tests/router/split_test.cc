#include "router/text/split.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <utility>
#include <vector>

namespace glm::router {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::string_view kGlm =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";

Split Compile(std::string_view pattern, Split::Gaps gaps = Split::Gaps::kKeep) {
  absl::StatusOr<Split> split = Split::Compile(pattern, gaps);
  EXPECT_TRUE(split.ok()) << split.status();
  return *std::move(split);
}

std::vector<std::string> Pieces(const Split& split, std::string_view text) {
  std::vector<std::string> pieces;
  const absl::Status status =
      split.ForEach(text, [&pieces](std::string_view piece) { pieces.emplace_back(piece); });
  EXPECT_TRUE(status.ok()) << status;
  return pieces;
}

TEST(SplitTest, WordsNumbersBlanks) {
  const Split split = Compile(kGlm);
  EXPECT_THAT(Pieces(split, ""), ElementsAre());
  EXPECT_THAT(Pieces(split, "Hello, world!"), ElementsAre("Hello", ",", " world", "!"));
  EXPECT_THAT(Pieces(split, "12345 x"), ElementsAre("123", "45", " x"));
  // The last blank goes with the word behind it; at the end all stay together.
  EXPECT_THAT(Pieces(split, "a   b"), ElementsAre("a", "  ", " b"));
  EXPECT_THAT(Pieces(split, "a   "), ElementsAre("a", "   "));
  EXPECT_THAT(Pieces(split, "a \n\n  b"), ElementsAre("a", " \n\n", " ", " b"));
  EXPECT_THAT(Pieces(split, "x();\r\n\ty"), ElementsAre("x", "();\r\n", "\ty"));
}

TEST(SplitTest, ContractionsIgnoreCaseByUnicode) {
  const Split split = Compile(kGlm);
  EXPECT_THAT(Pieces(split, "it's WE'LL"), ElementsAre("it", "'s", " WE", "'LL"));
  EXPECT_THAT(Pieces(split, "it'\u017f"), ElementsAre("it", "'\u017f"));  // long s
  EXPECT_THAT(Pieces(split, "it'x"), ElementsAre("it", "'x"));
  EXPECT_THAT(Pieces(split, "it'sx"), ElementsAre("it", "'s", "x"));
}

TEST(SplitTest, BlanksAreUnicodeWhiteSpace) {
  const Split split = Compile(kGlm);
  EXPECT_THAT(Pieces(split, "\u3000\u00a0\u2028!"), ElementsAre("\u3000\u00a0", "\u2028", "!"));
  // Not white space: the Mongolian vowel separator, the zero width space, the unit separator.
  EXPECT_THAT(Pieces(split, " \u180e."), ElementsAre(" \u180e."));
  EXPECT_THAT(Pieces(split, " \u200b."), ElementsAre(" \u200b."));
  EXPECT_THAT(Pieces(split, " \x1f."), ElementsAre(" \x1f."));
}

TEST(SplitTest, KnowsTheLettersAndNumbersOfUnicode16) {
  const Split split = Compile(kGlm);
  // A hieroglyph and an ideograph of the newer blocks; a Kaktovik number.
  EXPECT_THAT(Pieces(split, "!\U00013460\U00031350!"), ElementsAre("!\U00013460\U00031350", "!"));
  EXPECT_THAT(Pieces(split, "!\U0001d2c0!"), ElementsAre("!", "\U0001d2c0", "!"));
  EXPECT_THAT(Pieces(split, "\U0001f600"), ElementsAre("\U0001f600"));
}

TEST(SplitTest, GapsAreKeptOrDropped) {
  const std::string_view letters = R"(\p{L}+)";
  EXPECT_THAT(Pieces(Compile(letters), "1ab22c3"), ElementsAre("1", "ab", "22", "c", "3"));
  EXPECT_THAT(Pieces(Compile(letters, Split::Gaps::kDrop), "1ab22c3"), ElementsAre("ab", "c"));
}

TEST(SplitTest, EmptyMatchesDoNotStopIt) {
  EXPECT_THAT(Pieces(Compile("a*"), "baab"), ElementsAre("b", "aa", "b"));
}

TEST(SplitTest, InvalidUtf8IsAGap) {
  const Split split = Compile(kGlm);
  EXPECT_THAT(Pieces(split,
                     "ab\xff\xfe"
                     "cd\xe2\x82"),
              ElementsAre("ab", "\xff\xfe", "cd", "\xe2\x82"));
}

TEST(SplitTest, PiecesOfAnyBytesAddUpToTheText) {
  const Split split = Compile(kGlm);
  std::mt19937 rng(7);
  for (int round = 0; round < 300; ++round) {
    std::string text;
    const int bytes = static_cast<int>(rng() % 60);
    for (int i = 0; i < bytes; ++i) {
      static constexpr std::string_view kLikely = " \n\r\t'sS1aé€";
      text += rng() % 3 != 0 ? kLikely[rng() % kLikely.size()] : static_cast<char>(rng());
    }
    std::string joined;
    for (const std::string& piece : Pieces(split, text)) {
      EXPECT_FALSE(piece.empty());
      joined += piece;
    }
    EXPECT_EQ(joined, text);
  }
}

TEST(SplitTest, LongRunsTakeLinearTime) {
  const Split split = Compile(kGlm);
  for (const std::string_view unit : {" ", "a", "\n ", "=", "1", "\r"}) {
    std::string text;
    while (text.size() < 1 << 20) text += unit;
    size_t bytes = 0;
    ASSERT_TRUE(split.ForEach(text, [&bytes](std::string_view p) { bytes += p.size(); }).ok());
    EXPECT_EQ(bytes, text.size());
  }
}

TEST(SplitTest, BoundsTheSearch) {
  // Tries all ways to cut a run of letters, and fails.
  const Split split = Compile("(?:a+)+(?:a+)+[bc]");
  const std::string text(5000, 'a');
  const absl::Status status = split.ForEach(text, [](std::string_view) {});
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("byte 0"));
}

TEST(SplitTest, RefusesWhatItWouldReadDifferently) {
  for (const auto& [pattern, words] : std::vector<std::pair<std::string, std::string>>{
           {"(a", "at byte 2"},
           {R"(\w+)", R"(\w)"},
           {R"(a\b)", R"(\b)"},
           {R"((a)\1)", R"(\1)"},
           {R"(\p{N}{1,3}+)", "possessive"},
           {"[a[bc]]", "[ inside []"},
           {"a\\", "at the end"},
           {R"(\p{NoSuchScript})", "property"},
           {std::string(Split::kPatternBytesMax + 1, 'a'), "at most"}}) {
    const absl::StatusOr<Split> split = Split::Compile(pattern, Split::Gaps::kKeep);
    EXPECT_EQ(split.status().code(), absl::StatusCode::kInvalidArgument) << pattern;
    EXPECT_THAT(std::string(split.status().message()), HasSubstr(words));
  }
  EXPECT_THAT(Pieces(Compile(R"(\\w|\.)"), R"(\w.w)"), ElementsAre(R"(\w)", ".", "w"));
}

}  // namespace
}  // namespace glm::router
