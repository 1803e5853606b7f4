// A tokenizer.json, read and checked: everything in it that matters, and nothing that would change
// results and is not implemented.
//
// Who calls: Tokenizer::FromJson. Pure function; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "router/text/split.h"

namespace glm::router {

struct TokenizerJson {
  static constexpr int64_t kBytesMax = 64 << 20;
  static constexpr int32_t kIdMax = (1 << 22) - 1;

  struct Token {
    std::string content;  // of the vocabulary: each byte written as one letter
    int32_t id = 0;
  };
  struct AddedToken {
    std::string content;  // as it stands in text
    int32_t id = 0;
    bool special = false;
    bool normalized = false;  // found only after the others, in what they leave
  };
  struct Merge {
    std::string left;
    std::string right;
  };

  std::string split_pattern;
  Split::Gaps split_gaps = Split::Gaps::kKeep;
  bool ignore_merges = false;
  std::vector<Token> vocabulary;  // ids from 0 to kIdMax, each once
  std::vector<Merge> merges;      // by rank
  std::vector<AddedToken> added;
};

/// INVALID_ARGUMENT names the field and its value. `truncation` and `padding` are not looked at:
/// they are settings of a call, and encoding a prompt has neither.
absl::StatusOr<TokenizerJson> ParseTokenizerJson(std::string_view json);

}  // namespace glm::router
