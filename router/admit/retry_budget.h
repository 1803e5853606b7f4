// How many requests may be sent a second time because a worker said no: a share of those that came,
// so that a fleet in trouble is not given more work than clients ask for.
//
// Who calls: every exchange, on its loop. Thread-safe, lock-free. What goes on elsewhere after its
// worker was lost is not counted here: the number of its attempts bounds it.
#pragma once

#include <atomic>
#include <cstdint>

namespace glm::router {

class RetryBudget {
 public:
  /// `percent` retries for every hundred requests; at most `burst` of them saved up, which is what
  /// there is at the start.
  RetryBudget(int32_t percent, int32_t burst);
  RetryBudget(const RetryBudget&) = delete;
  RetryBudget& operator=(const RetryBudget&) = delete;

  /// A request came.
  void Offer();
  /// One retry. False, and nothing taken, if less than one is left.
  bool Take();
  /// Retries that are left, in hundredths.
  int64_t hundredths() const { return hundredths_.load(std::memory_order_relaxed); }

 private:
  const int64_t percent_;
  const int64_t hundredths_max_;
  std::atomic<int64_t> hundredths_;
};

}  // namespace glm::router
