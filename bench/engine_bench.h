// glmserve-bench engine: decode steps of a model through the whole engine loop, with random weights
// by its config alone: what a step takes, and how long the device stands still between two.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "bench/ranks.h"

namespace glm::bench {

struct EngineBenchOptions {
  std::string model;           // folder with a config.json
  std::string device = "cpu";  // "cpu" or "cuda"
  RanksOptions ranks;
  int32_t load_threads = 4;
  std::string quantization = "none";    // "fp8": linears are quantised while loading
  std::string kv_cache_dtype = "auto";  // or "fp8"
  std::vector<int32_t> batch = {1};     // sequences that decode at once
  int32_t context = 1000;               // tokens of each prompt
  int32_t steps = 128;                  // of which the time is told
  int32_t drafts = 0;                   // a sequence and step, by the model's draft layer

  absl::Status Validate() const;
};

/// JSON lines on stdout, one a batch. `stats` of the engine are taken when every sequence decodes
/// and again when the first ends.
absl::Status RunEngineBench(const EngineBenchOptions& options);

}  // namespace glm::bench
