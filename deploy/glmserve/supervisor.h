// Keeps a set of child processes running: starts them, restarts those that die, stops them in
// order.
//
// Who calls: the launcher's main thread, which is the only thread. Signals are waited for, not
// handled, so nothing runs at a moment that the code does not choose.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace glm::deploy {

struct ChildSpec {
  std::string name;                    // for messages: "worker-0"
  std::vector<std::string> arguments;  // arguments[0] is the program's path
  std::string log_path;                // receives stdout and stderr; empty: ours
};

struct SupervisorOptions {
  std::chrono::milliseconds backoff_initial{500};  // before the first restart; doubles each time
  std::chrono::milliseconds backoff_max{10'000};
  std::chrono::milliseconds stable{
      30'000};  // who lived this long starts from backoff_initial again
  std::chrono::milliseconds stop_timeout{35'000};  // from SIGTERM to SIGKILL
  std::chrono::milliseconds tick{100};             // between two calls of `poll`
};

class Supervisor {
 public:
  /// `children` are started in order and stopped in the reverse order, one after the other.
  Supervisor(const SupervisorOptions& options, std::vector<ChildSpec> children);

  /// Starts all children and returns after SIGTERM or SIGINT, when all of them have ended. `poll`
  /// is called every tick until it returns true: the cluster is up. A child that dies before that
  /// is a wrong configuration: everything is stopped and FAILED_PRECONDITION names the child, its
  /// exit and its log. From then on a dead child is restarted for as long as it takes.
  absl::Status Run(const std::function<bool()>& poll);

 private:
  using Clock = std::chrono::steady_clock;

  struct Child {
    ChildSpec spec;
    pid_t pid = 0;  // 0: not running
    Clock::time_point started;
    Clock::time_point start_at;  // when not running: the next start
    std::chrono::milliseconds backoff{0};
  };

  absl::Status Start(Child& child);
  absl::Status StartDue();
  absl::Status Reap(bool up);
  void StopAll();
  bool AwaitExit(Child& child, std::chrono::milliseconds timeout);

  const SupervisorOptions options_;
  std::vector<Child> children_;
};

}  // namespace glm::deploy
