#define PCRE2_CODE_UNIT_WIDTH 8
#include "router/text/split.h"

#include <pcre2.h>

#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "router/text/utf8.h"

namespace glm::router {
namespace {

constexpr size_t kJitStackBytesMax = 8 << 20;

// Letters and numbers of Unicode 15 and 16, which Oniguruma knows and PCRE2 10.42 does not. To a
// PCRE2 that knows them they say nothing new.
constexpr std::string_view kNewerLetters =
    R"(\x{1c89}-\x{1c8a}\x{a7cb}-\x{a7cd}\x{a7da}-\x{a7dc}\x{105c0}-\x{105f3}\x{10d4a}-\x{10d65})"
    R"(\x{10d6f}-\x{10d85}\x{10ec2}-\x{10ec4}\x{1123f}-\x{11240}\x{11380}-\x{11389}\x{1138b})"
    R"(\x{1138e}\x{11390}-\x{113b5}\x{113b7}\x{113d1}\x{113d3}\x{11bc0}-\x{11be0}\x{11f02})"
    R"(\x{11f04}-\x{11f10}\x{11f12}-\x{11f33}\x{1342f}\x{13441}-\x{13446}\x{13460}-\x{143fa})"
    R"(\x{16100}-\x{1611d}\x{16d40}-\x{16d6c}\x{18cff}\x{1b132}\x{1b155}\x{1df25}-\x{1df2a})"
    R"(\x{1e030}-\x{1e06d}\x{1e4d0}-\x{1e4eb}\x{1e5d0}-\x{1e5ed}\x{1e5f0}\x{2b739})"
    R"(\x{2ebf0}-\x{2ee5d}\x{31350}-\x{323af})";
constexpr std::string_view kNewerNumbers =
    R"(\x{10d40}-\x{10d49}\x{116d0}-\x{116e3}\x{11bf0}-\x{11bf9}\x{11f50}-\x{11f59})"
    R"(\x{16130}-\x{16139}\x{16d70}-\x{16d79}\x{1ccf0}-\x{1ccf9}\x{1d2c0}-\x{1d2d3})"
    R"(\x{1e4f0}-\x{1e4f9}\x{1e5f1}-\x{1e5fa})";

// Spells a pattern of Oniguruma's as PCRE2 reads it. In Oniguruma \s is Unicode's White_Space,
// while PCRE2's \s also has U+180E; escapes of which the two engines' tables differ are refused.
class Speller {
 public:
  explicit Speller(std::string_view pattern) : pattern_(pattern) {}

  absl::StatusOr<std::string> Spell() {
    while (at_ < pattern_.size()) {
      absl::Status status = pattern_[at_] == '\\' ? SpellEscape() : SpellPlain();
      if (!status.ok()) return status;
    }
    return std::move(out_);
  }

 private:
  static absl::Status Refuse(const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat("pattern: ", what, " is not supported"));
  }

  absl::Status SpellPlain() {
    const char c = pattern_[at_++];
    if (c == '}' && pattern_.substr(at_).starts_with('+')) return Refuse("a possessive {n,m}+");
    if (c == '[' && in_class_) return Refuse("a [ inside []");
    if (c == '[') in_class_ = true;
    if (c == ']') in_class_ = false;
    out_ += c;
    return absl::OkStatus();
  }

  absl::Status SpellEscape() {
    static constexpr std::string_view kSameLetters = "rntfdDpPx";
    const std::string_view rest = pattern_.substr(at_);
    if (rest.size() == 1) return Refuse("a \\ at the end");
    const char escaped = rest[1];
    const bool is_letter = (escaped >= 'a' && escaped <= 'z') || (escaped >= 'A' && escaped <= 'Z');
    const bool is_digit = escaped >= '0' && escaped <= '9';
    if (escaped == 's' || escaped == 'S') {
      out_ += escaped == 's' ? "\\p{White_Space}" : "\\P{White_Space}";
      at_ += 2;
    } else if (is_digit || (is_letter && kSameLetters.find(escaped) == std::string_view::npos)) {
      return Refuse(absl::StrCat("the escape \\", std::string(1, escaped)));
    } else if (rest.starts_with("\\p{L}")) {
      SpellProperty(rest.substr(0, 5), kNewerLetters);
    } else if (rest.starts_with("\\p{N}")) {
      SpellProperty(rest.substr(0, 5), kNewerNumbers);
    } else {
      // The braces of a name are no quantifier's.
      const bool has_name = rest.substr(2).starts_with('{') && is_letter;
      const size_t close = has_name ? rest.find('}') : std::string_view::npos;
      const size_t bytes = close == std::string_view::npos ? 2 : close + 1;
      out_ += rest.substr(0, bytes);
      at_ += bytes;
    }
    return absl::OkStatus();
  }

  void SpellProperty(std::string_view property, std::string_view newer) {
    if (!in_class_) out_ += '[';
    out_ += property;
    out_ += newer;
    if (!in_class_) out_ += ']';
    at_ += property.size();
  }

  const std::string_view pattern_;
  size_t at_ = 0;
  bool in_class_ = false;
  std::string out_;
};

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
  const absl::StatusOr<std::string> spelled = Speller(pattern).Spell();
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
