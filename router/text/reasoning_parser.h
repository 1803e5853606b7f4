// Tells reasoning from content in an answer that comes in pieces.
//
// Who calls: AnswerText, with text and with the model's tags (<think>, </think>, <tool_call>) apart
// from it: tags are told by token id, so the same characters written as ordinary text stay text.
// A pure state machine: one object per answer, one thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "router/text/chat_format.h"

namespace glm::router {

class ReasoningParser {
 public:
  enum class Tag : uint8_t { kThink, kThinkEnd, kToolCall };

  /// What came out of some text.
  struct Delta {
    std::string content;
    std::string reasoning;
  };

  /// With AnswerStart::kPlain all is content, unchanged.
  ReasoningParser(ChatDialect dialect, AnswerStart start);

  void Text(std::string_view text, Delta* delta);
  /// `text` is the tag as written; where it means nothing it is part of the text.
  void Take(Tag tag, std::string_view text, Delta* delta);
  /// The end of the answer. Gives nothing more: what is held back are line ends that are dropped.
  bool in_reasoning() const { return state_ == State::kReasoning; }

 private:
  enum class State : uint8_t { kPlain, kUndecided, kReasoning, kContent };

  void Content(std::string_view text, Delta* delta);
  void Reasoning(std::string_view text, Delta* delta);

  State state_;
  bool trims_line_ends_;       // the 4.5 dialect writes them around the tags
  bool begun_ = false;         // the current part has text
  size_t line_ends_held_ = 0;  // of reasoning: dropped if </think> follows
};

}  // namespace glm::router
