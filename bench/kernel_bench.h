// glmserve-bench kernel: every op on the shapes of GLM-4.5, Air and Flash, against what the memory
// and the arithmetic of the device allow.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace glm::bench {

struct KernelBenchOptions {
  std::string device = "cpu";  // "cpu": small shapes; "cuda": the real ones
  int32_t device_index = 0;
  int32_t cpu_threads = 1;
  std::string only;    // run benchmarks whose name contains this
  int32_t rounds = 7;  // measurements, of which the median is told

  absl::Status Validate() const;
};

/// One JSON line a benchmark on stdout. UNAVAILABLE when there is no such device.
absl::Status RunKernelBench(const KernelBenchOptions& options);

}  // namespace glm::bench
