// A stand-in for the ranks: runs plans over a cache of token ids instead of keys and values.
//
// FakeDevice stores each token's id where the plan says its K and V go, and draws the next id from
// a score of every id that is a hash of all ids that attention would read, the request's seed and
// its sampling parameters; penalties, edits and masks count as kernels/ops.h says. So a wrong block
// table, position, length, ~slot or sampling row gives a wrong token, as it would on a real device.
//
// Its draft layer keeps a cache of its own, of pairs (token, token after it), and refuses to draft
// over one that is not whole. Its drafts are right as often as it is told.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

#include "engine/rank/step_runner.h"
#include "engine/request.h"
#include "engine/schedule/scheduler.h"
#include "proto/base/mutex.h"

namespace glm::engine {

/// All that `request` generates if it is not cancelled, and how it ends: one request alone, from
/// its fields, without a plan.
struct FakeAnswer {
  std::vector<int32_t> token_ids;
  std::vector<TokenLogprobs> logprobs;         // if it asks for them
  std::vector<TokenLogprobs> prompt_logprobs;  // if it asks for them
  FinishReason finish = FinishReason::kNone;
  int32_t stop_id = -1;
};
FakeAnswer FakeAnswerTo(const Request& request, int32_t vocabulary);

class FakeDevice {
 public:
  explicit FakeDevice(const SchedulerLimits& limits);
  StepResult Run(const StepPlan& plan);

  int32_t drafts_right_percent = 80;
  /// Seconds of a step.
  std::function<double(const StepPlan&)> seconds = [](const StepPlan&) { return 0.001; };

 private:
  struct DraftCell {
    int32_t token = -1;
    int32_t next = -1;
  };
  void CheckShape(const StepPlan& plan) const;
  int64_t Place(const StepPlan& plan, int32_t sequence, int32_t position) const;
  void StoreTokens(const StepPlan& plan);
  void Sample(const StepPlan& plan, StepResult* result);
  void Draft(const StepPlan& plan, StepResult* result);
  void DraftOf(const StepPlan& plan, const DraftRow& draft, StepResult* result);
  std::vector<int32_t> TokensUpTo(const StepPlan& plan, int32_t sequence, int32_t position) const;

  const SchedulerLimits limits_;
  std::vector<int32_t> cache_;     // [B * P] ids
  std::vector<DraftCell> drafts_;  // [B * P]
  std::vector<int32_t> last_ids_;  // [slots]
};

/// The step runner over a FakeDevice. While the gate is closed, Wait blocks.
class FakeRunner final : public StepRunner {
 public:
  explicit FakeRunner(const SchedulerLimits& limits) : device_(limits) {}

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
