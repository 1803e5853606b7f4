#include "router/admit/retry_after.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace glm::router {
namespace {

constexpr char kPayload[] = "glmserve/retry-after-s";

}  // namespace

absl::Status WithRetryAfter(absl::Status status, double seconds) {
  const double whole = std::ceil(std::clamp<double>(seconds, 1, kRetryAfterMaxS));
  status.SetPayload(kPayload, absl::Cord(absl::StrCat(static_cast<int32_t>(whole))));
  return status;
}

std::optional<int32_t> RetryAfterOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kPayload);
  int32_t seconds = 0;
  if (!payload.has_value() || !absl::SimpleAtoi(std::string(*payload), &seconds)) {
    return std::nullopt;
  }
  return seconds;
}

}  // namespace glm::router
