#include "router/fleet/outlier.h"

#include <algorithm>

namespace glm::router {
namespace {

constexpr int32_t kDoublingsMax = 16;

}  // namespace

bool Outliers::TakeFault(const std::string& worker, WorkerFault fault, int32_t fleet_size,
                         int64_t now_ms) {
  Record& record = records_[worker];
  // What it was sent before fails too, late: that is no new fault.
  if (now_ms < record.ejected_until_ms) return false;
  record.errors = fault == WorkerFault::kLost ? options_.eject_errors : record.errors + 1;
  if (record.errors < options_.eject_errors) return false;
  record.errors = 0;
  if (2 * (CountEjected(now_ms) + 1) > fleet_size) {
    records_.clear();
    return false;
  }
  const int64_t time_ms = int64_t{options_.eject_ms} << record.doublings;
  record.ejected_until_ms = now_ms + std::min<int64_t>(time_ms, options_.eject_max_ms);
  record.doublings = std::min(record.doublings + 1, kDoublingsMax);
  ForgetOld(fleet_size, now_ms);
  return true;
}

void Outliers::TakeSuccess(const std::string& worker, int64_t now_ms) {
  const auto found = records_.find(worker);
  if (found == records_.end()) return;
  Record& record = found->second;
  record.errors = 0;
  if (now_ms < record.ejected_until_ms) return;
  if (--record.doublings <= 0) records_.erase(found);
}

bool Outliers::IsEjected(const std::string& worker, int64_t now_ms) const {
  const auto found = records_.find(worker);
  return found != records_.end() && now_ms < found->second.ejected_until_ms;
}

int32_t Outliers::CountEjected(int64_t now_ms) const {
  return static_cast<int32_t>(std::count_if(records_.begin(), records_.end(), [&](const auto& one) {
    return now_ms < one.second.ejected_until_ms;
  }));
}

/// Addresses may come and go; what is remembered stays in proportion to the fleet.
void Outliers::ForgetOld(int32_t fleet_size, int64_t now_ms) {
  if (static_cast<int64_t>(records_.size()) <= 2 * int64_t{fleet_size}) return;
  std::erase_if(records_, [&](const auto& one) {
    return now_ms >= one.second.ejected_until_ms + options_.eject_max_ms;
  });
}

}  // namespace glm::router
