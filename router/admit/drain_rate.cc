#include "router/admit/drain_rate.h"

#include <algorithm>
#include <cmath>

namespace glm::router {
namespace {

/// Long enough to see past bursts of answers that end together.
constexpr double kTimeConstantS = 8;
/// What must have been seen before a rate is told.
constexpr double kBusyMinS = 1;
constexpr int64_t kRequestsMin = 4;

}  // namespace

void DrainRate::Advance(int64_t now_ms) {
  const int64_t passed_ms = std::max<int64_t>(0, now_ms - now_ms_);
  now_ms_ = std::max(now_ms, now_ms_);
  if (!busy_ || passed_ms == 0) return;
  const double keep = std::exp(-static_cast<double>(passed_ms) / 1000 / kTimeConstantS);
  busy_s_ = busy_s_ * keep + kTimeConstantS * (1 - keep);
  tokens_ *= keep;
}

void DrainRate::SetBusy(bool busy, int64_t now_ms) {
  Advance(now_ms);
  if (busy && !busy_) served_ms_ = now_ms;
  busy_ = busy;
}

void DrainRate::Served(int64_t tokens, int64_t now_ms) {
  Advance(now_ms);
  served_ms_ = now_ms;
  if (!busy_) return;  // it never waited
  tokens_ += static_cast<double>(tokens);
  ++requests_;
}

std::optional<double> DrainRate::TokensPerSecond(int64_t now_ms) {
  Advance(now_ms);
  if (busy_s_ < kBusyMinS || requests_ < kRequestsMin) return std::nullopt;
  return tokens_ / busy_s_;
}

double DrainRate::IdleSeconds(int64_t now_ms) const {
  return busy_ ? static_cast<double>(std::max<int64_t>(0, now_ms - served_ms_)) / 1000 : 0;
}

}  // namespace glm::router
