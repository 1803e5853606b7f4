// OpenAI's HTTP API over Exchange: chat completions, completions, models, health and metrics.
//
// Who calls: main adds its routes to the HTTP server. A request is read, exchanged and answered on
// the loop of its connection; a client that leaves destroys the answer and with it its exchanges.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "router/exchange.h"
#include "router/front/http_routes.h"
#include "router/front/openai_json.h"
#include "router/thread_loop.h"

namespace glm::router {

class OpenAiFront {
 public:
  /// `rooms` is taken for every loop of `loops`; its own loop is not looked at. What it points to,
  /// and the front itself, outlive the server that the routes are added to.
  OpenAiFront(const ExchangeRooms& rooms, LoopPool* loops);
  OpenAiFront(const OpenAiFront&) = delete;
  OpenAiFront& operator=(const OpenAiFront&) = delete;

  void AddRoutes(HttpRoutes* routes);

  /// From now on the router says that it is not ready. Any thread.
  void BeginDrain() { draining_ = true; }

 private:
  /// One loop's own.
  struct Lane {
    ExchangeRooms rooms;
    std::mt19937_64 random{std::random_device{}()};  // for ids
  };

  absl::StatusOr<OpenAiCall> Read(const ExchangeRooms& rooms, bool is_chat,
                                  const HttpRequest& http) const;
  std::unique_ptr<HttpAnswer> Generate(Endpoint endpoint, const HttpCall& call);
  void SendModels(const HttpCall& call) const;
  void SendModel(const HttpCall& call) const;
  void SendReadiness(const HttpCall& call) const;

  std::vector<Lane> lanes_;  // one per loop, in the pool's order
  const std::string model_name_;
  const int64_t started_s_;  // since 1970
  Fleet* const fleet_;
  RouterMetrics* const metrics_;
  std::atomic<bool> draining_{false};
};

}  // namespace glm::router
