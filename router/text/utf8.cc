#include "router/text/utf8.h"

#include "proto/base/log.h"

namespace glm::router {
namespace {

// Which second bytes may follow a lead byte, and how long the character is. The bounds shut out
// overlong forms (E0, F0), surrogates (ED) and what lies beyond U+10FFFF (F4).
struct Lead {
  size_t bytes;  // 0: begins no character
  uint8_t second_min;
  uint8_t second_max;
};

Lead ReadLead(uint8_t byte) {
  if (byte < 0xC2) return {0, 0, 0};
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

}  // namespace

Utf8Step ReadUtf8(std::string_view bytes) {
  DCHECK(!bytes.empty());
  const uint8_t first = static_cast<uint8_t>(bytes[0]);
  if (first < 0x80) return {Utf8Step::Kind::kCharacter, 1};
  const Lead lead = ReadLead(first);
  if (lead.bytes == 0) return {Utf8Step::Kind::kInvalid, 1};
  for (size_t i = 1; i < lead.bytes; ++i) {
    if (i == bytes.size()) return {Utf8Step::Kind::kIncomplete, i};
    const uint8_t next = static_cast<uint8_t>(bytes[i]);
    const uint8_t min = i == 1 ? lead.second_min : 0x80;
    const uint8_t max = i == 1 ? lead.second_max : 0xBF;
    if (next < min || next > max) return {Utf8Step::Kind::kInvalid, i};
  }
  return {Utf8Step::Kind::kCharacter, lead.bytes};
}

std::string ReplaceInvalidUtf8(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  while (!bytes.empty()) {
    const Utf8Step step = ReadUtf8(bytes);
    const bool whole = step.kind == Utf8Step::Kind::kCharacter;
    text.append(whole ? bytes.substr(0, step.bytes) : kReplacement);
    bytes.remove_prefix(step.bytes);
  }
  return text;
}

}  // namespace glm::router
