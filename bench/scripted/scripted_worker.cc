#include "bench/scripted/scripted_worker.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "bench/scripted/scripted_service.h"
#include "proto/base/block_hash.h"

namespace glm::bench {
namespace {

using Clock = ScriptedService::Clock;

}  // namespace

/// Wakes the workers when their next step or heartbeat is due.
class ScriptedWorkers::Stepper {
 public:
  explicit Stepper(std::vector<ScriptedService*> workers) : workers_(std::move(workers)) {}

  void Start() {
    thread_ = std::thread([this] { Run(); });
  }
  /// Steps nobody any more; Wake does nothing from then on.
  void Stop();
  /// A worker has something to do that was not due before. Any thread.
  void Wake() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      woken_ = true;
    }
    wake_.notify_one();
  }

 private:
  void Run();

  const std::vector<ScriptedService*> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool woken_ = false;
  bool stopping_ = false;
  std::thread thread_;
};

void ScriptedWorkers::Stepper::Stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void ScriptedWorkers::Stepper::Run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stopping_) {
    woken_ = false;
    lock.unlock();
    Clock::time_point next = Clock::time_point::max();
    for (ScriptedService* worker : workers_) next = std::min(next, worker->StepIfDue(Clock::now()));
    lock.lock();
    const auto ready = [this] { return woken_ || stopping_; };
    if (next == Clock::time_point::max()) {
      wake_.wait(lock, ready);
    } else {
      wake_.wait_until(lock, next, ready);
    }
  }
}

ScriptedWorkers::ScriptedWorkers() = default;
ScriptedWorkers::~ScriptedWorkers() {
  // Nothing steps a worker that goes; gRPC's threads wake the stepper until they are all gone.
  if (stepper_ != nullptr) stepper_->Stop();
  workers_.clear();
}

absl::StatusOr<std::unique_ptr<ScriptedWorkers>> ScriptedWorkers::Start(
    const ScriptedWorkerOptions& options, int32_t count) {
  const std::optional<HashKey> key = ParseHashKey(options.prefix_hash_key);
  if (!key.has_value()) return absl::InvalidArgumentError("prefix_hash_key is not 32 hex digits");
  if (absl::Status status = options.script.Validate(); !status.ok()) return status;
  const AnswerIds ids = AnswerIdsOf(options);
  if (ids.begin < 0 || ids.end > options.vocabulary ||
      ids.end - ids.begin <= static_cast<int32_t>(ids.never.size())) {
    return absl::InvalidArgumentError(
        absl::StrCat("answers are of ids from ", ids.begin, " to below ", ids.end, ", but for ",
                     ids.never.size(), "; the vocabulary is ", options.vocabulary));
  }
  std::unique_ptr<ScriptedWorkers> workers(new ScriptedWorkers());
  std::vector<ScriptedService*> all;
  for (int32_t i = 0; i < count; ++i) {
    workers->workers_.push_back(std::make_unique<ScriptedService>(options, *key));
    all.push_back(workers->workers_.back().get());
  }
  workers->stepper_ = std::make_unique<Stepper>(all);
  Stepper* const stepper = workers->stepper_.get();
  for (int32_t i = 0; i < count; ++i) {
    const int32_t port = options.port == 0 ? 0 : options.port + i;
    absl::Status status = all[static_cast<size_t>(i)]->Listen(port, [stepper] { stepper->Wake(); });
    if (!status.ok()) return status;
  }
  workers->stepper_->Start();
  return workers;
}

int32_t ScriptedWorkers::count() const { return static_cast<int32_t>(workers_.size()); }
std::string ScriptedWorkers::address(int32_t worker) const { return workers_[worker]->address(); }
Script ScriptedWorkers::script(int32_t worker) const { return workers_[worker]->script(); }
void ScriptedWorkers::SetScript(int32_t worker, const Script& script) {
  workers_[worker]->SetScript(script);
}
void ScriptedWorkers::BreakSessions(int32_t worker) { workers_[worker]->BreakSessions(); }
void ScriptedWorkers::Restart(int32_t worker) { workers_[worker]->Restart(); }
void ScriptedWorkers::FillCache(int32_t worker, int64_t blocks) {
  workers_[worker]->FillCache(blocks);
}
int64_t ScriptedWorkers::cached_blocks(int32_t worker) const {
  return workers_[worker]->cached_blocks();
}
ScriptedSeen ScriptedWorkers::seen(int32_t worker) const { return workers_[worker]->seen(); }
ScriptedSeen ScriptedWorkers::seen() const {
  ScriptedSeen all;
  for (const std::unique_ptr<ScriptedService>& worker : workers_) {
    const ScriptedSeen one = worker->seen();
    all.sessions += one.sessions;
    all.submits += one.submits;
    all.cancels += one.cancels;
    all.live += one.live;
    all.tokens += one.tokens;
    all.prompt_tokens += one.prompt_tokens;
    all.cached_tokens += one.cached_tokens;
    all.snapshots += one.snapshots;
    all.snapshot_bytes += one.snapshot_bytes;
    all.overflows += one.overflows;
  }
  return all;
}

}  // namespace glm::bench
