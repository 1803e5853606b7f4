// Which worker gets a request: a pure function of the request and of what is known of the fleet.
//
// Who calls: an exchange, on its loop. No I/O, no lock, no clock, no state.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "absl/types/span.h"

namespace glm::router {

enum class Policy : uint8_t {
  kPrefix,      // where the prompt will be computed soonest, the prefix that is there counted
  kLeastLoad,   // the same, without prefixes
  kRoundRobin,  // one after the other
  kPowerOfTwo,  // the less loaded of two drawn at random
  kSession,     // always the same one for a session's name; without a name as kPrefix
};

/// "prefix", "least-load", "round-robin", "power-of-two", "session"; nothing for another name.
std::optional<Policy> ParsePolicy(std::string_view name);
/// Whether the policy asks how much of a prompt a worker has cached.
bool CountsPrefixes(Policy policy);

/// One worker as the policy sees it.
struct Candidate {
  bool usable = false;         // ready, and not yet tried in vain by this request
  int32_t requests = 0;        // running and waiting
  int32_t sequences_max = 0;   // running at once
  int64_t tokens_waiting = 0;  // prompt tokens not yet computed
  int64_t kv_blocks_free = 0;  // blocks, those included that only the prefix cache holds
  int32_t block_size = 1;      // tokens
  int64_t cached_tokens = 0;   // of the prompt, there or on their way; a multiple of block_size
  uint64_t name_hash = 0;      // of its address
};

/// What the policy asks of a request.
struct RouteRequest {
  Policy policy = Policy::kPrefix;
  int64_t prompt_tokens = 0;
  uint64_t spread = 0;        // any number that differs from request to request: settles ties
  uint64_t turn = 0;          // counts requests, for kRoundRobin
  uint64_t session_hash = 0;  // of the session's name, for kSession; 0: it has none
};

/// What one more running request costs its neighbours, in prompt tokens of the same time.
inline constexpr int64_t kRequestCostTokens = 256;

/// The worker for the request; -1 when none is usable. Load is compared so: first come workers with
/// a free sequence and blocks for the prompt, then the work ahead, in tokens: those waiting there,
/// kRequestCostTokens per request, and of this prompt what is not cached. So a prefix draws its
/// requests to one worker until that one's queue costs more than computing the prefix anew; from
/// then on it is held twice. Equals are spread by `request.spread`.
int32_t ChooseWorker(const RouteRequest& request, absl::Span<const Candidate> candidates);

}  // namespace glm::router
