#include "engine/engine_loop.h"

#include <pthread.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/validate_request.h"
#include "proto/base/log.h"

namespace glm::engine {

void EngineLoop::IdleGaps::Add(double gap_seconds) {
  const auto bound =
      std::lower_bound(kIdleSecondsBounds.begin(), kIdleSecondsBounds.end(), gap_seconds);
  ++gaps[bound - kIdleSecondsBounds.begin()];
  seconds += gap_seconds;
}

EngineLoop::EngineLoop(EngineShape shape, const SchedulerLimits& limits, int32_t waiting_max,
                       std::unique_ptr<StepRunner> runner, Sink sink)
    : shape_(std::move(shape)),
      waiting_max_(waiting_max),
      sink_(std::move(sink)),
      scheduler_(limits),
      runner_(std::move(runner)),
      plans_(limits.plans_in_flight_max) {
  CHECK_EQ(shape_.length_max, limits.length_max);
  CHECK_EQ(shape_.block_size, limits.block_size);
  CHECK_EQ(shape_.kv_blocks_total, limits.kv_blocks);
  CHECK_EQ(shape_.sequences_max, limits.sequences_max);
  CHECK_EQ(shape_.vocabulary, limits.vocabulary);
  CHECK_EQ(shape_.prefix_caching, limits.prefix_caching);
  CHECK_EQ(shape_.drafts_max, limits.drafts_max);
  stats_.load = scheduler_.Load();
  thread_ = std::thread([this] { Run(); });
  pthread_setname_np(thread_.native_handle(), "engine");
}

EngineLoop::~EngineLoop() { Stop(); }

// ---- Any thread
// ----------------------------------------------------------------------------------

absl::Status EngineLoop::Submit(Request request) {
  const absl::Status status = ValidateRequest(request, shape_);
  if (!status.ok()) return status;
  MutexLock lock(&inbox_mutex_);
  if (inbox_.stop) return absl::UnavailableError("the engine is stopped");
  if (requests_waiting_ >= waiting_max_) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "%d requests are waiting, max_waiting_requests is %d", requests_waiting_, waiting_max_));
  }
  if (!live_.emplace(request.id, false).second) {
    return absl::InvalidArgumentError(
        absl::StrFormat("id is %d, must differ from those of live requests", request.id));
  }
  ++requests_waiting_;
  inbox_.submits.push_back(std::move(request));
  inbox_changed_.Signal();
  return absl::OkStatus();
}

void EngineLoop::Cancel(RequestId id) {
  MutexLock lock(&inbox_mutex_);
  const auto found = live_.find(id);
  if (found == live_.end() || found->second) return;
  found->second = true;
  inbox_.cancels.push_back(id);
  inbox_changed_.Signal();
}

void EngineLoop::AskCacheSnapshot() {
  MutexLock lock(&inbox_mutex_);
  inbox_.snapshot = true;
  inbox_changed_.Signal();
}

EngineStats EngineLoop::Stats() const {
  MutexLock lock(&inbox_mutex_);
  EngineStats stats = stats_;
  stats.load.requests_waiting = requests_waiting_;
  if (step_under_way_ != Clock::time_point()) {
    stats.step_age_s = std::chrono::duration<double>(Clock::now() - step_under_way_).count();
  }
  return stats;
}

void EngineLoop::Stop() {
  {
    MutexLock lock(&inbox_mutex_);
    inbox_.stop = true;
    inbox_changed_.Signal();
  }
  std::call_once(joined_, [this] { thread_.join(); });
}

// ---- The engine thread
// ---------------------------------------------------------------------------

void EngineLoop::Run() {
  while (true) {
    Inbox inbox = TakeInbox();
    StepEvents events;
    events.step = plans_applied_;
    for (Request& request : inbox.submits) scheduler_.Admit(std::move(request));
    for (const RequestId id : inbox.cancels) scheduler_.Cancel(id, &events);
    if (inbox.stop) {
      Deliver(std::move(events), inbox.snapshot);
      break;
    }
    PlanAhead();
    // The device has its work; only now is there time to talk.
    Deliver(std::move(events), inbox.snapshot);
    if (scheduler_.plans_in_flight() > 0) ApplyOldest();
  }
  while (scheduler_.plans_in_flight() > 0) ApplyOldest();
  StepEvents events;
  events.step = plans_applied_;
  for (const RequestId id : scheduler_.LiveIds()) scheduler_.Cancel(id, &events);
  Deliver(std::move(events), false);
}

EngineLoop::Inbox EngineLoop::TakeInbox() {
  const bool idle = scheduler_.plans_in_flight() == 0 && !scheduler_.has_live();
  MutexLock lock(&inbox_mutex_);
  while (idle && inbox_.submits.empty() && !inbox_.stop && !inbox_.snapshot) {
    inbox_changed_.Wait(&inbox_mutex_);
  }
  if (idle && !inbox_.submits.empty()) {
    step_began_ = Clock::now();
    step_under_way_ = step_began_;
  }
  if (idle) plan_after_rest_ = plans_made_;
  Inbox taken;
  taken.submits.swap(inbox_.submits);
  taken.cancels.swap(inbox_.cancels);
  taken.stop = inbox_.stop;
  taken.snapshot = std::exchange(inbox_.snapshot, false);
  return taken;
}

void EngineLoop::PlanAhead() {
  while (scheduler_.plans_in_flight() < scheduler_.limits().plans_in_flight_max) {
    StepPlan* plan = &plans_[plans_made_ % plans_.size()];
    if (!scheduler_.Plan(plan)) break;
    ++plans_made_;
    runner_->Submit(plan);
  }
  CHECK(scheduler_.plans_in_flight() > 0 || !scheduler_.has_live())
      << "requests are live, but nothing can be planned";
}

void EngineLoop::ApplyOldest() {
  const StepResult result = runner_->Wait();
  const Clock::time_point end = Clock::now();
  const StepPlan& plan = plans_[plans_applied_ % plans_.size()];
  step_time_.Note(plan.work, std::chrono::duration<double>(end - step_began_).count());
  step_began_ = end;
  StepEvents events;
  scheduler_.Apply(plan, result, &events);
  if (plans_applied_ != plan_after_rest_) idle_.Add(result.idle_seconds);
  ++plans_applied_;
  step_seconds_ += result.seconds;
  Deliver(std::move(events), false);
}

void EngineLoop::Deliver(StepEvents events, bool snapshot) {
  events.load = scheduler_.Load();
  events.load.step_times = step_time_.times();
  scheduler_.TakeCacheChanges(&events);
  if (snapshot) events.cache_snapshot = scheduler_.SnapshotCache();
  {
    MutexLock lock(&inbox_mutex_);
    requests_waiting_ = events.load.requests_waiting + static_cast<int32_t>(inbox_.submits.size());
    stats_.load = events.load;
    stats_.steps = plans_applied_;
    stats_.step_seconds = step_seconds_;
    const bool planned = scheduler_.plans_in_flight() > 0;
    step_under_way_ = planned || scheduler_.has_live() ? step_began_ : Clock::time_point();
    stats_.step_expected_s =
        planned ? step_time_.Expect(plans_[plans_applied_ % plans_.size()].work) : 0;
    stats_.idle_gaps = idle_.gaps;
    stats_.idle_seconds = idle_.seconds;
    scheduler_.FillStats(&stats_);
    for (const RequestEvent& event : events.requests) {
      stats_.generated_tokens += event.token_ids.size();
      if (event.finish == FinishReason::kNone) continue;
      stats_.requests_finished_stop += event.finish == FinishReason::kStop ? 1 : 0;
      stats_.requests_finished_length += event.finish == FinishReason::kLength ? 1 : 0;
      stats_.requests_cancelled += event.finish == FinishReason::kCancelled ? 1 : 0;
      const auto live = live_.find(event.id);
      CHECK(live != live_.end()) << "request " << event.id << " ended twice";
      // A cancel that came too late must not hit a later request of the same id.
      if (live->second) std::erase(inbox_.cancels, event.id);
      live_.erase(live);
    }
  }
  if (events.requests.empty() && events.cache_changes.empty() && !snapshot) return;
  sink_(std::move(events));
}

}  // namespace glm::engine
