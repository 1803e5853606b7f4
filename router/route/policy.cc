#include "router/route/policy.h"

#include <algorithm>
#include <array>
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

/// Smaller is better.
struct Cost {
  bool must_wait = false;  // no sequence or no blocks are free
  int64_t work_tokens = 0;

  bool operator==(const Cost&) const = default;
  bool operator<(const Cost& other) const {
    return std::tie(must_wait, work_tokens) < std::tie(other.must_wait, other.work_tokens);
  }
};

Cost CostOf(const RouteRequest& request, const Candidate& candidate) {
  int64_t tokens = request.prompt_tokens;
  // The last token is always computed.
  if (CountsPrefixes(request.policy))
    tokens = std::max<int64_t>(1, tokens - candidate.cached_tokens);
  const int64_t blocks = (tokens + candidate.block_size - 1) / candidate.block_size;
  return {
      .must_wait =
          candidate.requests >= candidate.sequences_max || candidate.kv_blocks_free < blocks,
      .work_tokens = candidate.tokens_waiting + candidate.requests * kRequestCostTokens + tokens};
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
                 const std::vector<int32_t>& among) {
  std::vector<int32_t> best;
  Cost least;
  for (const int32_t i : among) {
    const Cost cost = CostOf(request, candidates[i]);
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

int32_t ChooseWorker(const RouteRequest& request, absl::Span<const Candidate> candidates) {
  std::vector<int32_t> usable;
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (candidates[i].usable) usable.push_back(static_cast<int32_t>(i));
  }
  if (usable.empty()) return -1;
  switch (request.policy) {
    case Policy::kRoundRobin:
      return usable[request.turn % usable.size()];
    case Policy::kPowerOfTwo: {
      const uint64_t draws = Mix(request.spread);
      const uint64_t first = draws % usable.size();
      if (usable.size() == 1) return usable[0];
      // Another one than the first.
      const uint64_t second = (first + 1 + (draws >> 32) % (usable.size() - 1)) % usable.size();
      return Cheapest(request, candidates, {usable[first], usable[second]});
    }
    case Policy::kSession:
      if (request.session_hash != 0) return OfSession(request, candidates, usable);
      [[fallthrough]];
    case Policy::kPrefix:
    case Policy::kLeastLoad:
      return Cheapest(request, candidates, usable);
  }
  return -1;
}

}  // namespace glm::router
