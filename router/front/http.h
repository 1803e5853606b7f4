// The HTTP/1.1 server of the front door.
//
// Who calls: main starts and drains it. Connections are accepted on loop 0 and handed to the loops
// in turn; a connection, its requests and their answers never change loop. Keep-alive and pipelined
// requests are answered one after another. While a request is answered its connection is read on,
// so that a client that leaves is noticed at once and its answer destroyed. Every size and time is
// bounded by HttpOptions.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "router/front/http_routes.h"
#include "router/metrics.h"
#include "router/options.h"
#include "router/thread_loop.h"

namespace glm::router {

/// The JSON body of an error that the server finds itself: bad HTTP, no such path, too slow.
using HttpErrorBody = std::function<std::string(int status, absl::string_view message)>;

class HttpServer {
 public:
  /// `loops` and `metrics` outlive the server; the loops run until after its destruction.
  HttpServer(const HttpOptions& options, HttpRoutes routes, HttpErrorBody error_body,
             LoopPool* loops, RouterMetrics* metrics);
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;
  /// As Drain, without waiting.
  ~HttpServer();

  /// Listens. INVALID_ARGUMENT or UNAVAILABLE naming the address.
  absl::Status Start();
  /// The port that is listened on. REQUIRES: started.
  int32_t port() const;

  /// Stops listening, closes idle connections, lets requests finish for up to `wait`, then closes
  /// what is left. Blocks; not from a loop's thread. A second call does nothing.
  void Drain(std::chrono::milliseconds wait);

 private:
  class Listener;
  std::unique_ptr<Listener> listener_;
};

}  // namespace glm::router
