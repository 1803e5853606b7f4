// The whole vocabulary that the engine speaks with the outside: requests down, step events up.
//
// Everything is token ids; the engine never sees text. A request ends exactly once, with a finish
// reason, in some StepEvents, unless Submit refused it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace glm::engine {

/// Chosen by the caller of Engine::Submit, unique among live requests.
using RequestId = uint64_t;

enum class FinishReason : uint8_t {
  kNone = 0,       // goes on
  kStop = 1,       // a stop id was produced
  kLength = 2,     // max_tokens, or the model's length, was reached
  kCancelled = 3,  // Cancel
};

/// Something added to the logit of one id: [-100, 100], or minus infinity for a ban.
struct LogitBias {
  int32_t id = 0;
  float add = 0;
};

/// Most entries of the lists below, of one request.
inline constexpr int32_t kLogitBiasMax = 1024;
inline constexpr int32_t kBadWordsMax = 256;
inline constexpr int32_t kBadWordTokensMax = 32;

/// How to draw a token; see kernels/ops.h `sample` for the order of operations. What is drawn
/// depends on these, the choice, the position and the tokens before it only: not on the batch, not
/// on drafting, not on preemption.
struct SamplingParams {
  float temperature = 1.0f;         // [0, 100]; 0 is greedy
  float top_p = 1.0f;               // (0, 1]
  float min_p = 0.0f;               // [0, 1]
  int32_t top_k = 0;                // 0: no limit
  float repetition_penalty = 1.0f;  // (0, 10]
  float frequency_penalty = 0.0f;   // [-2, 2]
  float presence_penalty = 0.0f;    // [-2, 2]
  uint64_t seed = 0;
  uint32_t choice = 0;  // which of the n answers to one request this is
  std::vector<LogitBias> logit_bias;
  std::vector<std::vector<int32_t>> bad_words;  // token runs that are never completed
  std::vector<int32_t> allowed_ids;             // if there are any: no other id is drawn
  int32_t logprobs = -1;         // alternatives a token: 0..kLogprobsMax; 0: its own; -1: none
  int32_t prompt_logprobs = -1;  // the same of the prompt's tokens
};

/// Most stop ids of one request.
inline constexpr int32_t kStopIdsMax = 128;

struct StopRule {
  std::vector<int32_t> stop_ids;  // any of these ends the request; the id itself is delivered
  int32_t max_tokens = 16;        // at least 1
  int32_t min_tokens = 0;         // no stop id is drawn before this many
};

struct Request {
  RequestId id = 0;
  std::vector<int32_t> prompt_ids;  // at least 1
  /// The last so many of prompt_ids are tokens that the request had generated before it came here
  /// (a router replays it): penalties, min_tokens and positions count them as generated,
  /// stop.max_tokens does not.
  int32_t generated_before = 0;
  SamplingParams sampling;
  StopRule stop;
  int32_t priority = 0;  // [-1000, 1000]; the lower is served first, then by arrival
  /// Prefixes are shared only among requests of one salt.
  std::string cache_salt;
};

/// The logprobs of one token.
struct TokenLogprobs {
  int32_t id = 0;
  float logprob = 0;
  int32_t rank = 0;  // 1: the likeliest
  struct Alternative {
    int32_t id = 0;
    float logprob = 0;
  };
  std::vector<Alternative> top;  // falling; as many as asked for
};

/// What one step did for one request.
struct RequestEvent {
  RequestId id = 0;
  std::vector<int32_t> token_ids;       // new tokens, in order; may be empty when the request ends
  std::vector<TokenLogprobs> logprobs;  // of token_ids, if asked for
  std::vector<TokenLogprobs> prompt_logprobs;  // of the prompt's next tokens, from the second on
  FinishReason finish = FinishReason::kNone;
  int32_t stop_id = -1;       // the id that ended it, with kStop
  int32_t prompt_tokens = 0;  // length of the prompt
  int32_t cached_tokens = 0;  // of those, taken from the prefix cache
};

/// The engine's load at the end of a step. Routers balance by it.
struct EngineLoad {
  int32_t requests_running = 0;
  int32_t requests_waiting = 0;
  int64_t tokens_waiting = 0;  // prompt tokens not yet computed, running and waiting
  int64_t kv_blocks_used = 0;
  int64_t kv_blocks_total = 0;
};

/// 128-bit chained hash of a full block and all before it: proto/base/block_hash.h.
struct BlockKey {
  uint64_t high = 0;
  uint64_t low = 0;
  bool operator==(const BlockKey&) const = default;
};

/// A change of what the prefix cache holds, in order.
struct CacheChange {
  bool stored = true;  // false: removed
  BlockKey block;
  BlockKey parent;  // of a stored one; zero: it is a first block
};

/// What a step produced, given to the sink on the engine thread.
struct StepEvents {
  uint64_t step = 0;
  std::vector<RequestEvent> requests;
  EngineLoad load;
  /// Changes of the prefix cache; the first has number cache_sequence, from 1.
  uint64_t cache_sequence = 0;
  std::vector<CacheChange> cache_changes;
  uint64_t cache_digest = 0;  // of all changes so far: proto/base/block_hash.h Digest
};

/// Counters since start, and gauges; read at any time.
struct EngineStats {
  EngineLoad load;
  uint64_t steps = 0;
  uint64_t requests_finished_stop = 0;
  uint64_t requests_finished_length = 0;
  uint64_t requests_cancelled = 0;
  uint64_t prompt_tokens = 0;  // computed
  uint64_t generated_tokens = 0;
  uint64_t preemptions = 0;            // a running request gave its KV blocks up, to compute anew
  double step_seconds = 0;             // summed
  uint64_t prompt_tokens_cached = 0;   // found in the prefix cache
  uint64_t prompt_tokens_queried = 0;  // looked up there
  uint64_t cache_blocks_evicted = 0;
  uint64_t draft_rounds = 0;                 // sequences' steps with drafts
  uint64_t draft_tokens = 0;                 // proposed and judged
  std::array<uint64_t, 5> draft_accepted{};  // by position of the draft
  int32_t drafts_now = 0;                    // drafts a sequence, as chosen last
};

/// What a router must know of the engine it talks to.
struct EngineShape {
  std::string model_name;  // last part of the checkpoint's path, or --served-model-name
  int32_t vocabulary = 0;  // ids below this are accepted in prompts
  int32_t length_max = 0;  // prompt + generated tokens of one request
  int32_t block_size = 0;  // P
  int64_t kv_blocks_total = 0;
  int32_t sequences_max = 0;     // running at once
  std::vector<int32_t> eos_ids;  // of the checkpoint's generation config
  bool prefix_caching = false;
  int32_t drafts_max = 0;  // K
};

}  // namespace glm::engine
