// The worker's Prometheus metrics: EngineStats read at scrape time, and latency histograms.
//
// Who calls: Collect on the exposer's thread; the Observe functions on the engine thread (through
// Service), CountHeartbeat on the service's. Names and labels are fixed here and nowhere else.
#pragma once

#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <array>
#include <cstdint>
#include <vector>

#include "engine/engine.h"

namespace glm::worker {

/// Why a router's session was refused.
enum class RefusedSession : uint8_t {
  kToken,  // none, or a wrong one
  kLimit,  // too many are connected
};
inline constexpr int32_t kRefusedSessionCount = 2;

class WorkerMetrics : public prometheus::Collectable {
 public:
  WorkerMetrics();

  /// From now on Collect reads this engine. It must outlive the exposer.
  void Attach(const engine::Engine* engine) { engine_ = engine; }

  /// Seconds from Submit to the first token of a request.
  void ObserveTimeToFirstToken(double seconds) { time_to_first_token_->Observe(seconds); }
  /// Seconds between two tokens of a request.
  void ObserveInterToken(double seconds) { inter_token_->Observe(seconds); }
  /// Seconds from Submit to the end of a request.
  void ObserveEndToEnd(double seconds) { end_to_end_->Observe(seconds); }

  /// Any thread.
  void CountRefusedSession(RefusedSession why) {
    refused_sessions_[static_cast<size_t>(why)]->Increment();
  }
  void CountHeartbeat() { heartbeats_->Increment(); }

  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const engine::Engine* engine_ = nullptr;
  prometheus::Registry registry_;
  prometheus::Histogram* time_to_first_token_;
  prometheus::Histogram* inter_token_;
  prometheus::Histogram* end_to_end_;
  std::array<prometheus::Counter*, kRefusedSessionCount> refused_sessions_;
  prometheus::Counter* heartbeats_;
};

}  // namespace glm::worker
