#include "router/text/tokenizer.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"
#include "router/text/utf8.h"

namespace glm::router {
namespace {

// Byte-level BPE writes each byte as one letter: the printable ones of Latin-1 as themselves, the
// others, in order, as U+0100 and on.
bool IsWrittenAsItself(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr int kLetterMax = 0x143;

// By letter: the byte, or -1.
std::array<int16_t, kLetterMax + 1> LettersToBytes() {
  std::array<int16_t, kLetterMax + 1> bytes;
  bytes.fill(-1);
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    bytes[IsWrittenAsItself(byte) ? byte : next++] = static_cast<int16_t>(byte);
  }
  CHECK_EQ(next, kLetterMax + 1);
  return bytes;
}

// The bytes that `content` spells, or nothing if it has a character that is no such letter.
std::optional<std::string> SpelledBytes(std::string_view content) {
  static const std::array<int16_t, kLetterMax + 1> kBytes = LettersToBytes();
  std::string bytes;
  for (size_t i = 0; i < content.size();) {
    // Letters have one or two bytes of UTF-8.
    const uint8_t first = static_cast<uint8_t>(content[i]);
    const size_t length = first < 0x80 ? 1 : 2;
    if (i + length > content.size() || first >= 0xE0) return std::nullopt;
    const int letter =
        length == 1 ? first : (first & 0x1F) << 6 | (static_cast<uint8_t>(content[i + 1]) & 0x3F);
    if (letter > kLetterMax || kBytes[letter] < 0) return std::nullopt;
    bytes += static_cast<char>(kBytes[letter]);
    i += length;
  }
  return bytes;
}

absl::Status Wrong(absl::string_view field, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: ", field, ": ", what));
}

}  // namespace

absl::StatusOr<std::unique_ptr<const Tokenizer>> Tokenizer::FromJson(std::string_view json) {
  const absl::StatusOr<TokenizerJson> parts = ParseTokenizerJson(json);
  if (!parts.ok()) return parts.status();
  absl::StatusOr<Split> split = Split::Compile(parts->split_pattern, parts->split_gaps);
  if (!split.ok()) return Wrong("pre_tokenizer", split.status().message());
  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer(*std::move(split)));
  tokenizer->ignore_merges_ = parts->ignore_merges;
  if (absl::Status s = tokenizer->BuildTokens(*parts); !s.ok()) return s;
  if (absl::Status s = tokenizer->BuildMerges(*parts); !s.ok()) return s;
  return tokenizer;
}

absl::Status Tokenizer::BuildTokens(const TokenizerJson& parts) {
  int32_t id_max = -1;
  for (const TokenizerJson::Token& token : parts.vocabulary) id_max = std::max(id_max, token.id);
  for (const TokenizerJson::AddedToken& token : parts.added) id_max = std::max(id_max, token.id);
  // Never resized from here on: the maps' keys are views of the tokens.
  tokens_.resize(id_max + 1);
  const auto set = [this](std::string_view content, int32_t id) {
    std::optional<std::string> bytes = SpelledBytes(content);
    const bool spelled = bytes.has_value();
    tokens_[id].content = content;
    // What is not spelled in letters for bytes stands for itself, as ByteLevel's decoder has it.
    tokens_[id].bytes = spelled ? *std::move(bytes) : std::string(content);
    return spelled;
  };
  for (const TokenizerJson::Token& token : parts.vocabulary) {
    const bool spelled = set(token.content, token.id);
    by_content_.emplace(tokens_[token.id].content, token.id);
    if (spelled) by_bytes_.emplace(tokens_[token.id].bytes, token.id);
  }
  for (const TokenizerJson::AddedToken& token : parts.added) {
    const auto known = by_content_.find(token.content);
    if (known != by_content_.end() ? known->second != token.id
                                   : !tokens_[token.id].content.empty()) {
      return Wrong("added_tokens",
                   absl::StrCat("\"", token.content, "\" has the id ", token.id, ", but the id of ",
                                known != by_content_.end() ? "this text is another"
                                                           : "another token is this"));
    }
    if (known == by_content_.end()) {
      set(token.content, token.id);
      by_content_.emplace(tokens_[token.id].content, token.id);
    }
    tokens_[token.id].special = token.special;
    (token.normalized ? added_second_ : added_first_).Add(token.content, token.id);
  }
  return absl::OkStatus();
}

absl::Status Tokenizer::BuildMerges(const TokenizerJson& parts) {
  std::array<int32_t, 256> byte_ids;
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    const auto found = by_bytes_.find(std::string_view(&c, 1));
    if (found == by_bytes_.end()) {
      return Wrong("model.vocab", absl::StrCat("no token for the byte ", byte));
    }
    byte_ids[byte] = found->second;
  }
  merges_.SetBytes(byte_ids);
  for (size_t rank = 0; rank < parts.merges.size(); ++rank) {
    const TokenizerJson::Merge& merge = parts.merges[rank];
    const auto left = by_content_.find(merge.left);
    const auto right = by_content_.find(merge.right);
    const auto merged = by_content_.find(absl::StrCat(merge.left, merge.right));
    if (left == by_content_.end() || right == by_content_.end() || merged == by_content_.end()) {
      return Wrong(absl::StrCat("model.merges[", rank, "]"),
                   absl::StrCat("\"", merge.left, "\", \"", merge.right,
                                "\" or the two joined is not in model.vocab"));
    }
    merges_.Add(left->second, right->second, static_cast<int32_t>(rank), merged->second);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(std::string_view text,
                                                       AddedInText added) const {
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4 + 1);
  absl::Status status = added == AddedInText::kParse ? EncodeAround(added_first_, text, &ids)
                                                     : EncodeText(text, &ids);
  if (!status.ok()) return status;
  return ids;
}

absl::Status Tokenizer::EncodeAround(const AddedTokens& added, std::string_view text,
                                     std::vector<int32_t>* ids) const {
  size_t done = 0;
  while (true) {
    const AddedTokens::Match match = added.Find(text, done);
    const std::string_view between = text.substr(done, match.position - done);
    if (!between.empty()) {
      absl::Status status = &added == &added_first_ ? EncodeAround(added_second_, between, ids)
                                                    : EncodeText(between, ids);
      if (!status.ok()) return status;
    }
    if (match.position == std::string_view::npos) return absl::OkStatus();
    ids->push_back(match.id);
    done = match.position + match.bytes;
  }
}

absl::Status Tokenizer::EncodeText(std::string_view text, std::vector<int32_t>* ids) const {
  return split_.ForEach(text, [this, ids](std::string_view piece) {
    if (ignore_merges_) {
      const auto whole = by_bytes_.find(piece);
      if (whole != by_bytes_.end()) {
        ids->push_back(whole->second);
        return;
      }
    }
    merges_.Encode(piece, ids);
  });
}

std::string_view Tokenizer::TokenBytes(int32_t id) const {
  return id >= 0 && id < vocabulary() ? std::string_view(tokens_[id].bytes) : std::string_view();
}

bool Tokenizer::IsSpecial(int32_t id) const {
  return id >= 0 && id < vocabulary() && tokens_[id].special;
}

std::string Tokenizer::Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const {
  std::string bytes;
  for (const int32_t id : ids) {
    if (!(skip_special_tokens && IsSpecial(id))) bytes.append(TokenBytes(id));
  }
  return ReplaceInvalidUtf8(bytes);
}

std::optional<int32_t> Tokenizer::FindToken(std::string_view content) const {
  const auto found = by_content_.find(content);
  if (found == by_content_.end()) return std::nullopt;
  return found->second;
}

}  // namespace glm::router
