// Which workers are kept out of the choice for a while, because they fail where others do not.
//
// A worker is ejected after so many errors in a row, or at once when it was lost with requests
// under way; for a time that doubles with each ejection, and halves with each answer that it
// completes. Never more than half of the fleet is: when more than that fails, it is not the workers
// that are odd, and all are taken back.
//
// Who calls: Fleet, under its lock. Pure: the clock is a parameter, in milliseconds.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>

#include "router/options.h"

namespace glm::router {

enum class WorkerFault : uint8_t {
  kError,  // it answered a request with an error of its own
  kLost,   // it died or hung with requests under way
};

class Outliers {
 public:
  explicit Outliers(const FleetOptions& options) : options_(options) {}

  /// Something went wrong at `worker`, of a fleet of `fleet_size`. Whether it is ejected by that.
  bool TakeFault(const std::string& worker, WorkerFault fault, int32_t fleet_size, int64_t now_ms);
  /// It completed an answer.
  void TakeSuccess(const std::string& worker, int64_t now_ms);

  bool IsEjected(const std::string& worker, int64_t now_ms) const;
  int32_t CountEjected(int64_t now_ms) const;

 private:
  /// Of a worker that failed and has not made up for it.
  struct Record {
    int32_t errors = 0;            // in a row
    int32_t doublings = 0;         // of the next ejection's time
    int64_t ejected_until_ms = 0;  // in the past: it is not
  };

  void ForgetOld(int32_t fleet_size, int64_t now_ms);

  const FleetOptions options_;
  std::unordered_map<std::string, Record> records_;  // by address
};

}  // namespace glm::router
