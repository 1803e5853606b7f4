#define PCRE2_CODE_UNIT_WIDTH 8
#include "router/text/split.h"

#include <pcre2.h>

#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "router/text/utf8.h"

namespace glm::router {
namespace {

constexpr size_t kJitStackBytesMax = 8 << 20;

// The same pattern as PCRE2 spells it. In Oniguruma \s is Unicode's White_Space, while PCRE2's \s
// also has U+180E; escapes of which the two engines' tables differ are refused.
absl::StatusOr<std::string> ToPcre2(std::string_view pattern) {
  static constexpr std::string_view kSameLetters = "rntfdDpPx";
  std::string spelled;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '}' && i + 1 < pattern.size() && pattern[i + 1] == '+') {
      return absl::InvalidArgumentError("pattern: a possessive {n,m}+ is not supported");
    }
    if (c != '\\' || i + 1 == pattern.size()) {
      spelled += c;
      continue;
    }
    const char escaped = pattern[++i];
    const bool is_letter = (escaped >= 'a' && escaped <= 'z') || (escaped >= 'A' && escaped <= 'Z');
    const bool is_digit = escaped >= '0' && escaped <= '9';
    if (escaped == 's' || escaped == 'S') {
      spelled += escaped == 's' ? "\\p{White_Space}" : "\\P{White_Space}";
    } else if (is_digit || (is_letter && kSameLetters.find(escaped) == std::string_view::npos)) {
      return absl::InvalidArgumentError(
          absl::StrCat("pattern: the escape \\", std::string(1, escaped), " is not supported"));
    } else {
      spelled += c;
      spelled += escaped;
    }
  }
  return spelled;
}

std::string ErrorText(int error) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(error, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

// All that one call writes to.
class Search {
 public:
  explicit Search(const pcre2_code* code)
      : code_(code),
        limits_(pcre2_match_context_create(nullptr)),
        match_(pcre2_match_data_create(1, nullptr)) {
    pcre2_set_match_limit(limits_, Split::kMatchStepsMax);
    pcre2_set_heap_limit(limits_, Split::kMatchMemoryKib);
  }
  Search(const Search&) = delete;
  Search& operator=(const Search&) = delete;
  ~Search() {
    if (stack_ != nullptr) pcre2_jit_stack_free(stack_);
    pcre2_match_data_free(match_);
    pcre2_match_context_free(limits_);
  }

  // 1 with a match, PCRE2_ERROR_NOMATCH, or another error.
  int Next(std::string_view text, size_t from) {
    int found = Try(text, from);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT && stack_ == nullptr) {
      // The machine's stack was not enough: rare, so a larger one is made only then.
      stack_ = pcre2_jit_stack_create(64 << 10, kJitStackBytesMax, nullptr);
      pcre2_jit_stack_assign(limits_, nullptr, stack_);
      found = Try(text, from);
    }
    return found;
  }

  size_t begin() const { return pcre2_get_ovector_pointer(match_)[0]; }
  size_t end() const { return pcre2_get_ovector_pointer(match_)[1]; }

 private:
  int Try(std::string_view text, size_t from) {
    // An empty match would not move on. The text is known to be UTF-8.
    return pcre2_match(code_, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                       PCRE2_NOTEMPTY | PCRE2_NO_UTF_CHECK, match_, limits_);
  }

  const pcre2_code* code_;
  pcre2_match_context* limits_;
  pcre2_match_data* match_;
  pcre2_jit_stack* stack_ = nullptr;
};

// Bytes at the beginning of `text` that are whole characters.
size_t ValidBytes(std::string_view text) {
  constexpr uint64_t kHighBits = 0x8080808080808080;
  size_t i = 0;
  while (i < text.size()) {
    uint64_t eight;
    if (i + sizeof(eight) <= text.size()) {
      std::memcpy(&eight, text.data() + i, sizeof(eight));
      if ((eight & kHighBits) == 0) {
        i += sizeof(eight);
        continue;
      }
    }
    const Utf8Step step = ReadUtf8(text.substr(i));
    if (step.kind != Utf8Step::Kind::kCharacter) break;
    i += step.bytes;
  }
  return i;
}

// Bytes at the beginning of `text` that are no characters.
size_t InvalidBytes(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    const Utf8Step step = ReadUtf8(text.substr(i));
    if (step.kind == Utf8Step::Kind::kCharacter) break;
    i += step.bytes;
  }
  return i;
}

}  // namespace

void Split::CodeDelete::operator()(pcre2_real_code_8* code) const { pcre2_code_free(code); }

absl::StatusOr<Split> Split::Compile(std::string_view pattern, Gaps gaps) {
  if (static_cast<int64_t>(pattern.size()) > kPatternBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("pattern: ", pattern.size(), " bytes, at most ", kPatternBytesMax));
  }
  const absl::StatusOr<std::string> spelled = ToPcre2(pattern);
  if (!spelled.ok()) return spelled.status();
  int error = 0;
  PCRE2_SIZE place = 0;
  Split split;
  split.gaps_ = gaps;
  split.code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(spelled->data()), spelled->size(),
                                  PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &place,
                                  nullptr));
  if (split.code_ == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("pattern: ", ErrorText(error), " at byte ", place, " of ", *spelled));
  }
  split.is_machine_code_ = pcre2_jit_compile(split.code_.get(), PCRE2_JIT_COMPLETE) == 0;
  return split;
}

absl::Status Split::ForEach(std::string_view text,
                            absl::FunctionRef<void(std::string_view)> piece) const {
  Search search(code_.get());
  while (!text.empty()) {
    const std::string_view valid = text.substr(0, ValidBytes(text));
    size_t at = 0;
    while (at < valid.size()) {
      const int found = search.Next(valid, at);
      if (found < 0 && found != PCRE2_ERROR_NOMATCH) {
        return absl::ResourceExhaustedError(
            absl::StrCat("text: splitting it into words takes too much at its byte ", at, ": ",
                         ErrorText(found)));
      }
      const size_t begin = found > 0 ? search.begin() : valid.size();
      const size_t end = found > 0 ? search.end() : valid.size();
      if (begin > at && gaps_ == Gaps::kKeep) piece(valid.substr(at, begin - at));
      if (end > begin) piece(valid.substr(begin, end - begin));
      at = end;
    }
    text.remove_prefix(valid.size());
    const std::string_view invalid = text.substr(0, InvalidBytes(text));
    if (!invalid.empty() && gaps_ == Gaps::kKeep) piece(invalid);
    text.remove_prefix(invalid.size());
  }
  return absl::OkStatus();
}

}  // namespace glm::router
