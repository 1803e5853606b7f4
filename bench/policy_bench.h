// glmserve-bench policy: what the router's policies give over a fleet in virtual time, for shares
// of shared prefixes and loads; see policy_simulation.h for what that models.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"

namespace glm::bench {

struct PolicyBenchOptions {
  int32_t workers = 8;
  int32_t requests = 20000;                                            // of each run
  std::vector<int32_t> shared_percent = {0, 50, 90};                   // of a prompt's tokens
  std::vector<int32_t> load_percent = {10, 30, 50, 70, 90, 100, 120};  // of least-load's capacity
  uint64_t seed = 1;

  absl::Status Validate() const;
};

/// One JSON line a policy, share and load on stdout.
absl::Status RunPolicyBench(const PolicyBenchOptions& options);

}  // namespace glm::bench
