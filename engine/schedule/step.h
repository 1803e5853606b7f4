// A step's two halves: the plan goes down to the ranks, the result comes up.
//
// Flat arrays that mirror kernels/ops.h BatchView, so that a rank uploads them as they are. The
// engine thread fills a plan and puts the same pointer into every rank's mailbox; from then until
// the result is back the plan is read-only. Vectors keep their capacity from step to step.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/ops.h"

namespace glm::engine {

struct StepPlan {
  uint64_t step = 0;
  std::vector<int32_t>
      token_ids;  // [T] a token, or ~slot: the newest id of that slot, on the device
  std::vector<int32_t> positions;        // [T]
  std::vector<int32_t> token_sequences;  // [T]
  std::vector<int32_t> query_starts;     // [S+1]
  std::vector<int32_t> kv_lengths;       // [S]
  int32_t blocks_max = 0;                // of the sequences in this plan
  std::vector<int32_t> block_tables;     // [S * blocks_max], row-major, zero-filled
  std::vector<int32_t> logit_tokens;     // [R]
  std::vector<SampleRow> sample_rows;    // [R]
};

struct StepResult {
  uint64_t step = 0;
  std::vector<int32_t> ids;  // [R] sampled ids
  double seconds = 0;        // on the device, upload to download
};

}  // namespace glm::engine
