// An answer's token ids, as they come, to what the client sees: content and reasoning, in whole
// characters, ended by a stop string.
//
// Who calls: Exchange, on its loop's thread; one object per answer. A pure state machine: the
// deltas add up to the same two texts however the ids were split. It sees every id that the worker
// delivers; special ones (the end of the turn among them) have no text.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "absl/types/span.h"
#include "router/text/detokenizer.h"
#include "router/text/reasoning_parser.h"
#include "router/text/text_model.h"

namespace glm::router {

struct AnswerTextOptions {
  /// ChatPrompt's for a chat. kPlain: all text is content, tags too (completions).
  AnswerStart start = AnswerStart::kPlain;
  /// Looked for in all of the answer's text, reasoning and tags included.
  /// Each 1 or more bytes of valid UTF-8.
  std::vector<std::string> stop = {};
  bool skip_special_tokens = true;
};

class AnswerText {
 public:
  struct Delta {
    std::string content;
    std::string reasoning;
    bool stopped = false;  // a stop string was found: the answer ends here, cancel the rest
  };

  /// `model` outlives this.
  AnswerText(const TextModel* model, AnswerTextOptions options);

  Delta Feed(absl::Span<const int32_t> ids);
  /// What was held back, once no id will come (stop id, length). Empty after a stop string.
  Delta Finish();

  bool stopped() const { return detokenizer_.stopped(); }
  /// The stop string that was found. REQUIRES: stopped().
  const std::string& stop() const { return detokenizer_.stop(); }

 private:
  // Where in the whole text a tag's token stands, not yet given to the parser.
  struct Mark {
    int64_t begin;
    int64_t end;
    ReasoningParser::Tag tag;
  };

  void NoteTag(int32_t id, int64_t begin);
  void Release(std::string_view text, ReasoningParser::Delta* delta);
  Delta Close(ReasoningParser::Delta delta);

  const TextModel* model_;
  Detokenizer detokenizer_;
  ReasoningParser parser_;
  const bool has_tags_;
  std::deque<Mark> marks_;
  std::string tag_text_;        // of the first mark, as far as it was released
  int64_t released_bytes_ = 0;  // of the whole text
};

}  // namespace glm::router
