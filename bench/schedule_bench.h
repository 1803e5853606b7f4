// glmserve-bench schedule: what the host takes for a step, and whether the device waits for it.
//
// Two measurements. `schedule`: Plan and Apply of the scheduler alone, all sequences decoding, with
// a result that is there at once. `overlap`: the whole engine loop over a device that does nothing
// for a set time a step; how long it stands idle between two steps, with one plan in flight and
// with two.
#pragma once

#include <cstdint>

#include "absl/status/status.h"

namespace glm::bench {

struct ScheduleBenchOptions {
  int32_t sequences = 256;      // decoding at once
  int32_t prompt_tokens = 512;  // of each
  int32_t steps = 1000;         // of which the time is told
  int32_t step_us = 2000;       // of the device
  int32_t block_size = 64;
  int32_t drafts = 0;  // a sequence and step, half of them right; 0 with two plans in flight
  bool prefix_caching = true;

  absl::Status Validate() const;
};

/// One JSON line a measurement on stdout.
absl::Status RunScheduleBench(const ScheduleBenchOptions& options);

}  // namespace glm::bench
