// Byte-level BPE, read from a checkpoint's tokenizer.json: text to token ids and token ids to
// bytes, equal to what Hugging Face's tokenizers gives for the same file.
//
// Who calls: TextModel, Detokenizer. Immutable once made; every method is const and may be called
// from any number of threads at once.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "router/text/added_tokens.h"
#include "router/text/merges.h"
#include "router/text/split.h"
#include "router/text/tokenizer_json.h"

namespace glm::router {

class Tokenizer {
 public:
  /// From the text of a tokenizer.json. INVALID_ARGUMENT names the field that is wrong, or that
  /// would change results and is not implemented.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> FromJson(std::string_view json);
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

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

  /// The id of the token that tokenizer.json writes as `content`, added or not.
  std::optional<int32_t> FindToken(std::string_view content) const;

  /// One more than the greatest id.
  int32_t vocabulary() const { return static_cast<int32_t>(tokens_.size()); }

 private:
  struct Token {
    std::string content;  // as tokenizer.json writes it
    std::string bytes;
    bool special = false;
  };

  explicit Tokenizer(Split split) : split_(std::move(split)) {}

  absl::Status BuildTokens(const TokenizerJson& parts);
  absl::Status BuildMerges(const TokenizerJson& parts);
  // Encodes the text between the added tokens, and those.
  absl::Status EncodeAround(const AddedTokens& added, std::string_view text,
                            std::vector<int32_t>* ids) const;
  absl::Status EncodeText(std::string_view text, std::vector<int32_t>* ids) const;

  std::vector<Token> tokens_;                                  // by id; without content: no token
  absl::flat_hash_map<std::string_view, int32_t> by_content_;  // of all tokens
  absl::flat_hash_map<std::string_view, int32_t> by_bytes_;    // of the vocabulary
  AddedTokens added_first_;                                    // found in the text as it came
  AddedTokens added_second_;                                   // found in what the first leave
  Split split_;
  Merges merges_;
  bool ignore_merges_ = false;  // a piece that is a token as a whole is not merged
};

}  // namespace glm::router
