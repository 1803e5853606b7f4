// The set of workers: dials each, dials again when a stream ends, and publishes who is there. Who
// they are is said by any number of sources (membership.h): all that some source names are dialled;
// one that no source names any more gets nothing new, finishes what it has, and is let go.
//
// Who calls: main starts and stops it; exchanges read the snapshot and tell how their requests
// went, on their loops. The members are owned by loop 0 alone; the published snapshot and what is
// known of faults have the one lock.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "router/fleet/outlier.h"
#include "router/fleet/session.h"
#include "router/loop.h"
#include "router/options.h"
#include "router/route/worker_mask.h"

namespace glm::router {

enum class WorkerState : uint8_t {
  kConnecting,  // dialled, not yet welcomed
  kReady,
  kDraining,  // finishes what it has, takes nothing new
  kDown,      // waits to be dialled again
};

struct FleetWorker {
  std::string address;
  WorkerState state = WorkerState::kConnecting;
  std::shared_ptr<Session> session;  // set while ready or draining
  bool ejected = false;              // it failed where others did not: the last to be chosen
  bool unauthenticated = false;      // it did not take our token when it was dialled last
};

/// The fleet at one moment; never changes once published. A session in it may have died since: ask
/// Session::accepting.
struct FleetSnapshot {
  std::vector<FleetWorker> workers;  // in the order in which they were named
  int32_t ready = 0;                 // workers in kReady
  int32_t ejected = 0;               // workers that are, ready or not
  int32_t length_max = 0;            // the smallest of the ready workers; 0: none is
};

/// As many as the prefix index tells apart.
inline constexpr int32_t kMembersMax = WorkerMask::kWorkersMax;

class Fleet {
 public:
  /// `on_change` hears every new snapshot, on loop 0; it may be empty. Nothing is dialled before
  /// Start. `rooms` outlive the fleet.
  Fleet(const FleetOptions& options, const WorkerDemand& demand, FleetRooms rooms,
        std::function<void(const FleetSnapshot&)> on_change);
  Fleet(const Fleet&) = delete;
  Fleet& operator=(const Fleet&) = delete;
  /// As Stop.
  ~Fleet();

  void Start();

  /// From now on `source` names just these, each host:port or unix:/path. RESOURCE_EXHAUSTED, and
  /// nothing has changed, when all sources together would name more than kMembersMax. Any thread;
  /// not after BeginStop. The workers of the options are the static source's from the beginning.
  absl::Status SetMembers(MemberSource source, std::vector<std::string> addresses);

  /// Ends every session. Not from a loop's thread.
  void BeginStop();
  /// As BeginStop, and waits until the sessions have ended. While the loops still run.
  void Stop();

  std::shared_ptr<const FleetSnapshot> Snapshot() const;  // any thread
  /// Whether some worker takes requests now. Any thread.
  bool ready() const;

  /// How many requests the workers would take now; -1: none is ready. Ejected workers count only
  /// where there is no other. Any thread.
  int64_t Room() const;
  /// How a request at the worker of this address went. Any thread.
  void TakeFault(const std::string& address, WorkerFault fault);
  void TakeSuccess(const std::string& address);

 private:
  /// One address. Owned by loop 0.
  struct Member {
    std::string address;
    WorkerState state = WorkerState::kDown;
    std::shared_ptr<Session> session;
    int32_t failures = 0;  // since the last Welcome
    std::unique_ptr<Timer> timer;
    absl::Status last_error;
    /// When its last session must be over, since no source named it: then it is forgotten. If one
    /// names it anew meanwhile, it is a new member afterwards.
    std::optional<Loop::Clock::time_point> leaves_by;
  };
  void Dial(Member* member);
  void OnReady(Member* member);
  void OnDraining(Member* member);
  void OnEnd(Member* member, const absl::Status& status);
  void DialLater(Member* member);
  void Watch();
  void ApplyMembers();
  Member* AddMember(const std::string& address);
  /// Closes the session of a member that leaves, once it has nothing more to do, or its time is up.
  void Dismiss(Member* member);
  void EndLeave(Member* member);
  bool IsWanted(const std::string& address) const;
  void Publish();
  void PublishEjections();

  const FleetOptions options_;
  const WorkerDemand demand_;
  const FleetRooms rooms_;
  Loop* const loop_;  // loop 0
  const std::function<void(const FleetSnapshot&)> on_change_;

  // Loop 0's own.
  std::vector<std::unique_ptr<Member>> members_;
  std::unique_ptr<Timer> watch_timer_;
  int32_t sessions_open_ = 0;
  bool stopping_ = false;
  std::promise<void> stopped_;

  // The caller's of Start and Stop.
  bool started_ = false;
  bool stop_begun_ = false;

  mutable std::mutex mutex_;
  std::shared_ptr<const FleetSnapshot> snapshot_ ABSL_GUARDED_BY(mutex_);
  bool running_ ABSL_GUARDED_BY(mutex_) = false;  // what changes must be applied
  std::array<std::vector<std::string>, kMemberSourceCount> sources_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> wanted_ ABSL_GUARDED_BY(mutex_);  // by some source, each once
  Outliers outliers_ ABSL_GUARDED_BY(mutex_);
};

/// How long to wait before try number `failures` + 1, as backoff_* says; `random` in [0, 1].
int32_t BackoffMs(const FleetOptions& options, int32_t failures, double random);

}  // namespace glm::router
