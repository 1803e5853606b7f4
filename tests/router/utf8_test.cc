#include "router/text/utf8.h"

#include <gtest/gtest.h>

namespace glm::router {
namespace {

TEST(Utf8Test, ReadsWholeCharacters) {
  for (const std::string_view text :
       {"a", "\x7f", "é", "\u0800", "\ud7ff", "\ue000", "€", "😀", "\U0010ffff"}) {
    const Utf8Step step = ReadUtf8(text);
    EXPECT_EQ(step.kind, Utf8Step::Kind::kCharacter) << text;
    EXPECT_EQ(step.bytes, text.size()) << text;
  }
}

TEST(Utf8Test, BeginningsAreIncompleteNotInvalid) {
  const std::string_view face = "😀";
  for (size_t bytes = 1; bytes < face.size(); ++bytes) {
    const Utf8Step step = ReadUtf8(face.substr(0, bytes));
    EXPECT_EQ(step.kind, Utf8Step::Kind::kIncomplete);
    EXPECT_EQ(step.bytes, bytes);
  }
}

// The expected texts are those of Python's bytes.decode("utf-8", "replace").
TEST(Utf8Test, ReplacesAsPythonDoes) {
  const std::string r(kReplacement);
  EXPECT_EQ(ReplaceInvalidUtf8(""), "");
  EXPECT_EQ(ReplaceInvalidUtf8("plain é"), "plain é");
  EXPECT_EQ(ReplaceInvalidUtf8("\x80"), r);
  EXPECT_EQ(ReplaceInvalidUtf8("\xc0\x80"), r + r);
  EXPECT_EQ(ReplaceInvalidUtf8("\xc3"), r);
  EXPECT_EQ(ReplaceInvalidUtf8("\xc3"
                               "a"),
            r + "a");
  EXPECT_EQ(ReplaceInvalidUtf8("\xe0\x80\x80"), r + r + r);  // overlong
  EXPECT_EQ(ReplaceInvalidUtf8("\xed\xa0\x80"), r + r + r);  // a surrogate
  EXPECT_EQ(ReplaceInvalidUtf8("\xe2\x82x"), r + "x");       // one group
  EXPECT_EQ(ReplaceInvalidUtf8("\xf0\x9f\x98"), r);          // cut
  EXPECT_EQ(ReplaceInvalidUtf8("\xf0\x9f\xf0\x9f\x98\x80"), r + "😀");
  EXPECT_EQ(ReplaceInvalidUtf8("\xf4\x90\x80\x80"), r + r + r + r);  // beyond U+10FFFF
  EXPECT_EQ(ReplaceInvalidUtf8("\xf5\xff"), r + r);
}

}  // namespace
}  // namespace glm::router
