// glmserve-bench allreduce: what the ranks of a model exchange within a step, by the number of
// rows: sums, sums with the norm and quantisation behind them, and gathers of logits.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "bench/ranks.h"

namespace glm::bench {

struct AllReduceBenchOptions {
  std::string device = "cuda";
  RanksOptions ranks{.tensor_parallel_size = 2};
  std::vector<int32_t> rows = {1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 8192};
  int32_t hidden = 5120;        // H, of GLM-4.5
  int32_t vocabulary = 151552;  // V, of all ranks
  int32_t rounds = 9;           // measurements, of which the median is told

  absl::Status Validate() const;
};

/// JSON lines on stdout, one a kind of exchange and number of rows; on stderr how the GPUs are
/// linked.
absl::Status RunAllReduceBench(const AllReduceBenchOptions& options);

}  // namespace glm::bench
