#include "bench/policy_bench.h"

#include <cstdio>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/policy_simulation.h"

namespace glm::bench {
namespace {

using router::Policy;

constexpr std::pair<const char*, Policy> kPolicies[] = {{"least-load", Policy::kLeastLoad},
                                                        {"prefix", Policy::kPrefix},
                                                        {"power-of-two", Policy::kPowerOfTwo},
                                                        {"round-robin", Policy::kRoundRobin}};

void RunAll(const PolicyBenchOptions& options, const RouteFleet& fleet, const RouteMix& mix,
            double capacity, int32_t load_percent) {
  RouteRun run{
      .rate = capacity * load_percent / 100, .requests = options.requests, .seed = options.seed};
  double least_load = 0;
  for (const auto& [name, policy] : kPolicies) {
    run.policy = policy;
    const RouteResult result = Simulate(fleet, mix, run);
    const double begin = result.last_arrival / 4;
    const double end = result.last_arrival;
    const double served = AnswerTokensPerSecond(result, begin, end);
    if (policy == Policy::kLeastLoad) least_load = served;
    std::puts(
        absl::StrFormat(
            R"({"bench":"policy","shared_percent":%d,"load_percent":%d,"policy":"%s",)"
            R"("requests_per_s":%.2f,"answer_tokens_per_s":%.1f,"of_least_load":%.3f,"cached_share":%.3f,)"
            R"("first_token_p50_s":%.3f,"first_token_p99_s":%.3f,"max_over_mean":%.2f})",
            mix.shared_percent, load_percent, name, run.rate, served, served / least_load,
            CachedShare(result, mix), FirstTokenQuantile(result, 0.5, begin, end),
            FirstTokenQuantile(result, 0.99, begin, end),
            MaxOverMean(RequestsByWorker(result, fleet.workers, begin, end)))
            .c_str());
  }
}

absl::Status CheckRange(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--", name, " is ", value, ", must be from ", low, " to ", high));
}

}  // namespace

absl::Status PolicyBenchOptions::Validate() const {
  absl::Status status = CheckRange("workers", workers, 1, 64);
  status.Update(CheckRange("requests", requests, 100, 1'000'000));
  for (const int32_t share : shared_percent) {
    status.Update(CheckRange("shared-percent", share, 0, 100));
  }
  for (const int32_t load : load_percent) status.Update(CheckRange("load-percent", load, 1, 1000));
  return status;
}

absl::Status RunPolicyBench(const PolicyBenchOptions& options) {
  RouteFleet fleet;
  fleet.workers = options.workers;
  for (const int32_t share : options.shared_percent) {
    RouteMix mix;
    mix.shared_percent = share;
    const double capacity = Capacity(fleet, mix, Policy::kLeastLoad);
    for (const int32_t load : options.load_percent) RunAll(options, fleet, mix, capacity, load);
  }
  return absl::OkStatus();
}

}  // namespace glm::bench
