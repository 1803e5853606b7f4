// Which worker gets a request: a pure function of the request and of what is known of the fleet.
//
// Who calls: an exchange, on its loop. No I/O, no lock, no clock, no state.
//
// Workers are compared by the seconds that the request would cost, by what each says of how long
// its steps take:
//   its first token: the prompts waiting there, then what of this prompt is not cached, at the
//     worker's speed, in as many steps as they need, each with its share of the running batch;
//     or, where no sequence or no block is free, until so many of the running ones have ended;
//   its further tokens: a step of the batch that it joins, for each of them;
//   and what it takes from the others: every running sequence waits while this prompt is computed,
//     and every step of theirs has one sequence more in it.
// So a prefix draws its requests to the worker that has it, the more the busier the fleet is, until
// that worker's queue or batch costs more than computing the prefix anew; from then on it is held
// twice. Short answers look at the queue, long ones at the batch.
//
// Fits have noise. Workers whose costs are within kAlike of what the fleet's times give are taken
// at the fleet's times, those of the worker in the middle: so equals are equals, and are spread. A
// worker that says nothing of its times is taken at the fleet's too. One that was slow counts as
// less so the longer it has said nothing (kForgetS): else it would never get a request again, and
// never say that it has recovered. Where no worker's times are known, cost is counted in prompt
// tokens: kRequestCostTokens for each request, those waiting, and this prompt's that are not
// cached; workers with a free sequence and free blocks come first.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "absl/types/span.h"

namespace glm::router {

enum class Policy : uint8_t {
  kPrefix,      // where it costs least, the prefix that is there counted
  kLeastLoad,   // the same, without prefixes
  kRoundRobin,  // one after the other
  kPowerOfTwo,  // the cheaper of two drawn at random, without prefixes
  kSession,     // always the same one for a session's name; without a name as kPrefix
};

/// "prefix", "least-load", "round-robin", "power-of-two", "session"; nothing for another name.
std::optional<Policy> ParsePolicy(std::string_view name);
/// Whether the policy asks how much of a prompt a worker has cached.
bool CountsPrefixes(Policy policy);

/// How long a worker's steps take: proto/worker.proto StepTimes, in seconds. All 0: not known.
struct StepTimes {
  double base_s = 0;
  double sequence_s = 0;
  double prompt_token_s = 0;
  double context_token_s = 0;

  bool known() const { return base_s + sequence_s + prompt_token_s + context_token_s > 0; }
};

/// One worker as the policy sees it.
struct Candidate {
  bool usable = false;          // ready, and not yet tried in vain by this request
  bool ejected = false;         // taken only where all that are usable are ejected
  bool full = false;            // has all the requests that it may have
  int32_t requests = 0;         // running and waiting
  int32_t sequences_max = 0;    // running at once
  int64_t tokens_waiting = 0;   // prompt tokens not yet computed
  int64_t context_tokens = 0;   // held by the running requests together
  int64_t kv_blocks_free = 0;   // blocks, those included that only the prefix cache holds
  int32_t block_size = 1;       // tokens
  int32_t step_tokens_max = 0;  // computed in one step; 0: not told, kStepTokens is assumed
  int64_t cached_tokens = 0;    // of the prompt, there or on their way; a multiple of block_size
  uint64_t name_hash = 0;       // of its address
  StepTimes times{};
  double times_age_s = 0;  // since it last said anything
};

/// What the policy asks of a request.
struct RouteRequest {
  Policy policy = Policy::kPrefix;
  int64_t prompt_tokens = 0;
  int64_t answer_tokens = 0;  // at most; 0: not known
  bool takes_full = false;    // a replay: it goes even where there is no room
  uint64_t spread = 0;        // any number that differs from request to request: settles ties
  uint64_t turn = 0;          // counts requests, for kRoundRobin
  uint64_t session_hash = 0;  // of the session's name, for kSession; 0: it has none
};

struct Choice {
  int32_t worker = -1;       // -1: none is usable and has room
  double first_token_s = 0;  // seconds to the first token there, predicted; 0: not known
};

/// What one more running request costs its neighbours, in prompt tokens of the same time, where no
/// times are known.
inline constexpr int64_t kRequestCostTokens = 256;
/// An answer's length is not known before its end: this many tokens at most are reckoned with, and
/// this many for each of the running requests.
inline constexpr int64_t kAnswerTokens = 256;
inline constexpr int32_t kStepTokens = 2048;
inline constexpr double kAlike = 1.25;
inline constexpr double kForgetS = 30;  // of silence halve what a worker is slower than the fleet

/// The worker for the request, and the prediction. Equals are spread by `request.spread`.
Choice ChooseWorker(const RouteRequest& request, absl::Span<const Candidate> candidates);

}  // namespace glm::router
