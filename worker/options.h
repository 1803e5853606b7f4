// Everything that can be set on a worker, each default written here once.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/options.h"
#include "proto/tls_files.h"

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
  /// Of these, from one host (all unix sockets count as one); more are refused.
  int32_t peer_sessions_max = 16;
  /// Calls of one connection at once; more wait.
  int32_t streams_max = 16;
  /// From a router's call to its first frame; then the call is ended. Milliseconds.
  int32_t hello_timeout_ms = 5000;
  /// Frames waiting to be written to one router; past that the session is closed.
  int32_t session_frames_max = 4096;
  /// A router with live requests that was sent nothing for this long gets a heartbeat; so does one
  /// for which all is quiet after changes of the prefix cache. Milliseconds.
  int32_t heartbeat_ms = 500;
  /// Largest frame taken from a router, in bytes: bounds the length of a prompt.
  int32_t frame_bytes_max = 16 << 20;

  /// That gRPC holds for all connections together, in bytes.
  int64_t grpc_memory_bytes_max = 2LL << 30;
  /// Of the connections of routers.
  ServerTls tls;
  /// File of the tokens of which a router must show one; empty: none is asked for.
  std::string auth_token_file;

  /// Routers to make itself known to, where they listen for that; empty: none.
  std::vector<std::string> register_with;
  /// The address that these are told; empty: that of listen.
  std::string advertise;
  /// Of the connections to them; certificate and key are those of tls.
  ClientTls register_tls;

  engine::EngineOptions engine;

  /// INVALID_ARGUMENT naming the field, its value and the limit.
  absl::Status Validate() const;
};

/// That the longest request of the model, `length_max` tokens, fits in a frame: a router whose
/// frame is too large would lose its session, and all requests in it. INVALID_ARGUMENT.
absl::Status CheckFrameHolds(int64_t frame_bytes_max, int64_t length_max);

}  // namespace glm::worker
