// `glmserve serve MODEL`: one router and N workers on this host, as children of one supervisor.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace glm::deploy {

struct ServeOptions {
  /// Folder of the checkpoint.
  std::string model;
  /// Worker processes: replicas of the model.
  int32_t data_parallel_size = 1;
  /// Ranks of each worker, which share the model: 1, 2, 4 or 8.
  int32_t tensor_parallel_size = 1;
  /// "cpu" or "cuda". With cuda, worker i takes GPUs i * tensor_parallel_size and following.
  std::string device = "cpu";
  /// Threads of each CPU worker; 0: the cores of this host, divided among the workers.
  int32_t cpu_threads = 0;
  /// Where the HTTP gateway listens.
  std::string host = "0.0.0.0";
  int32_t port = 8000;
  /// Port of the public gRPC service, on the same host.
  int32_t grpc_port = 50050;
  /// Worker i serves /metrics on this port + i; 0: workers serve none.
  int32_t metrics_port = 9091;
  /// Running requests may finish for this long after SIGTERM. Seconds, for router and workers each.
  int32_t drain_timeout_s = 30;
  /// Folder for the workers' sockets; empty: a fresh one under /tmp.
  std::string run_dir;
  /// Folder that receives one log a process; empty: they write to this terminal.
  std::string log_dir;
  /// Passed on as they are.
  std::vector<std::string> worker_flags;
  std::vector<std::string> router_flags;

  absl::Status Validate() const;
};

/// Serves until SIGTERM or SIGINT. `binary_dir`: where glmserve-router and glmserve-worker are.
absl::Status Serve(const ServeOptions& options, const std::string& binary_dir);

}  // namespace glm::deploy
