#include "router/text/detokenizer.h"

#include <utility>

#include "proto/base/log.h"
#include "router/text/utf8.h"

namespace glm::router {

Detokenizer::Detokenizer(const Tokenizer* tokenizer, DetokenizerOptions options)
    : tokenizer_(tokenizer),
      skip_special_tokens_(options.skip_special_tokens),
      matcher_(std::move(options.stop)) {}

std::string Detokenizer::Feed(absl::Span<const int32_t> ids) {
  for (const int32_t id : ids) {
    if (stopped()) break;
    if (skip_special_tokens_ && tokenizer_->IsSpecial(id)) continue;
    Decode(tokenizer_->TokenBytes(id));
  }
  return Release();
}

std::string Detokenizer::Finish() {
  if (!pending_.empty()) Append(kReplacement);
  pending_.clear();
  return std::exchange(ready_, {});
}

void Detokenizer::Decode(std::string_view bytes) {
  std::string joined;
  if (!pending_.empty()) {
    joined = std::exchange(pending_, {}).append(bytes);
    bytes = joined;
  }
  size_t whole = 0;  // bytes at the beginning that are characters, not appended yet
  while (whole < bytes.size() && !stopped()) {
    const Utf8Step step = ReadUtf8(bytes.substr(whole));
    if (step.kind == Utf8Step::Kind::kCharacter) {
      whole += step.bytes;
      continue;
    }
    Append(bytes.substr(0, whole));
    bytes.remove_prefix(whole);
    whole = 0;
    if (step.kind == Utf8Step::Kind::kInvalid) {
      Append(kReplacement);
    } else {
      pending_ = bytes;
    }
    bytes.remove_prefix(step.bytes);
  }
  Append(bytes.substr(0, whole));
}

void Detokenizer::Append(std::string_view characters) {
  if (stopped() || characters.empty()) return;
  const std::optional<StopMatcher::Match> match = matcher_.Feed(characters);
  decoded_bytes_ += static_cast<int64_t>(characters.size());
  if (!match) {
    ready_.append(characters);
    return;
  }
  stop_index_ = match->stop_index;
  ready_.append(characters.substr(0, match->end));
  CHECK_GE(ready_.size(), match->bytes);  // its beginning was held back
  ready_.resize(ready_.size() - match->bytes);
}

std::string Detokenizer::Release() {
  if (stopped()) return std::exchange(ready_, {});
  CHECK_GE(ready_.size(), matcher_.held_bytes());
  const size_t certain = ready_.size() - matcher_.held_bytes();
  std::string held = ready_.substr(certain);
  ready_.resize(certain);
  return std::exchange(ready_, std::move(held));
}

}  // namespace glm::router
