#include "router/text/added_tokens.h"

#include <gtest/gtest.h>

namespace glm::router {
namespace {

TEST(AddedTokensTest, FindsTheLeftmostThenTheLongest) {
  AddedTokens tokens;
  tokens.Add("<a>", 1);
  tokens.Add("<a><b>", 2);
  tokens.Add("<", 3);
  tokens.Add("b", 4);
  struct Case {
    const char* text;
    size_t from;
    size_t position;
    size_t bytes;
    int32_t id;
  };
  for (const Case& c : {Case{"x<a>", 0, 1, 3, 1}, Case{"<a><b>", 0, 0, 6, 2},
                        Case{"<a><b", 0, 0, 3, 1}, Case{"<a", 0, 0, 1, 3}, Case{"xb<", 0, 1, 1, 4},
                        Case{"<a>", 1, std::string_view::npos, 0, -1},
                        Case{"", 0, std::string_view::npos, 0, -1}}) {
    const AddedTokens::Match match = tokens.Find(c.text, c.from);
    EXPECT_EQ(match.position, c.position) << c.text;
    EXPECT_EQ(match.bytes, c.bytes) << c.text;
    EXPECT_EQ(match.id, c.id) << c.text;
  }
}

TEST(AddedTokensTest, EmptyFindsNothing) {
  const AddedTokens tokens;
  EXPECT_TRUE(tokens.empty());
  EXPECT_EQ(tokens.Find("abc", 0).id, -1);
}

}  // namespace
}  // namespace glm::router
