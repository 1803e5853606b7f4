// UTF-8, one character at a time, telling apart what is wrong from what is not complete yet.
//
// Who calls: Split, Detokenizer, Tokenizer. Pure functions; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace glm::router {

/// What stands at the beginning of some bytes.
struct Utf8Step {
  enum class Kind : uint8_t {
    kCharacter,   // one whole character
    kInvalid,     // bytes that begin no character, to be replaced by one U+FFFD
    kIncomplete,  // all of the bytes are the beginning of a character
  };
  Kind kind = Kind::kInvalid;
  size_t bytes = 0;  // 1 to 4
};

/// REQUIRES: `bytes` is not empty. Invalid bytes are grouped as Python and Rust do: the longest
/// beginning of a character is one group, any other byte is one by itself.
Utf8Step ReadUtf8(std::string_view bytes);

/// U+FFFD.
inline constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

/// The bytes with every invalid group replaced by U+FFFD, an incomplete character at the end too.
std::string ReplaceInvalidUtf8(std::string_view bytes);

}  // namespace glm::router
