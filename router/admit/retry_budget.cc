#include "router/admit/retry_budget.h"

#include <algorithm>

namespace glm::router {
namespace {

constexpr int64_t kOneRetry = 100;  // in hundredths

}  // namespace

RetryBudget::RetryBudget(int32_t percent, int32_t burst)
    : percent_(percent), hundredths_max_(burst * kOneRetry), hundredths_(hundredths_max_) {}

void RetryBudget::Offer() {
  int64_t now = hundredths_.load(std::memory_order_relaxed);
  // Nothing is written while it is full, which it mostly is.
  while (now < hundredths_max_ &&
         !hundredths_.compare_exchange_weak(now, std::min(now + percent_, hundredths_max_),
                                            std::memory_order_relaxed)) {
  }
}

bool RetryBudget::Take() {
  int64_t now = hundredths_.load(std::memory_order_relaxed);
  while (now >= kOneRetry) {
    if (hundredths_.compare_exchange_weak(now, now - kOneRetry, std::memory_order_relaxed)) {
      return true;
    }
  }
  return false;
}

}  // namespace glm::router
