// Token ids that come bit by bit to text that can be shown: whole characters only, cut at a stop
// string.
//
// Who calls: AnswerText. A pure state machine: one object per answer, one thread, no I/O. The
// pieces that it gives add up to the whole decoding (up to the stop string), however the ids were
// split.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/types/span.h"
#include "router/text/stop_matcher.h"
#include "router/text/tokenizer.h"

namespace glm::router {

struct DetokenizerOptions {
  bool skip_special_tokens = true;
  /// Each 1 or more bytes of valid UTF-8. The text ends before the first of them to be complete.
  std::vector<std::string> stop = {};
};

class Detokenizer {
 public:
  /// `tokenizer` outlives this.
  Detokenizer(const Tokenizer* tokenizer, DetokenizerOptions options);

  /// The text that is certain after these ids. Held back: an incomplete character, and what may be
  /// the beginning of a stop string. After a stop: nothing.
  std::string Feed(absl::Span<const int32_t> ids);

  /// The rest: what was held back, an incomplete character as U+FFFD. To be called once.
  std::string Finish();

  /// True once a stop string was found; ids are ignored from then on.
  bool stopped() const { return stop_index_.has_value(); }
  /// The one that was found. REQUIRES: stopped().
  const std::string& stop() const { return matcher_.stop(*stop_index_); }

  /// Bytes of text decoded so far, given out or held back; not the incomplete character.
  int64_t decoded_bytes() const { return decoded_bytes_; }

 private:
  void Decode(std::string_view bytes);
  void Append(std::string_view characters);
  std::string Release();

  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  StopMatcher matcher_;
  std::optional<size_t> stop_index_;
  std::string pending_;  // the beginning of a character, at most 3 bytes
  std::string ready_;    // whole characters not given out
  int64_t decoded_bytes_ = 0;
};

}  // namespace glm::router
