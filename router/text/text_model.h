// All that the router knows of a model's text: its tokenizer, its chat format, its tags.
//
// Who calls: main loads it once; every exchange encodes its prompt with it and makes an AnswerText
// of it. Immutable after Load; const methods may be called from any number of threads at once.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "router/text/chat_format.h"
#include "router/text/tokenizer.h"

namespace glm::router {

/// The tags' token ids; they differ between the checkpoints.
struct TagIds {
  int32_t think = -1;
  int32_t think_end = -1;
  int32_t tool_call = -1;
};

struct ChatPrompt {
  std::vector<int32_t> ids;
  AnswerStart start = AnswerStart::kUndecided;  // where an answer to it begins
};

class TextModel {
 public:
  /// From a checkpoint's folder: tokenizer.json, and chat_template.jinja or the chat_template of
  /// tokenizer_config.json. Errors name the file and the field.
  static absl::StatusOr<std::unique_ptr<const TextModel>> Load(const std::string& folder);

  /// `text` as it is, nothing put before it.
  absl::StatusOr<std::vector<int32_t>> EncodePrompt(std::string_view text) const;
  absl::StatusOr<ChatPrompt> EncodeChat(const Chat& chat) const;
  /// The text of `ids` without special tokens; ids beyond the vocabulary are nothing.
  std::string Decode(absl::Span<const int32_t> ids) const;

  const Tokenizer& tokenizer() const { return *tokenizer_; }
  ChatDialect dialect() const { return dialect_; }
  const TagIds& tags() const { return tags_; }

 private:
  TextModel() = default;

  std::unique_ptr<const Tokenizer> tokenizer_;
  ChatDialect dialect_ = ChatDialect::kGlm45;
  TagIds tags_;
};

}  // namespace glm::router
