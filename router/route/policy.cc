#include "router/route/policy.h"

#include <tuple>

namespace glm::router {
namespace {

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
  const int64_t blocks = (request.prompt_tokens + candidate.block_size - 1) / candidate.block_size;
  return {.must_wait =
              candidate.requests >= candidate.sequences_max || candidate.kv_blocks_free < blocks,
          .work_tokens = candidate.tokens_waiting + candidate.requests * kRequestCostTokens};
}

}  // namespace

int32_t ChooseWorker(const RouteRequest& request, absl::Span<const Candidate> candidates) {
  Cost best;
  uint64_t equals = 0;  // usable candidates that cost `best`
  for (const Candidate& candidate : candidates) {
    if (!candidate.usable) continue;
    const Cost cost = CostOf(request, candidate);
    if (equals == 0 || cost < best) {
      best = cost;
      equals = 1;
    } else if (cost == best) {
      ++equals;
    }
  }
  if (equals == 0) return -1;
  uint64_t skip = request.spread % equals;
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (candidates[i].usable && CostOf(request, candidates[i]) == best && skip-- == 0) {
      return static_cast<int32_t>(i);
    }
  }
  return -1;
}

}  // namespace glm::router
