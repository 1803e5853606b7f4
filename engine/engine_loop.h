// The engine without its devices: the inbox, the engine thread, and the loop of a step.
//
// Who calls: Engine::Create, with ranks behind `runner`; tests, with a fake behind it. Submit,
// Cancel, Stats and Stop come from any thread. The engine thread alone touches the scheduler, calls
// the runner and the sink.
//
// A turn of the loop: take the inbox; admit and cancel; plan and hand over steps until
// plans_in_flight_max are out; wait for the oldest; apply it; call the sink. While it waits, the
// device runs; while it applies and plans, the device runs the next step if two may be out.
//
// Steps are timed by the loop's own clock, from the end of the one before to their own end, or from
// the moment at which there was work again: what the loop achieves, with one plan out or two, the
// host's part included. What the device alone took (StepResult::seconds) is summed apart.
#pragma once

#include <chrono>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "engine/engine.h"
#include "engine/rank/step_runner.h"
#include "engine/schedule/scheduler.h"
#include "engine/schedule/step_time.h"
#include "proto/base/mutex.h"

namespace glm::engine {

class EngineLoop final : public Engine {
 public:
  /// Starts the engine thread. `shape` and `limits` agree in all that both have.
  EngineLoop(EngineShape shape, const SchedulerLimits& limits, int32_t waiting_max,
             std::unique_ptr<StepRunner> runner, Sink sink);
  EngineLoop(const EngineLoop&) = delete;
  EngineLoop& operator=(const EngineLoop&) = delete;
  ~EngineLoop() override;

  absl::Status Submit(Request request) override;
  void Cancel(RequestId id) override;
  void AskCacheSnapshot() override;
  EngineStats Stats() const override;
  const EngineShape& shape() const override { return shape_; }
  void Stop() override;

 private:
  using Clock = std::chrono::steady_clock;

  struct Inbox {
    std::vector<Request> submits;    // at most waiting_max
    std::vector<RequestId> cancels;  // of live requests, each once
    bool stop = false;
    bool snapshot = false;  // of the prefix cache is wanted
  };

  void Run();
  /// Moves the inbox out; first waits for something to be in it if nothing else is to be done.
  Inbox TakeInbox();
  void PlanAhead();
  void ApplyOldest();
  /// Counts and publishes what happened, then calls the sink if there is something to say; with
  /// all that the prefix cache holds if `snapshot`.
  void Deliver(StepEvents events, bool snapshot);

  const EngineShape shape_;
  const int32_t waiting_max_;
  const Sink sink_;

  // Of the engine thread.
  Scheduler scheduler_;
  const std::unique_ptr<StepRunner> runner_;
  std::vector<StepPlan> plans_;  // a ring of plans_in_flight_max
  uint64_t plans_made_ = 0;
  uint64_t plans_applied_ = 0;
  uint64_t plan_after_rest_ = 0;  // the first one made when nothing was left to do
  double step_seconds_ = 0;
  StepTimeModel step_time_;
  /// When the step under way began: at the end of the one before it, or when there was work again.
  Clock::time_point step_began_{};
  struct IdleGaps {
    decltype(EngineStats::idle_gaps) gaps{};
    double seconds = 0;
    void Add(double gap_seconds);
  } idle_;

  // "Engine inbox": the one lock between callers and the engine thread.
  mutable Mutex inbox_mutex_;
  Condition inbox_changed_;
  Inbox inbox_ ABSL_GUARDED_BY(inbox_mutex_);
  /// Every request that Submit took and that has not ended; true: its cancel is on the way.
  std::unordered_map<RequestId, bool> live_ ABSL_GUARDED_BY(inbox_mutex_);
  int32_t requests_waiting_ ABSL_GUARDED_BY(inbox_mutex_) = 0;  // in the inbox and the scheduler
  /// Without step_age_s, which is that of step_under_way_.
  EngineStats stats_ ABSL_GUARDED_BY(inbox_mutex_);
  /// When the step under way began; the epoch: none is.
  Clock::time_point step_under_way_ ABSL_GUARDED_BY(inbox_mutex_){};

  std::once_flag joined_;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace glm::engine
