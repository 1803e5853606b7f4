// glmserve-bench step: decode steps and prompts of a model by its config alone, with random
// weights, through the engine's model, batch and graphs, against the floor.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "bench/ranks.h"

namespace glm::bench {

struct StepBenchOptions {
  std::string model;           // folder with a config.json
  std::string device = "cpu";  // "cpu" or "cuda"
  RanksOptions ranks;
  bool gpu_exchange_overlap = false;  // sums of many tokens beside products; false: after them
  int32_t cpu_threads = 1;
  int32_t load_threads = 4;
  int32_t layers = 0;                   // the first so many only; 0: all
  std::string quantization = "none";    // "fp8": linears are quantised while loading
  std::string kv_cache_dtype = "auto";  // or "fp8"
  int32_t block_size = 64;
  std::vector<int32_t> batch = {1};  // sequences of the decode steps
  int32_t context = 1000;            // cached tokens of each
  std::vector<int32_t> prompt = {};  // tokens of the prompts
  int32_t max_num_batched_tokens = 8192;
  int32_t steps = 64;       // decode steps of which the time is told
  int32_t drafts = 0;       // by the model's draft layer, of each sequence in each decode step
  double acceptance = 0.7;  // share of drafts that are taken to be right, each behind a right one
  bool op_times = true;     // a table of where a step's time goes

  absl::Status Validate() const;
};

/// JSON lines on stdout, one a decode batch and prompt, and one for each op of theirs.
absl::Status RunStepBench(const StepBenchOptions& options);

}  // namespace glm::bench
