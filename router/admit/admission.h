// The queue in front of the workers, one for the process: a request is sent to a worker only while
// one has room, and until then it waits here, where the order can still be chosen. It is also where
// a request is refused that would wait too long, or for which there is no memory.
//
// Who calls: exchanges of all loops, and the fronts before there is one; the fleet says when there
// may be more room. One lock guards all, and is held for a few map operations at most: what a
// request needs to know, whether it is taken, is known at once and without a second thread. Only
// the choice of who is next runs on one loop, so that it happens once however many things changed.
// While nobody waits no lock is taken.
//
// A request's way: Enter; Wait, if others wait or no worker has room; its `go` is run when it is
// its turn, and it tries to be sent; then Sent, or PutBack when it was in vain; Leave at its end.
// Cancel ends the wait at any time. A request whose worker was lost waits only while no worker is
// ready, ahead of all others, and no bound of the queue refuses it.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/base/block_hash.h"
#include "proto/base/mutex.h"
#include "router/admit/drain_rate.h"
#include "router/admit/fair_queue.h"
#include "router/admit/retry_budget.h"
#include "router/admit/tenant.h"
#include "router/loop.h"
#include "router/metrics.h"
#include "router/options.h"

namespace glm::router {

/// What the queue works with; it outlives the queue.
struct AdmissionRooms {
  Loop* loop = nullptr;  // where it is decided who is next
  RouterMetrics* metrics = nullptr;
  /// How many requests the workers would take now; -1: none is ready. Called on `loop`, and only
  /// while somebody waits.
  std::function<int64_t()> room;
};

/// A request as the queue sees it.
struct WaitRequest {
  TenantId tenant;
  int32_t priority = 0;
  int64_t prompt_tokens = 0;
  int64_t answer_tokens_max = 1;
  int32_t timeout_ms = 0;  // how long it would wait
  /// It was at a worker before.
  bool replay = false;
};

class Admission {
 public:
  /// Tenants' names are hashed under `key`, which should be a secret of the process.
  Admission(const AdmitOptions& options, const HashKey& key, AdmissionRooms rooms);
  Admission(const Admission&) = delete;
  Admission& operator=(const Admission&) = delete;
  /// When all requests have left, and while the loop still runs.
  ~Admission();

  /// The tenant of a request with this API key, or this value of the header. Any thread.
  TenantId TenantOf(std::string_view name) const;
  RetryBudget& retries() { return retries_; }
  const AdmitOptions& options() const { return options_; }

  // Below: refusals are RESOURCE_EXHAUSTED, name the bound, its value and its flag, carry when to
  // try again (retry_after.h), and are counted. Times are NowMs of the caller's loop.

  /// Whether there is room for one more request, by the bounds that need no look at it: for fronts,
  /// before they read a body.
  absl::Status CheckBounds(TenantId tenant, int64_t now_ms);
  /// Counts a request in, unless it would be refused once its prompt is tokenized.
  absl::Status Enter(TenantId tenant, int32_t priority, int32_t timeout_ms, int64_t now_ms);
  /// It ended, with `answer_tokens` of an answer; 0: with none.
  void Leave(TenantId tenant, int64_t answer_tokens);

  /// Whether others wait that a new request may not overtake.
  bool IsLinedUp() const { return lined_up_.load() > 0; }
  /// Lines a request up. `go` is run on `loop` when it is its turn, and again after each PutBack.
  /// Returns its ticket.
  absl::StatusOr<uint64_t> Wait(const WaitRequest& request, Loop* loop, std::function<void()> go);
  /// It was its turn, and no worker could take it. It stays first in line; but where `others_fit`,
  /// and only this request does not, it lets others pass for a moment.
  void PutBack(uint64_t ticket, bool others_fit);
  /// It was sent to a worker. Its ticket is void.
  void Sent(uint64_t ticket, int64_t now_ms);
  /// It waits no more. Its ticket is void.
  void Cancel(uint64_t ticket);
  /// What a request is told that has waited for `waited_ms`, as long as it may.
  absl::Status TimedOut(TenantId tenant, int32_t priority, int64_t waited_ms, int64_t now_ms);

  /// There may be more room than there was. Any thread.
  void RoomChanged();

  /// What is counted, for tests: all 0 when all requests have left.
  struct Counts {
    int64_t open = 0;
    int64_t waiting = 0;
    int64_t waiting_tokens = 0;
    int64_t lined_up = 0;
    int64_t granted = 0;  // whose turn it is, and that have not said what came of it
    bool operator==(const Counts&) const = default;
  };
  Counts counts() const;

 private:
  enum class State : uint8_t { kQueued, kReplay, kFirst, kParked, kGranted };
  struct Waiting {
    QueuedRequest request;
    bool replay = false;
    State state = State::kQueued;
    int64_t since_ms = 0;
    int64_t parked_until_ms = 0;
    Loop* loop = nullptr;
    std::function<void()> go;
  };
  using Grants = std::vector<std::pair<Loop*, std::function<void()>>>;

  absl::Status RefuseFor(TenantId tenant, int64_t now_ms, Refusal reason,
                         const std::string& message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckQueue(TenantId tenant, int64_t prompt_tokens, int64_t now_ms)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckWait(TenantId tenant, int32_t priority, int32_t timeout_ms, int64_t now_ms)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  /// `seconds` until its cause may be gone.
  absl::Status Refuse(Refusal reason, const std::string& message, double seconds) const;
  /// Seconds until a request would be sent that came now.
  double PredictWait(TenantId tenant, int32_t priority, int64_t now_ms)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SetState(uint64_t ticket, Waiting* waiting, State state)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Forget(std::unordered_map<uint64_t, Waiting>::iterator found)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  void Pump();
  bool IsIdle();
  Grants ChooseNext(int64_t room, int64_t now_ms);
  void Grant(uint64_t ticket, Grants* grants) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Unpark(int64_t now_ms) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SchedulePump();
  void PumpAt(Loop::Clock::time_point at);

  const AdmitOptions options_;
  const HashKey key_;
  const AdmissionRooms rooms_;
  RetryBudget retries_;

  std::atomic<int64_t> open_{0};
  std::atomic<int64_t> lined_up_{0};  // all that wait, but for parked ones; set under the lock
  std::atomic<bool> pump_due_{false};

  // The loop's own.
  std::unique_ptr<Timer> pump_timer_;
  Loop::Clock::time_point pumped_;

  mutable Mutex mutex_;                                                    // "the queue"
  std::unordered_map<uint64_t, Waiting> waiting_ ABSL_GUARDED_BY(mutex_);  // by ticket
  FairQueue queue_ ABSL_GUARDED_BY(mutex_);
  std::set<uint64_t> replays_ ABSL_GUARDED_BY(mutex_);  // before all others, room or not
  std::set<uint64_t> first_ ABSL_GUARDED_BY(mutex_);    // put back: before the queue
  std::set<uint64_t> parked_ ABSL_GUARDED_BY(mutex_);   // put back, for a moment out of line
  int64_t waiting_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t first_cost_ ABSL_GUARDED_BY(mutex_) = 0;  // of replays_ and first_
  int64_t granted_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t tickets_ ABSL_GUARDED_BY(mutex_) = 0;
  DrainRate drain_ ABSL_GUARDED_BY(mutex_);
  bool worker_ready_ ABSL_GUARDED_BY(mutex_) = false;  // at the last look
};

}  // namespace glm::router
