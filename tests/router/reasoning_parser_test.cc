#include "router/text/reasoning_parser.h"

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

namespace glm::router {
namespace {

using Tag = ReasoningParser::Tag;

struct Answer {
  std::string reasoning;
  std::string content;
  bool operator==(const Answer&) const = default;
};

void PrintTo(const Answer& answer, std::ostream* out) {
  *out << "reasoning \"" << answer.reasoning << "\", content \"" << answer.content << "\"";
}

// Feeds `text`, in which [T], [/T] and [C] stand for the tags, `bytes_max` bytes at a time.
Answer Parse(ChatDialect dialect, AnswerStart start, std::string_view text, size_t bytes_max) {
  ReasoningParser parser(dialect, start);
  ReasoningParser::Delta delta;
  while (!text.empty()) {
    if (text.starts_with("[T]")) {
      parser.FeedTag(Tag::kThink, "<think>", &delta);
      text.remove_prefix(3);
    } else if (text.starts_with("[/T]")) {
      parser.FeedTag(Tag::kThinkEnd, "</think>", &delta);
      text.remove_prefix(4);
    } else if (text.starts_with("[C]")) {
      parser.FeedTag(Tag::kToolCall, "<tool_call>", &delta);
      text.remove_prefix(3);
    } else {
      const std::string_view part = text.substr(0, std::min(text.find('[', 1), bytes_max));
      parser.FeedText(part, &delta);
      text.remove_prefix(part.size());
    }
  }
  return {delta.reasoning, delta.content};
}

struct Case {
  AnswerStart start;
  const char* text;
  Answer expected;
};

void ExpectAll(ChatDialect dialect, const std::vector<Case>& cases) {
  for (const Case& c : cases) {
    for (const size_t bytes_max : {1, 2, 3, 1000}) {
      EXPECT_EQ(Parse(dialect, c.start, c.text, bytes_max), c.expected)
          << c.text << ", " << bytes_max << " bytes at a time";
    }
  }
}

TEST(ReasoningParserTest, Dialect45) {
  constexpr AnswerStart kUndecided = AnswerStart::kUndecided;
  constexpr AnswerStart kContent = AnswerStart::kContent;
  ExpectAll(ChatDialect::kGlm45,
            {{kUndecided, "\n[T]R[/T]\nC", {"R", "C"}},
             {kUndecided, "[T]R[/T]C", {"R", "C"}},
             {kUndecided, "\n[T]\n\nR\n\nS\n\n[/T]\n\nC\n\nD\n", {"R\n\nS", "C\n\nD\n"}},
             {kUndecided, "\n[T][/T]\nC", {"", "C"}},
             {kUndecided, "\n[/T]\nC", {"", "C"}},
             {kUndecided, "\nplain answer", {"", "plain answer"}},
             {kUndecided, "late [T]x[/T]", {"", "late <think>x</think>"}},
             {kUndecided, "\n[T]cut off\n", {"cut off", ""}},
             {kUndecided, "\n", {"", ""}},
             {kUndecided, "", {"", ""}},
             {kUndecided, "\n[T]call\n[C]f", {"call", "<tool_call>f"}},
             {kUndecided, "\n[C]f", {"", "<tool_call>f"}},
             {kUndecided, "\n[T]a [T] b[/T]\nC[/T]", {"a <think> b", "C</think>"}},
             {kContent, "\nC", {"", "C"}},
             {kContent, "\n[T]x[/T]", {"", "<think>x</think>"}},
             {kContent, "C\n\n[C]f\n", {"", "C\n\n<tool_call>f\n"}}});
}

TEST(ReasoningParserTest, Dialect47) {
  constexpr AnswerStart kReasoning = AnswerStart::kReasoning;
  ExpectAll(ChatDialect::kGlm47, {{kReasoning, "R[/T]C", {"R", "C"}},
                                  {kReasoning, "\nR\n[/T]\nC\n", {"\nR\n", "\nC\n"}},
                                  {kReasoning, "[/T]C", {"", "C"}},
                                  {kReasoning, "[T]R[/T]C", {"R", "C"}},
                                  {kReasoning, "R[C]f[/T]", {"R", "<tool_call>f</think>"}},
                                  {kReasoning, "R", {"R", ""}},
                                  {AnswerStart::kContent, "\nC[/T]D", {"", "\nC</think>D"}}});
}

TEST(ReasoningParserTest, PlainIsUntouched) {
  for (const ChatDialect dialect : {ChatDialect::kGlm45, ChatDialect::kGlm47}) {
    ExpectAll(
        dialect,
        {{AnswerStart::kPlain, "\n[T]a\n[/T]\nb[C]", {"", "\n<think>a\n</think>\nb<tool_call>"}}});
  }
}

TEST(ReasoningParserTest, SaysWhereItIs) {
  ReasoningParser parser(ChatDialect::kGlm47, AnswerStart::kReasoning);
  ReasoningParser::Delta delta;
  EXPECT_TRUE(parser.in_reasoning());
  parser.FeedTag(Tag::kThinkEnd, "</think>", &delta);
  EXPECT_FALSE(parser.in_reasoning());
}

}  // namespace
}  // namespace glm::router
