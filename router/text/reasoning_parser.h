// Tells reasoning from content in an answer that comes in pieces.
//
// Who calls: AnswerText, with text, and with the model's tags (<think>, </think>, <tool_call>)
// apart from it: tags are told by token id, so the same characters written as ordinary text stay
// text. A pure state machine: one object per answer, one thread.
//
// In the 4.5 dialect the line ends that the model writes around its tags belong to the tags: those
// at the beginning of the answer, of the reasoning and of the content, and at the end of the
// reasoning, are left out, as the chat template does when it renders the answer again. The 4.7
// dialect writes none, so there everything is text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "router/text/chat_format.h"

namespace glm::router {

class ReasoningParser {
 public:
  enum class Tag : uint8_t { kThink, kThinkEnd, kToolCall };

  struct Delta {
    std::string content;
    std::string reasoning;
  };

  ReasoningParser(ChatDialect dialect, AnswerStart start);

  /// Text between tags. What is certain of it is appended to `delta`; only line ends are ever held
  /// back, and those left at the end of an answer are dropped.
  void FeedText(std::string_view text, Delta* delta);

  /// A tag, and how it is written. <think> opens the reasoning where it may, </think> or
  /// <tool_call> ends it (a model may forget </think> before a call). Any other tag, and
  /// <tool_call> itself, is text.
  void FeedTag(Tag tag, std::string_view text, Delta* delta);

  bool in_reasoning() const { return state_ == AnswerStart::kReasoning; }

 private:
  void Enter(AnswerStart state);
  void AppendReasoning(std::string_view text, Delta* delta);

  AnswerStart state_;  // as if the answer began here
  const bool trims_line_ends_;
  bool has_text_ = false;      // the reasoning, or the content, has begun
  size_t line_ends_held_ = 0;  // dropped if the reasoning ends here
};

}  // namespace glm::router
