// Where workers make themselves known: registry.proto on a listener of its own.
//
// Who calls: main starts and stops it. gRPC's threads bring and end streams; one more thread looks
// each second whether somebody whose stream broke is to be forgotten. What is known goes to
// `set_members`, as any other source of workers.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/base/mutex.h"
#include "router/metrics.h"
#include "router/options.h"

namespace grpc {
class Server;
}  // namespace grpc

namespace glm {
class TokenFile;
}  // namespace glm

namespace glm::router {

/// The address of an announcement that came from `peer`, as gRPC names it. INVALID_ARGUMENT.
absl::StatusOr<std::string> AnnouncedAddress(absl::string_view announced, absl::string_view peer);

/// Who has registered: plain state, told what happens and when.
class Registrations {
 public:
  using Clock = std::chrono::steady_clock;

  explicit Registrations(std::chrono::milliseconds grace) : grace_(grace) {}

  /// One more stream of `address`.
  void Join(const std::string& address);
  /// One stream fewer. `leaves`: the worker said so itself, and is forgotten if it was its last.
  void Part(const std::string& address, bool leaves, Clock::time_point now);
  /// Forgets those without a stream since `grace`, unless `reached` says that a worker is there.
  /// Whether there were any.
  bool ForgetLost(Clock::time_point now, const std::function<bool(const std::string&)>& reached);

  std::vector<std::string> Addresses() const;  // sorted
  bool Knows(const std::string& address) const { return known_.contains(address); }

 private:
  struct Known {
    int32_t streams = 0;
    Clock::time_point broken;  // when the last one did, or when a worker was last seen there since
  };

  const std::chrono::milliseconds grace_;
  std::map<std::string, Known> known_;
};

class Registry {
 public:
  struct Rooms {
    std::function<absl::Status(MemberSource, std::vector<std::string>)> set_members;
    /// Whether the router has a session with a worker there.
    std::function<bool(const std::string& address)> reached;
    RouterMetrics* metrics = nullptr;
    const TokenFile* tokens = nullptr;  // null: none is asked for
  };

  /// Listens. UNAVAILABLE naming the address, INVALID_ARGUMENT naming a bad file of its TLS.
  static absl::StatusOr<std::unique_ptr<Registry>> Start(const MembershipOptions& options,
                                                         Rooms rooms);
  Registry(const Registry&) = delete;
  Registry& operator=(const Registry&) = delete;
  /// Ends all streams; `set_members` is not called any more: a router that goes tells nobody else.
  ~Registry();

  int32_t port() const { return port_; }

 private:
  class Service;
  class Stream;

  Registry();

  std::unique_ptr<Service> service_;
  std::unique_ptr<grpc::Server> server_;
  int32_t port_ = 0;
};

}  // namespace glm::router
