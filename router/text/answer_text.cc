#include "router/text/answer_text.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace glm::router {

AnswerText::AnswerText(const TextModel* model, AnswerTextOptions options)
    : model_(model),
      detokenizer_(&model->tokenizer(), {options.skip_special_tokens, std::move(options.stop)}),
      parser_(model->dialect(), options.start),
      has_tags_(options.start != AnswerStart::kPlain) {}

AnswerText::Delta AnswerText::Feed(absl::Span<const int32_t> ids) {
  ReasoningParser::Delta delta;
  for (const int32_t id : ids) {
    if (stopped()) break;
    const int64_t begin = detokenizer_.decoded_bytes();
    const std::string text = detokenizer_.Feed({&id, 1});
    if (has_tags_) NoteTag(id, begin);
    Release(text, &delta);
  }
  return Close(std::move(delta));
}

AnswerText::Delta AnswerText::Finish() {
  if (stopped()) return {"", "", true};
  ReasoningParser::Delta delta;
  Release(detokenizer_.Finish(), &delta);
  return Close(std::move(delta));
}

void AnswerText::NoteTag(int32_t id, int64_t begin) {
  const TagIds& tags = model_->tags();
  std::optional<ReasoningParser::Tag> tag;
  if (id == tags.think) tag = ReasoningParser::Tag::kThink;
  if (id == tags.think_end) tag = ReasoningParser::Tag::kThinkEnd;
  if (id == tags.tool_call) tag = ReasoningParser::Tag::kToolCall;
  if (!tag) return;
  // An incomplete character before the tag became U+FFFD with it, and is not the tag's. A tag that
  // is a special token has no text.
  const int64_t end = detokenizer_.decoded_bytes();
  const int64_t tag_bytes = static_cast<int64_t>(model_->tokenizer().TokenBytes(id).size());
  marks_.push_back({std::max(begin, end - tag_bytes), end, *tag});
}

void AnswerText::Release(std::string_view text, ReasoningParser::Delta* delta) {
  const auto take = [&text, this](int64_t until) {
    const int64_t bytes =
        std::clamp<int64_t>(until - released_bytes_, 0, static_cast<int64_t>(text.size()));
    const std::string_view taken = text.substr(0, bytes);
    text.remove_prefix(bytes);
    released_bytes_ += bytes;
    return taken;
  };
  while (!marks_.empty()) {
    const Mark& mark = marks_.front();
    parser_.FeedText(take(mark.begin), delta);
    if (released_bytes_ < mark.begin) return;
    tag_text_.append(take(mark.end));
    if (released_bytes_ < mark.end) return;
    parser_.FeedTag(mark.tag, std::exchange(tag_text_, {}), delta);
    marks_.pop_front();
  }
  released_bytes_ += static_cast<int64_t>(text.size());
  parser_.FeedText(text, delta);
}

AnswerText::Delta AnswerText::Close(ReasoningParser::Delta delta) {
  // Of a tag in which a stop string begins only some text is left.
  if (stopped()) parser_.FeedText(std::exchange(tag_text_, {}), &delta);
  return {std::move(delta.content), std::move(delta.reasoning), stopped()};
}

}  // namespace glm::router
