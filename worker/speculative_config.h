// How tokens are drafted, as the --speculative-config flags say it.
//
// Who calls: main, at start.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace glm::worker {

/// What stands after "--speculative-config.", or in the object of --speculative-config.
struct SpeculativeConfig {
  std::string method;  // "mtp"; empty: not said
  std::optional<int32_t> num_speculative_tokens;
};

/// Reads `{"method": "mtp", "num_speculative_tokens": 3}`. INVALID_ARGUMENT names a key that is
/// unknown or of a wrong type.
absl::StatusOr<SpeculativeConfig> ReadSpeculativeConfig(const std::string& json);

/// How many drafts the flags ask for: `json` is --speculative-config or empty, `parts` are the
/// others; not both. None said: 0. A method alone drafts 1. INVALID_ARGUMENT naming the flag, its
/// value and the limit.
absl::StatusOr<int32_t> DraftsAsked(const std::string& json, const SpeculativeConfig& parts);

}  // namespace glm::worker
