// A fleet of workers in virtual time, for the router's policy alone: the real ChooseWorker over the
// real PrefixIndex and the workers' real step-time models; everything around them is a model.
//
// What is modelled: workers that run steps as the engine does (every sequence that decodes is in
// every step, prompts take the rest of its tokens, first come first served, a prefix is found when
// a request starts and published when the step that computed it has ended, the least recently used
// blocks go first, leaf before parent). A step takes what `truth` says, times the worker's slowness
// at that moment, with noise. What a worker says after a step is known to the router at once. What
// is not: the network, tokenization, the router's own queue (a request goes to a worker at once,
// and waits there), preemption (a request starts when its whole length has room), drafts, several
// routers.
//
// Who calls: glmserve-bench policy, tests. One thread; the same options give the same result.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "engine/request.h"
#include "router/route/policy.h"

namespace glm::bench {

/// What clients ask for.
struct RouteMix {
  int32_t prompt_tokens = 2048;
  /// The first so many percent of a prompt's tokens are one of `prefixes`, the rest is its own.
  int32_t shared_percent = 50;
  int32_t prefixes = 256;       // prefix n is asked for in proportion to 1 / (n + 1)
  int32_t hot_percent = 0;      // of requests, that take prefix 0
  int32_t answer_tokens = 200;  // mean; exponential, 1 to 1000
};

struct RouteFleet {
  int32_t workers = 8;
  int32_t sequences_max = 256;
  int32_t step_tokens_max = 2048;
  int32_t block_size = 64;
  int64_t kv_blocks = 8192;  // of each worker
  /// About a 30-billion mixture of experts in FP8 on an H100: bench/RESULTS.md, "Steps".
  engine::StepTimes truth = {
      .base_us = 12'000, .sequence_us = 50, .prompt_token_us = 20, .context_token_us = 0.01};
  double noise = 0.05;  // standard deviation of a step's time, as a share
  /// How many times slower a worker is at a second.
  std::function<double(int32_t worker, double now)> slowness = [](int32_t, double) { return 1.0; };
};

struct RouteRun {
  router::Policy policy = router::Policy::kPrefix;
  double rate = 100;        // requests a second, Poisson
  int64_t requests = 4000;  // then come those of the burst, and all end
  int64_t burst = 0;        // requests of one prefix, new to all, within 10 ms; a second later
  uint64_t seed = 1;
};

/// One request, in order of arrival.
struct RouteOutcome {
  double arrived = 0;
  int32_t worker = -1;
  double predicted_first_token = 0;  // seconds after its arrival
  double first_token = 0;            // seconds after its arrival
  double ended = 0;                  // at this second
  int32_t answer_tokens = 0;
  int32_t cached_tokens = 0;
};

struct RouteResult {
  std::vector<RouteOutcome> outcomes;
  double last_arrival = 0;
  std::vector<int64_t> answer_tokens;  // made in each second
  int64_t shared_computed = 0;         // tokens of shared prefixes that were computed
};

RouteResult Simulate(const RouteFleet& fleet, const RouteMix& mix, const RouteRun& run);

/// Tokens of answers a second, of the whole seconds from `begin` to `end`.
double AnswerTokensPerSecond(const RouteResult& result, double begin, double end);
/// A quantile of the seconds to the first token of requests that arrived from `begin` to `end`.
double FirstTokenQuantile(const RouteResult& result, double share, double begin, double end);
/// Requests sent to each worker that arrived from `begin` to `end`.
std::vector<int64_t> RequestsByWorker(const RouteResult& result, int32_t workers, double begin,
                                      double end);
/// The largest of the counts over their mean.
double MaxOverMean(const std::vector<int64_t>& counts);
/// Tokens of prompts that were found in a cache, as a share of all.
double CachedShare(const RouteResult& result, const RouteMix& mix);

/// Requests a second that the fleet serves at most, under `policy`: all arrive at once.
double Capacity(const RouteFleet& fleet, const RouteMix& mix, router::Policy policy);

}  // namespace glm::bench
