// Everything that can be set on a worker, each default written here once.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "engine/options.h"

namespace glm::worker {

struct WorkerOptions {
  /// Where routers connect: host:port, or unix:/path.
  std::string listen = "0.0.0.0:50051";
  /// Where Prometheus scrapes /metrics: host:port; "none": nowhere.
  std::string metrics_listen = "0.0.0.0:9091";
  /// On SIGTERM, running requests may finish for this long; then they are cancelled. Seconds.
  int32_t drain_timeout_s = 30;
  /// Routers connected at once; more are refused.
  int32_t sessions_max = 64;
  /// Frames waiting to be written to one router; past that the session is closed.
  int32_t session_frames_max = 4096;
  /// A router with live requests that was sent nothing for this long gets a heartbeat.
  /// Milliseconds.
  int32_t heartbeat_ms = 500;
  /// Largest frame taken from a router, in bytes: bounds the length of a prompt.
  int32_t frame_bytes_max = 16 << 20;

  engine::EngineOptions engine;

  /// INVALID_ARGUMENT naming the field, its value and the limit.
  absl::Status Validate() const;
};

}  // namespace glm::worker
