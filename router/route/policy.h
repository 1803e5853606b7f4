// Which worker gets a request: a pure function of the request and of what is known of the fleet.
//
// Who calls: an exchange, on its loop. No I/O, no lock, no clock, no state.
#pragma once

#include <cstdint>

#include "absl/types/span.h"

namespace glm::router {

/// One worker as the policy sees it.
struct Candidate {
  bool usable = false;         // ready, and not yet tried in vain by this request
  int32_t requests = 0;        // running and waiting
  int32_t sequences_max = 0;   // running at once
  int64_t tokens_waiting = 0;  // prompt tokens not yet computed
  int64_t kv_blocks_free = 0;  // blocks
  int32_t block_size = 1;      // tokens
};

/// What the policy asks of a request.
struct RouteRequest {
  int64_t prompt_tokens = 0;
  uint64_t spread = 0;  // any number that differs from request to request: settles ties
};

/// What one more running request costs its neighbours, in prompt tokens of the same time.
inline constexpr int64_t kRequestCostTokens = 256;

/// The least loaded usable worker: first those with a free sequence and blocks for the prompt, then
/// by work ahead (tokens_waiting and kRequestCostTokens per request). Equals are spread by
/// `request.spread`. -1 when none is usable.
int32_t ChooseWorker(const RouteRequest& request, absl::Span<const Candidate> candidates);

}  // namespace glm::router
