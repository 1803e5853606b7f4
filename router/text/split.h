// Cuts text into the pieces within which byte-pair merging happens, by the pattern that a
// tokenizer.json carries.
//
// Who calls: Tokenizer. Const and thread-safe: the compiled pattern is shared, all that a match
// writes to belongs to the call.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

struct pcre2_real_code_8;

namespace glm::router {

class Split {
 public:
  /// What becomes of text that the pattern does not match: a piece of its own, or nothing.
  enum class Gaps : uint8_t { kKeep, kDrop };

  static constexpr int64_t kPatternBytesMax = 16 << 10;
  /// Bounds on the search for one piece: how often the pattern may try again, and its memory.
  static constexpr uint32_t kMatchStepsMax = 50'000'000;
  static constexpr uint32_t kMatchMemoryKib = 64 << 10;

  /// `pattern` is in the dialect of Oniguruma, which Hugging Face's tokenizers uses.
  /// INVALID_ARGUMENT when it does not compile, or has a part that means something else here.
  static absl::StatusOr<Split> Compile(std::string_view pattern, Gaps gaps);

  /// Gives the pieces of `text` to `piece`, in order. Bytes that are not UTF-8 match nothing: each
  /// run of them is a gap. RESOURCE_EXHAUSTED when one piece takes more than the bounds above; the
  /// pieces before it have been given by then.
  absl::Status ForEach(std::string_view text,
                       absl::FunctionRef<void(std::string_view)> piece) const;

  /// Whether the pattern runs as machine code; if not it is interpreted, several times slower.
  bool is_machine_code() const { return is_machine_code_; }

 private:
  struct CodeDelete {
    void operator()(pcre2_real_code_8* code) const;
  };

  Split() = default;

  std::unique_ptr<pcre2_real_code_8, CodeDelete> code_;
  Gaps gaps_ = Gaps::kKeep;
  bool is_machine_code_ = false;
};

}  // namespace glm::router
