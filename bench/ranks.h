// The ranks of a benchmark: a thread, a device and a communicator each.
//
// Who calls: the benchmarks that take --tensor-parallel-size.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "engine/rank/start_gate.h"
#include "kernels/communicator.h"

namespace glm::bench {

struct RanksOptions {
  int32_t tensor_parallel_size = 1;  // 1, 2, 4 or 8
  int32_t device_index = 0;          // GPU of rank 0; the others have the next ones
  int32_t ranks_per_device = 1;      // that share a GPU
  /// "auto", "peer" or "nccl", as an engine's; or "none": rank 0 runs alone and nothing is
  /// exchanged. Its numbers are wrong then, and its times those of one rank but for the exchange.
  std::string gpu_exchange = "auto";

  absl::Status Validate(const std::string& device) const;
};

/// What a rank has. Destroyed on its thread.
struct RankSeat {
  int32_t rank = 0;
  std::unique_ptr<Device> device;
  std::unique_ptr<Communicator> communicator;
  engine::StartGate* gate = nullptr;  // of all ranks that run
};

/// Runs `body` on a thread for each rank and waits for all. `step`: the sizes that the
/// communicators are for. The first error of a rank, or of the start.
absl::Status OnEveryRank(const RanksOptions& options, const std::string& device,
                         int32_t cpu_threads, const StepLimits& step,
                         const std::function<absl::Status(RankSeat&)>& body);

}  // namespace glm::bench
