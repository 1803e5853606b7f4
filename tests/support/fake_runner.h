// A stand-in for the ranks: runs plans over a cache of token ids instead of keys and values.
//
// FakeDevice stores each token's id where the plan says its K and V go, and draws the next id as a
// hash of all ids that attention would read, the seed and the position. So a wrong block table,
// position, length or ~slot gives a wrong token, as it would on a real device.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "engine/rank/step_runner.h"
#include "engine/request.h"
#include "engine/schedule/scheduler.h"
#include "proto/base/mutex.h"

namespace glm::engine {

/// The id that follows `tokens` in a request with `seed`, in [0, vocabulary).
int32_t FakeNextToken(const std::vector<int32_t>& tokens, uint64_t seed, int32_t vocabulary);

/// All that `request` generates if it is not cancelled, and how it ends.
struct FakeAnswer {
  std::vector<int32_t> token_ids;
  FinishReason finish = FinishReason::kNone;
  int32_t stop_id = -1;
};
FakeAnswer FakeAnswerTo(const Request& request, int32_t vocabulary);

class FakeDevice {
 public:
  FakeDevice(const SchedulerLimits& limits, int32_t vocabulary);
  StepResult Run(const StepPlan& plan);

 private:
  const SchedulerLimits limits_;
  const int32_t vocabulary_;
  std::vector<int32_t> cache_;     // [B * P] ids
  std::vector<int32_t> last_ids_;  // [slots]
};

/// The step runner over a FakeDevice. While the gate is closed, Wait blocks.
class FakeRunner final : public StepRunner {
 public:
  FakeRunner(const SchedulerLimits& limits, int32_t vocabulary) : device_(limits, vocabulary) {}

  void Submit(const StepPlan* plan) override { plans_.push_back(plan); }
  StepResult Wait() override;

  void CloseGate();
  void OpenGate();
  /// Blocks until a Wait stands before the closed gate.
  void AwaitWaiter();
  /// Lets one Wait through the closed gate.
  void PassOne();

 private:
  FakeDevice device_;                  // engine thread
  std::deque<const StepPlan*> plans_;  // engine thread

  Mutex gate_mutex_;
  Condition gate_changed_;
  bool closed_ ABSL_GUARDED_BY(gate_mutex_) = false;
  bool waiter_ ABSL_GUARDED_BY(gate_mutex_) = false;
  int passes_ ABSL_GUARDED_BY(gate_mutex_) = 0;
};

}  // namespace glm::engine
