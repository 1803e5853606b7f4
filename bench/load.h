// `glmserve-bench load`: a load generator for any OpenAI-compatible server.
//
// Random prompts of token ids with exact lengths go to /v1/completions as streams, by a schedule
// that does not wait for answers (open loop) up to a bound of concurrent requests. All times are
// taken on arrival of each event. Prints a table for people and one JSON line for machines.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace glm::bench {

struct LoadOptions {
  std::string host = "127.0.0.1";
  int32_t port = 8000;
  /// Model name in the requests; empty: the one that /v1/models lists first.
  std::string model;
  /// Requests in all.
  int32_t num_prompts = 100;
  /// Requests a second, Poisson arrivals; 0: all at once.
  double request_rate = 0;
  /// Requests in flight at most.
  int32_t max_concurrency = 64;
  /// Tokens of each prompt, and of each answer.
  int32_t random_input_len = 256;
  int32_t random_output_len = 64;
  /// Leading tokens that all prompts share.
  int32_t random_prefix_len = 0;
  /// Prompt ids are drawn from [0, vocabulary).
  int32_t vocabulary = 256;
  uint64_t seed = 0;
  /// A request that takes longer counts as failed. Seconds.
  int32_t timeout_s = 600;

  absl::Status Validate() const;
};

/// OK when every request was answered in full.
absl::Status RunLoad(const LoadOptions& options);

}  // namespace glm::bench
