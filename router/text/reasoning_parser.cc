#include "router/text/reasoning_parser.h"

#include <algorithm>

namespace glm::router {

ReasoningParser::ReasoningParser(ChatDialect dialect, AnswerStart start)
    : state_(start),
      trims_line_ends_(dialect == ChatDialect::kGlm45 && start != AnswerStart::kPlain) {}

void ReasoningParser::FeedText(std::string_view text, Delta* delta) {
  if (trims_line_ends_ && !has_text_) {
    text.remove_prefix(std::min(text.find_first_not_of('\n'), text.size()));
  }
  if (text.empty()) return;
  has_text_ = true;
  if (state_ == AnswerStart::kUndecided) state_ = AnswerStart::kContent;
  if (state_ == AnswerStart::kReasoning) {
    AppendReasoning(text, delta);
  } else {
    delta->content.append(text);
  }
}

void ReasoningParser::FeedTag(Tag tag, std::string_view text, Delta* delta) {
  switch (state_) {
    case AnswerStart::kUndecided:
      if (tag == Tag::kThink) return Enter(AnswerStart::kReasoning);
      // A lone </think> closes an empty reasoning.
      if (tag == Tag::kThinkEnd) return Enter(AnswerStart::kContent);
      break;
    case AnswerStart::kReasoning:
      if (tag == Tag::kThink && !has_text_) return;  // the prompt had opened it already
      if (tag == Tag::kThinkEnd) return Enter(AnswerStart::kContent);
      if (tag == Tag::kToolCall) Enter(AnswerStart::kContent);
      break;
    case AnswerStart::kContent:
    case AnswerStart::kPlain:
      break;
  }
  FeedText(text, delta);
}

void ReasoningParser::Enter(AnswerStart state) {
  state_ = state;
  has_text_ = false;
  line_ends_held_ = 0;
}

void ReasoningParser::AppendReasoning(std::string_view text, Delta* delta) {
  if (!trims_line_ends_) {
    delta->reasoning.append(text);
    return;
  }
  const size_t last = text.find_last_not_of('\n');
  const size_t kept = last == std::string_view::npos ? 0 : last + 1;
  if (kept > 0) {
    delta->reasoning.append(line_ends_held_, '\n');
    delta->reasoning.append(text.substr(0, kept));
    line_ends_held_ = 0;
  }
  line_ends_held_ += text.size() - kept;
}

}  // namespace glm::router
