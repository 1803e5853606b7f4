// When a refused client may come again, carried by the Status of the refusal: the queue says it, a
// front tells it, as HTTP's header Retry-After or as gRPC's trailing metadata retry-after.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/status.h"

namespace glm::router {

/// The longest that a client is told to stay away, in seconds.
inline constexpr int32_t kRetryAfterMaxS = 600;

/// `status`, with the seconds until the client should try again: rounded up, from 1 to
/// kRetryAfterMaxS.
absl::Status WithRetryAfter(absl::Status status, double seconds);

/// Whole seconds; nothing if `status` does not say.
std::optional<int32_t> RetryAfterOf(const absl::Status& status);

}  // namespace glm::router
