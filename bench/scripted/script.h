// What a scripted worker does: how fast, what is wrong with it, and what it answers.
//
// Values and pure functions; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace glm::bench {

/// How a worker behaves.
struct Script {
  enum class Mode : uint8_t {
    kServe,
    kHang,    // says nothing at all, heartbeats included; the connection lives
    kStall,   // heartbeats say that a step is under way that does not end
    kRefuse,  // every new request is refused with RESOURCE_EXHAUSTED
    kFail,    // every new request is refused with INTERNAL
  };
  Mode mode = Mode::kServe;
  double tokens_per_s = 50;              // of each running request; 0: as fast as it can
  double prefill_tokens_per_s = 50'000;  // of all prompts together; 0: at once
  double slow = 1;                       // all times are this much longer
  bool draining = false;                 // told to routers
  /// Share of the changes of its prefix cache that are lost, told twice, or told out of turn.
  double garble = 0;

  /// INVALID_ARGUMENT naming the field, its value and the limit.
  absl::Status Validate() const;
};

/// A script of JSON: {"mode": "hang", "tokens_per_s": 20, "slow": 4, ...}; what is not named is as
/// in `base`. INVALID_ARGUMENT for what is not known or out of its limits.
absl::StatusOr<Script> ParseScript(const std::string& json, const Script& base);

/// The ids that are answered: in [begin, end), and none of `never`.
struct AnswerIds {
  int32_t begin = 3;
  int32_t end = 1000;
  std::vector<int32_t> never;
};

/// What of the ids before decides on the next one; kept up id by id.
class AnswerState {
 public:
  void Take(int32_t id) { state_ = (state_ ^ static_cast<uint32_t>(id)) * 0x9E3779B97F4A7C15u; }
  int32_t Next(const AnswerIds& ids) const;

 private:
  uint64_t state_ = 17;
};

/// The first `count` tokens that a worker answers to a prompt, if nothing ends it.
std::vector<int32_t> ScriptedAnswer(absl::Span<const int32_t> prompt_ids, int32_t count,
                                    const AnswerIds& ids);

}  // namespace glm::bench
