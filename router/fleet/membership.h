// Sources of workers' addresses that change while the router runs: a file that is watched, and a
// name that is resolved again and again. (Workers that name themselves: registry.h.)
//
// Who calls: main. Each source has a thread of its own, so no loop ever waits for a disk or a name
// server. A source that fails, or says nothing, or nonsense, leaves things as it last said them:
// the loss of a control plane evicts nobody. It is counted each time and logged once.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/base/mutex.h"
#include "proto/base/watched_file.h"
#include "router/metrics.h"
#include "router/options.h"

namespace glm::router {

/// Addresses of a file's text, one a line, in its order and each once; what follows a '#' does not
/// count. INVALID_ARGUMENT naming the line.
absl::StatusOr<std::vector<std::string>> ParseMemberList(absl::string_view text);

/// The addresses of `host`, IPv4 and IPv6, sorted; IPv6 in brackets. It may take many seconds.
/// UNAVAILABLE when there are none.
absl::StatusOr<std::vector<std::string>> ResolveHost(const std::string& host);

class Membership {
 public:
  /// Fleet::SetMembers, or a test.
  using SetMembers = std::function<absl::Status(MemberSource, std::vector<std::string>)>;
  using Resolve = std::function<absl::StatusOr<std::vector<std::string>>(const std::string& host)>;

  /// Starts the sources that `options` names. INVALID_ARGUMENT when the file cannot be used: at the
  /// start that is a wrong flag. `metrics` outlives this.
  static absl::StatusOr<std::unique_ptr<Membership>> Start(const MembershipOptions& options,
                                                           SetMembers set_members,
                                                           RouterMetrics* metrics,
                                                           Resolve resolve = ResolveHost);
  Membership(const Membership&) = delete;
  Membership& operator=(const Membership&) = delete;
  /// `set_members` is not called any more. A look-up that hangs is not waited for.
  ~Membership();

 private:
  /// What the sources' threads share with this, and may outlive it by one look-up.
  struct Shared {
    SetMembers set_members;
    RouterMetrics* metrics = nullptr;
    Mutex mutex;  // "membership"
    Condition stop;
    bool stopping ABSL_GUARDED_BY(mutex) = false;
    std::string file_problem ABSL_GUARDED_BY(mutex);  // as it was logged; empty: none
    std::string dns_problem ABSL_GUARDED_BY(mutex);
  };

  Membership() = default;
  /// Passes on what a source said. Its thread.
  static absl::Status Take(Shared* shared, MemberSource source, const std::string& name,
                           absl::StatusOr<std::vector<std::string>> addresses);
  static void WatchName(const std::shared_ptr<Shared>& shared, const MembershipOptions& options,
                        const Resolve& resolve);

  std::shared_ptr<Shared> shared_;
  std::unique_ptr<WatchedFile> file_;
};

}  // namespace glm::router
