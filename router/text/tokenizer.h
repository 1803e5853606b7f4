// Byte-level BPE, read from a checkpoint's tokenizer.json: text to token ids and token ids to
// bytes, equal to what Hugging Face's tokenizers gives for the same file.
//
// Who calls: TextModel, Detokenizer. Immutable after Load; every method is const and may be called
// from any number of threads at once.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "router/text/added_tokens.h"
#include "router/text/merges.h"
#include "router/text/split.h"

namespace glm::router {

class Tokenizer {
 public:
  static constexpr int64_t kFileBytesMax = 64 << 20;
  static constexpr int32_t kIdMax = (1 << 22) - 1;

  /// From the text of a tokenizer.json. INVALID_ARGUMENT names the field that is wrong, or that
  /// would change results and is not implemented.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> FromJson(std::string_view json);

  /// Whether the content of added tokens that stands in the text becomes those tokens, as in
  /// Hugging Face's tokenizers, or is ordinary text.
  enum class AddedInText { kParse, kIgnore };

  /// Adds no token of its own (no beginning of sequence).
  /// RESOURCE_EXHAUSTED when the split pattern exceeds its bound on some piece.
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              AddedInText added = AddedInText::kParse) const;

  /// The bytes of a token; empty for an id that the vocabulary does not have. Valid as long as the
  /// tokenizer.
  std::string_view TokenBytes(int32_t id) const;

  /// True for added tokens that are marked special: not part of an answer's text.
  bool IsSpecial(int32_t id) const;

  /// All bytes of `ids`, those that are no UTF-8 replaced by U+FFFD.
  std::string Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const;

  /// The id of the token with just this text, added or not.
  std::optional<int32_t> FindToken(std::string_view text) const;

  /// One more than the greatest id.
  int32_t vocabulary() const { return static_cast<int32_t>(tokens_.size()); }

 private:
  friend class TokenizerReader;

  struct Token {
    std::string bytes;
    bool special = false;
  };

  Tokenizer() = default;

  absl::Status EncodeText(std::string_view text, std::vector<int32_t>* ids) const;

  std::vector<Token> tokens_;                                // by id
  absl::flat_hash_map<std::string_view, int32_t> by_bytes_;  // of the vocabulary; views of tokens_
  AddedTokens added_first_;                                  // found in the text as it came
  AddedTokens added_second_;                                 // found in what the first leave
  std::optional<Split> split_;
  Merges merges_;
  bool ignore_merges_ = false;  // a piece that is a token as a whole is not merged
};

}  // namespace glm::router
