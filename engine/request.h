// The whole vocabulary that the engine speaks with the outside: requests down, step events up.
//
// Everything is token ids; the engine never sees text. A request ends exactly once, with a finish
// reason, in some StepEvents, unless Submit refused it.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "proto/base/block_hash.h"

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
  int32_t min_tokens = 0;         // so many tokens come before any stop id may be drawn
};

/// Which ids may come next, where that depends on the answer so far: structured output. Called on
/// the engine thread, once for each row of a step that draws a token of the request; it must be
/// quick, and a function of its arguments alone.
class TokenMask {
 public:
  virtual ~TokenMask() = default;
  /// Clears the bits of `words` (bit id % 32 of word id / 32; all those allowed so far are set) of
  /// ids that must not follow `generated`, the answer's tokens so far. These may end in drafts that
  /// the mask itself forbids: what is drawn after such a draft is dropped, so any mask will do. At
  /// least one id should stay allowed.
  virtual void Restrict(std::span<const int32_t> generated, std::span<uint32_t> words) const = 0;
};

inline constexpr int32_t kCacheSaltMax = 256;

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
  /// Prefixes are shared only among requests of one salt; at most kCacheSaltMax bytes.
  std::string cache_salt;
  /// Null: none. A request that has one is planned only when all its tokens are known.
  std::shared_ptr<const TokenMask> token_mask;
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
  std::vector<int32_t> token_ids;       // new tokens, in order; may be empty when the request ends,
                                        // or the event brings prompt_logprobs
  std::vector<TokenLogprobs> logprobs;  // of token_ids, if asked for
  std::vector<TokenLogprobs> prompt_logprobs;  // of the prompt's next tokens, from the second on
  FinishReason finish = FinishReason::kNone;
  int32_t stop_id = -1;       // the id that ended it, with kStop
  int32_t prompt_tokens = 0;  // length of the prompt
  int32_t cached_tokens = 0;  // of those, taken from the prefix cache
};

/// How long a step takes here, fitted to the engine's own steps: about
///   base + sequence * sequences that decode + prompt_token * prompt tokens computed
///     + context_token * tokens of context that are read,
/// in microseconds from the end of the step before, or from when there was work again, to its own
/// end: the host's part is in it. All 0: not known yet.
struct StepTimes {
  double base_us = 0;
  double sequence_us = 0;
  double prompt_token_us = 0;
  double context_token_us = 0;
  bool operator==(const StepTimes&) const = default;
};

/// The engine's load at the end of a step. Routers balance by it.
struct EngineLoad {
  int32_t requests_running = 0;
  int32_t requests_waiting = 0;
  int64_t tokens_waiting = 0;  // prompt tokens not yet computed, running and waiting
  int64_t kv_blocks_used = 0;
  int64_t kv_blocks_total = 0;
  int64_t context_tokens = 0;  // computed, or in a plan, of the running requests together
  StepTimes step_times;
};

/// A change of what the prefix cache holds, in order.
struct CacheChange {
  bool stored = true;  // false: removed
  BlockKey block;
  BlockKey parent;  // of a stored one; zero: it is a first block
};

/// All that the prefix cache holds, and where in the stream of its changes that was.
struct CacheSnapshot {
  uint64_t sequence = 0;            // of the last change it contains; 0: there was none
  uint64_t digest = 0;              // of `blocks`
  std::vector<CacheChange> blocks;  // all `stored`; a parent comes before its children
};

/// What a step produced, given to the sink on the engine thread.
struct StepEvents {
  uint64_t step = 0;
  std::vector<RequestEvent> requests;
  EngineLoad load;
  /// Changes of the prefix cache; the first has number cache_sequence, from 1. When there are
  /// none, cache_sequence is the number that the next one will have.
  uint64_t cache_sequence = 0;
  std::vector<CacheChange> cache_changes;
  uint64_t cache_digest = 0;  // of what it holds after these: proto/base/block_hash.h Digest
  /// If Engine::AskCacheSnapshot was called: the state after cache_changes. Else null.
  std::shared_ptr<const CacheSnapshot> cache_snapshot;
};

/// Bounds of the histogram of EngineStats::idle_gaps, seconds.
inline constexpr std::array<double, 7> kIdleSecondsBounds = {20e-6,  50e-6,   100e-6,  200e-6,
                                                             500e-6, 1000e-6, 10000e-6};

/// Counters since start, and gauges; read at any time.
struct EngineStats {
  EngineLoad load;
  uint64_t steps = 0;
  uint64_t requests_finished_stop = 0;
  uint64_t requests_finished_length = 0;
  uint64_t requests_cancelled = 0;
  uint64_t prompt_tokens = 0;  // computed
  uint64_t generated_tokens = 0;
  uint64_t preemptions = 0;  // a running request gave its KV blocks up, to compute anew
  double step_seconds = 0;   // summed
  // How long the device stood still between two steps of which the later one could have followed at
  // once, by kIdleSecondsBounds: gaps up to each bound and not up to the one before, then longer.
  std::array<uint64_t, kIdleSecondsBounds.size() + 1> idle_gaps{};
  double idle_seconds = 0;             // of these gaps, summed
  uint64_t prompt_tokens_cached = 0;   // found in the prefix cache
  uint64_t prompt_tokens_queried = 0;  // looked up there
  uint64_t cache_blocks_evicted = 0;
  uint64_t draft_rounds = 0;                 // sequences' steps with drafts
  uint64_t draft_tokens = 0;                 // proposed and judged
  std::array<uint64_t, 5> draft_accepted{};  // by position of the draft
  int32_t drafts_now = 0;                    // drafts a sequence, as chosen last
  // The step under way: how long since it began, as StepTimes counts, and what it should take.
  double step_age_s = 0;       // 0: none is under way
  double step_expected_s = 0;  // 0: not known yet
};

/// What a router must know of the engine it talks to.
struct EngineShape {
  std::string model_name;  // last part of the checkpoint's path, or --served-model-name
  int32_t vocabulary = 0;  // ids below this are accepted in prompts
  int32_t length_max = 0;  // prompt + generated tokens of one request
  int32_t block_size = 0;  // P
  int64_t kv_blocks_total = 0;
  int32_t sequences_max = 0;     // running at once
  int32_t step_tokens_max = 0;   // computed in one step
  std::vector<int32_t> eos_ids;  // of the checkpoint's generation config
  bool prefix_caching = false;
  int32_t drafts_max = 0;  // K
};

}  // namespace glm::engine
