#include "router/route/policy.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <tuple>
#include <utility>
#include <vector>

namespace glm::router {
namespace {

constexpr std::array<std::pair<std::string_view, Policy>, 5> kPolicies = {{
    {"prefix", Policy::kPrefix},
    {"least-load", Policy::kLeastLoad},
    {"round-robin", Policy::kRoundRobin},
    {"power-of-two", Policy::kPowerOfTwo},
    {"session", Policy::kSession},
}};

/// What the request would be at one worker. Smaller is better, in this order; one of the last two
/// is 0 for all workers.
struct Cost {
  bool must_wait = false;  // no sequence or no blocks are free; seconds have it in them
  double seconds = 0;
  int64_t tokens = 0;
  double first_token_s = 0;  // not compared

  bool operator==(const Cost& other) const { return Key() == other.Key(); }
  bool operator<(const Cost& other) const { return Key() < other.Key(); }

 private:
  std::tuple<bool, double, int64_t> Key() const { return {must_wait, seconds, tokens}; }
};

/// Tokens of the prompt that are to be computed there. The last one always is.
int64_t TokensToCompute(const RouteRequest& request, const Candidate& worker) {
  if (!CountsPrefixes(request.policy)) return request.prompt_tokens;
  return std::max<int64_t>(1, request.prompt_tokens - worker.cached_tokens);
}

int64_t BlocksMissing(const Candidate& worker, int64_t tokens) {
  const int64_t blocks = (tokens + worker.block_size - 1) / worker.block_size;
  return std::max<int64_t>(0, blocks - worker.kv_blocks_free);
}

Cost CostInTokens(const RouteRequest& request, const Candidate& worker) {
  const int64_t tokens = TokensToCompute(request, worker);
  return {.must_wait = worker.requests >= worker.sequences_max || BlocksMissing(worker, tokens) > 0,
          .tokens = worker.tokens_waiting + worker.requests * kRequestCostTokens + tokens};
}

/// A step of `times` in which `sequences` decode over `context` tokens.
double DecodeStep(const StepTimes& times, double sequences, double context) {
  return times.base_s + times.sequence_s * sequences + times.context_token_s * context;
}

struct Seconds {
  double first_token = 0;
  double all = 0;
};

/// Seconds until there is a sequence and blocks for `tokens`, taking it that of the running
/// requests one ends after the other.
double RoomWait(const Candidate& worker, const StepTimes& times, int64_t tokens) {
  const double running = std::max(1, std::min(worker.requests, worker.sequences_max));
  double ends = std::max(0, worker.requests + 1 - worker.sequences_max);
  if (const int64_t missing = BlocksMissing(worker, tokens); missing > 0) {
    const double blocks_each =
        static_cast<double>(worker.context_tokens) / worker.block_size / running;
    ends = std::max(ends, static_cast<double>(missing) / std::max(1.0, blocks_each));
  }
  const double step = DecodeStep(times, running, static_cast<double>(worker.context_tokens));
  return ends * kAnswerTokens * step / running;
}

/// The request at a worker whose steps take `times`: see the head of policy.h.
Seconds Predict(const RouteRequest& request, const Candidate& worker, const StepTimes& times) {
  const auto running = static_cast<double>(std::min(worker.requests, worker.sequences_max));
  const auto context = static_cast<double>(worker.context_tokens);
  const auto prompt = static_cast<double>(request.prompt_tokens);
  const int64_t tokens = TokensToCompute(request, worker);
  const auto computed = static_cast<double>(tokens);
  const auto waiting = static_cast<double>(worker.tokens_waiting);

  const int32_t step_tokens = worker.step_tokens_max > 0 ? worker.step_tokens_max : kStepTokens;
  const double prompt_share = std::max(1.0, step_tokens - running);
  const double batch = DecodeStep(times, running, context);
  const double queue = waiting * times.prompt_token_s + waiting / prompt_share * batch;
  const double own =
      computed * times.prompt_token_s + std::max(1.0, computed / prompt_share) * batch;
  Seconds seconds;
  seconds.first_token = std::max(queue, RoomWait(worker, times, tokens)) + own;

  const auto answer = static_cast<double>(
      request.answer_tokens > 0 ? std::min(request.answer_tokens, kAnswerTokens) : kAnswerTokens);
  const double further = (answer - 1) * DecodeStep(times, running + 1, context + prompt);
  const double sequence = times.sequence_s + times.context_token_s * prompt;
  const double others = running * (computed * times.prompt_token_s + answer * sequence);
  seconds.all = seconds.first_token + further + others;
  return seconds;
}

/// How long a step takes by which workers are put in order of speed.
double ReferenceStep(const StepTimes& times) {
  return DecodeStep(times, 32, 32 * 1024) + 256 * times.prompt_token_s;
}

/// The times of the worker in the middle of those that are known; not known if none is.
StepTimes FleetTimes(absl::Span<const Candidate> candidates, const std::vector<int32_t>& among) {
  std::vector<int32_t> known;
  for (const int32_t i : among) {
    if (candidates[i].times.known()) known.push_back(i);
  }
  if (known.empty()) return {};
  const auto middle = known.begin() + (static_cast<int64_t>(known.size()) - 1) / 2;
  std::nth_element(known.begin(), middle, known.end(), [&](int32_t a, int32_t b) {
    return ReferenceStep(candidates[a].times) < ReferenceStep(candidates[b].times);
  });
  return candidates[*middle].times;
}

Cost CostOf(const RouteRequest& request, const Candidate& worker, const StepTimes& fleet) {
  if (!fleet.known()) return CostInTokens(request, worker);
  const Seconds usual = Predict(request, worker, fleet);
  Cost cost{.seconds = usual.all, .first_token_s = usual.first_token};
  if (!worker.times.known()) return cost;
  const Seconds own = Predict(request, worker, worker.times);
  if (own.all <= usual.all * kAlike && own.all * kAlike >= usual.all) return cost;
  const double trust = std::exp2(-worker.times_age_s / kForgetS);
  cost.seconds += trust * (own.all - usual.all);
  cost.first_token_s += trust * (own.first_token - usual.first_token);
  return cost;
}

/// The finaliser of SplitMix64.
uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

/// The cheapest of the workers `among`; equals are spread. REQUIRES that there is one.
int32_t Cheapest(const RouteRequest& request, absl::Span<const Candidate> candidates,
                 const std::vector<int32_t>& among, const StepTimes& fleet) {
  std::vector<int32_t> best;
  Cost least;
  for (const int32_t i : among) {
    const Cost cost = CostOf(request, candidates[i], fleet);
    if (best.empty() || cost < least) {
      least = cost;
      best = {i};
    } else if (cost == least) {
      best.push_back(i);
    }
  }
  return best[request.spread % best.size()];
}

/// Rendezvous hashing: when workers come or go, only the sessions of those move.
int32_t OfSession(const RouteRequest& request, absl::Span<const Candidate> candidates,
                  const std::vector<int32_t>& usable) {
  return *std::max_element(usable.begin(), usable.end(), [&](int32_t a, int32_t b) {
    return Mix(request.session_hash ^ candidates[a].name_hash) <
           Mix(request.session_hash ^ candidates[b].name_hash);
  });
}

/// Those that are usable and not ejected, or else those that are usable; of these, those with room,
/// or else all for a request that takes full ones. An ejected worker is not asked because the
/// others are full: these are waited for.
std::vector<int32_t> MayHave(const RouteRequest& request, absl::Span<const Candidate> candidates) {
  std::vector<int32_t> usable;
  for (const bool ejected : {false, true}) {
    for (size_t i = 0; i < candidates.size(); ++i) {
      if (candidates[i].usable && candidates[i].ejected == ejected) {
        usable.push_back(static_cast<int32_t>(i));
      }
    }
    if (!usable.empty()) break;
  }
  const auto full = [&](int32_t i) { return candidates[i].full; };
  const bool all_full = std::all_of(usable.begin(), usable.end(), full);
  if (!all_full || !request.takes_full) std::erase_if(usable, full);
  return usable;
}

int32_t Choose(const RouteRequest& request, absl::Span<const Candidate> candidates,
               const std::vector<int32_t>& usable, const StepTimes& fleet) {
  switch (request.policy) {
    case Policy::kRoundRobin:
      return usable[request.turn % usable.size()];
    case Policy::kPowerOfTwo: {
      const uint64_t draws = Mix(request.spread);
      const uint64_t first = draws % usable.size();
      if (usable.size() == 1) return usable[0];
      // Another one than the first.
      const uint64_t second = (first + 1 + (draws >> 32) % (usable.size() - 1)) % usable.size();
      return Cheapest(request, candidates, {usable[first], usable[second]}, fleet);
    }
    case Policy::kSession:
      if (request.session_hash != 0) return OfSession(request, candidates, usable);
      [[fallthrough]];
    case Policy::kPrefix:
    case Policy::kLeastLoad:
      return Cheapest(request, candidates, usable, fleet);
  }
  return -1;
}

}  // namespace

std::optional<Policy> ParsePolicy(std::string_view name) {
  for (const auto& [known, policy] : kPolicies) {
    if (name == known) return policy;
  }
  return std::nullopt;
}

bool CountsPrefixes(Policy policy) {
  return policy == Policy::kPrefix || policy == Policy::kSession;
}

Choice ChooseWorker(const RouteRequest& request, absl::Span<const Candidate> candidates) {
  const std::vector<int32_t> usable = MayHave(request, candidates);
  if (usable.empty()) return {};
  const StepTimes fleet = FleetTimes(candidates, usable);
  const int32_t chosen = Choose(request, candidates, usable, fleet);
  return {.worker = chosen,
          .first_token_s = CostOf(request, candidates[chosen], fleet).first_token_s};
}

}  // namespace glm::router
