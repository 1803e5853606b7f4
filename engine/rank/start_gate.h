// Where the ranks of a worker wait for each other while they start: after each part of the start
// all go on, or none does. Otherwise a rank whose GPU is missing would leave the others waiting in
// their first exchange.
//
// Who calls: rank threads, each the same number of times.
#pragma once

#include <cstdint>

#include "proto/base/mutex.h"

namespace glm::engine {

class StartGate {
 public:
  explicit StartGate(int32_t ranks) : ranks_(ranks) {}

  /// Blocks until all ranks have come. True when all of them, in this part and those before, were
  /// `well`.
  bool Pass(bool well) {
    MutexLock lock(&mutex_);
    all_well_ = all_well_ && well;
    const int64_t part = part_;
    if (++came_ == ranks_) {
      came_ = 0;
      ++part_;
      passed_well_ = all_well_;
      changed_.SignalAll();
    }
    while (part_ == part) changed_.Wait(&mutex_);
    return passed_well_;
  }

 private:
  const int32_t ranks_;
  Mutex mutex_;  // "Start gate"
  Condition changed_;
  int32_t came_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t part_ ABSL_GUARDED_BY(mutex_) = 0;
  bool all_well_ ABSL_GUARDED_BY(mutex_) = true;
  bool passed_well_ ABSL_GUARDED_BY(mutex_) = true;  // of the newest part that all have passed
};

}  // namespace glm::engine
