// The policy over a fleet in virtual time (bench/policy_simulation.h): hot prefixes, bursts, a
// worker that becomes slow, and what prefixes give or cost against plain least load.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <vector>

#include "bench/policy_bench.h"
#include "bench/policy_simulation.h"
#include "router/route/policy.h"

namespace glm::bench {
namespace {

using router::Policy;

/// Of those that arrived from `begin` to `end`.
double ShareOf(int32_t worker, const RouteResult& result, int32_t workers, double begin,
               double end) {
  const std::vector<int64_t> counts = RequestsByWorker(result, workers, begin, end);
  int64_t sum = 0;
  for (const int64_t count : counts) sum += count;
  return static_cast<double>(counts[worker]) / static_cast<double>(std::max<int64_t>(1, sum));
}

TEST(PolicySimulationTest, PrefixesNeverCostThroughputAndGiveItWhereTheyAreShared) {
  const RouteFleet fleet;
  std::printf(
      "shared  load requests/s  tokens/s: least-load, prefix, ratio; cached; p99 first token\n");
  for (const int32_t share : {0, 50, 90}) {
    RouteMix mix;
    mix.shared_percent = share;
    const double capacity = Capacity(fleet, mix, Policy::kLeastLoad);
    for (const int32_t load : {30, 70, 100, 120}) {
      const auto simulate = [&](Policy policy) {
        return Simulate(fleet, mix,
                        {.policy = policy, .rate = capacity * load / 100, .requests = 6000});
      };
      const RouteResult least_load = simulate(Policy::kLeastLoad);
      const RouteResult prefix = simulate(Policy::kPrefix);
      const double end = prefix.last_arrival;
      const double begin = end / 3;
      const double served = AnswerTokensPerSecond(least_load, begin, end);
      const double with_prefixes = AnswerTokensPerSecond(prefix, begin, end);
      std::printf("%5d%% %4d%% %10.1f %19.0f %7.0f %6.3f %7.2f %5.2f -> %.2f s\n", share, load,
                  capacity * load / 100, served, with_prefixes, with_prefixes / served,
                  CachedShare(prefix, mix), FirstTokenQuantile(least_load, 0.99, begin, end),
                  FirstTokenQuantile(prefix, 0.99, begin, end));
      EXPECT_GE(with_prefixes, 0.98 * served) << share << " % shared, load " << load << " %";
      EXPECT_LE(FirstTokenQuantile(prefix, 0.99, begin, end),
                1.05 * FirstTokenQuantile(least_load, 0.99, begin, end));
      if (share == 90 && load == 120) {
        EXPECT_GE(with_prefixes, 1.08 * served);
      }
    }
  }
}

// F14, the steady half.
TEST(PolicySimulationTest, AHotPrefixIsHeldByAsManyWorkersAsItsTrafficNeeds) {
  const RouteFleet fleet;
  RouteMix mix;
  mix.shared_percent = 75;
  mix.hot_percent = 90;
  const double capacity = Capacity(fleet, mix, Policy::kLeastLoad);
  for (const int32_t load : {30, 70, 100}) {
    const RouteResult result =
        Simulate(fleet, mix, {.rate = capacity * load / 100, .requests = 6000});
    const std::vector<int64_t> counts =
        RequestsByWorker(result, fleet.workers, 0, result.last_arrival);
    std::printf("hot prefix, load %d %%: max/mean %.2f, cached %.2f\n", load, MaxOverMean(counts),
                CachedShare(result, mix));
    EXPECT_LE(MaxOverMean(counts), 1.5);
    EXPECT_GE(CachedShare(result, mix), 0.65);
  }
}

// F14, the sudden half: on a fleet that has just begun, and on one that is known and has work.
TEST(PolicySimulationTest, ABurstOfSiblingsIsSpread) {
  const RouteFleet fleet;
  RouteMix mix;
  mix.shared_percent = 75;
  const int64_t shared = mix.prompt_tokens * mix.shared_percent / 100;
  for (const double rate : {0.5, 30.0}) {
    for (uint64_t seed = 1; seed <= 5; ++seed) {
      const RouteRun run{.rate = rate, .requests = rate < 1 ? 1 : 500, .burst = 512, .seed = seed};
      const RouteResult all = Simulate(fleet, mix, run);
      const std::vector<int64_t> counts =
          RequestsByWorker(all, fleet.workers, all.last_arrival - 0.015, all.last_arrival + 1);
      EXPECT_LE(MaxOverMean(counts), 1.5) << "rate " << rate << ", seed " << seed;
      RouteRun before = run;
      before.burst = 0;
      const int64_t computed = all.shared_computed - Simulate(fleet, mix, before).shared_computed;
      // Once a worker, or a little more: those that start in one step do not yet find it.
      EXPECT_LE(computed, shared * fleet.workers * 13 / 10);
      std::printf("burst at %.1f requests/s: max/mean %.2f, the shared part computed %.1f times\n",
                  rate, MaxOverMean(counts),
                  static_cast<double>(computed) / static_cast<double>(shared));
    }
  }
}

// F15.
TEST(PolicySimulationTest, AWorkerThatIsFiveTimesSlowerLosesItsShareAndGetsItBack) {
  constexpr double kSlowAt = 60;
  constexpr double kSlowEnds = 120;
  RouteFleet fleet;
  fleet.workers = 4;
  fleet.slowness = [](int32_t worker, double now) {
    return worker == 2 && now >= kSlowAt && now < kSlowEnds ? 5.0 : 1.0;
  };
  const RouteMix mix;
  const double capacity = Capacity(fleet, mix, Policy::kLeastLoad);
  for (const int32_t load : {30, 50, 70}) {
    const double rate = capacity * load / 100;
    const RouteResult result =
        Simulate(fleet, mix, {.rate = rate, .requests = static_cast<int64_t>(rate * 330)});
    const auto share = [&](double begin, double end) {
      return ShareOf(2, result, fleet.workers, begin, end);
    };
    const double before = share(20, kSlowAt);
    const double slow = share(kSlowAt + 5, kSlowEnds);
    std::printf("brown-out, load %d %%: share %.3f -> %.3f -> %.3f, p99 first token %.2f -> %.2f\n",
                load, before, slow, share(kSlowEnds + 60, 330),
                FirstTokenQuantile(result, 0.99, 20, kSlowAt),
                FirstTokenQuantile(result, 0.99, kSlowAt + 5, kSlowEnds));
    EXPECT_NEAR(before, 0.25, 0.04);
    EXPECT_LE(slow, 0.25 * before);
    EXPECT_LE(share(kSlowAt + 5, kSlowAt + 10), 0.25 * before) << "after 5 s";
    EXPECT_GE(share(kSlowEnds + 150, 330), 0.8 * before) << "it is trusted again";
  }
}

TEST(PolicySimulationTest, TheSameSeedGivesTheSameRun) {
  const RouteFleet fleet;
  const RouteMix mix;
  const auto simulate = [&](uint64_t seed) {
    return Simulate(fleet, mix, {.rate = 100, .requests = 500, .seed = seed});
  };
  const RouteResult once = simulate(3);
  const RouteResult again = simulate(3);
  ASSERT_EQ(once.outcomes.size(), 500u);
  for (size_t i = 0; i < once.outcomes.size(); ++i) {
    EXPECT_EQ(once.outcomes[i].ended, again.outcomes[i].ended);
    EXPECT_GT(once.outcomes[i].ended, once.outcomes[i].arrived) << "all end";
    EXPECT_GT(once.outcomes[i].first_token, 0);
  }
  EXPECT_NE(simulate(4).last_arrival, once.last_arrival);
}

TEST(PolicyBenchTest, OptionsHaveBounds) {
  EXPECT_TRUE(PolicyBenchOptions().Validate().ok());
  PolicyBenchOptions options;
  options.load_percent = {30, 1001};
  EXPECT_EQ(options.Validate().message(), "--load-percent is 1001, must be from 1 to 1000");
  options = {};
  options.workers = 0;
  EXPECT_EQ(options.Validate().message(), "--workers is 0, must be from 1 to 64");
}

TEST(PolicySimulationTest, ThePredictionIsOfTheRightOrder) {
  const RouteFleet fleet;
  RouteMix mix;
  const double capacity = Capacity(fleet, mix, Policy::kLeastLoad);
  for (const int32_t load : {30, 70, 100, 120}) {
    const RouteResult result =
        Simulate(fleet, mix, {.rate = capacity * load / 100, .requests = 4000});
    std::vector<double> ratios;
    for (const RouteOutcome& outcome : result.outcomes) {
      if (outcome.arrived < result.last_arrival / 3) continue;
      ratios.push_back(outcome.predicted_first_token / outcome.first_token);
    }
    std::sort(ratios.begin(), ratios.end());
    const double low = ratios[ratios.size() / 10];
    const double middle = ratios[ratios.size() / 2];
    const double high = ratios[ratios.size() * 9 / 10];
    std::printf("prediction over measured, load %d %%: %.2f, %.2f, %.2f\n", load, low, middle,
                high);
    EXPECT_GE(middle, 0.5);
    EXPECT_LE(middle, 2.0);
  }
}

}  // namespace
}  // namespace glm::bench
