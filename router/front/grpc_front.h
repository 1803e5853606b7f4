// The public gRPC service: router.proto over the same Exchange as the HTTP gateway, with
// grpc.health.v1 and reflection beside it.
//
// Who calls: main starts and drains it. A call is given to a loop when it arrives and lives there;
// gRPC's threads only post to it. A client that leaves, or whose deadline passes, cancels its
// exchange.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "router/exchange.h"
#include "router/options.h"
#include "router/thread_loop.h"

namespace grpc {
class Server;
}  // namespace grpc

namespace glm::router {

class GrpcFront {
 public:
  /// Listens. `rooms.loop` is ignored: each call gets a loop of `loops` in turn. What `rooms`
  /// points to and `loops` outlive the front; the loops run until after its destruction.
  /// UNAVAILABLE naming the address; INVALID_ARGUMENT naming a bad file of its TLS.
  static absl::StatusOr<std::unique_ptr<GrpcFront>> Start(const GrpcOptions& options,
                                                          const ExchangeRooms& rooms,
                                                          LoopPool* loops);
  GrpcFront(const GrpcFront&) = delete;
  GrpcFront& operator=(const GrpcFront&) = delete;
  /// As Drain, without waiting.
  ~GrpcFront();

  int32_t port() const { return port_; }  // 0 for a unix socket

  /// What grpc.health.v1 says; not serving until the first call, nor once drained. Any thread.
  void SetServing(bool serving);

  /// From now on health says not serving, whatever SetServing is told; calls are taken as before.
  void BeginDrain();

  /// As BeginDrain; takes no new calls, lets those there are finish for up to `wait`, then cancels
  /// them. Blocks; not from a loop's thread. A second call does nothing.
  void Drain(std::chrono::milliseconds wait);

 private:
  class Service;

  GrpcFront();

  LoopPool* loops_ = nullptr;
  int32_t port_ = 0;
  std::atomic<bool> drained_{false};
  std::unique_ptr<Service> service_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace glm::router
