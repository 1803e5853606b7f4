// The whole vocabulary that the engine speaks with the outside: requests down, step events up.
//
// Everything is token ids; the engine never sees text. A request ends exactly once, with a finish
// reason, in some StepEvents, unless Submit refused it.
#pragma once

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

/// How to draw a token; see kernels/ops.h SampleRow for the order of operations.
struct SamplingParams {
  float temperature = 1.0f;  // [0, 100]; 0 is greedy
  float top_p = 1.0f;        // (0, 1]
  int32_t top_k = 0;         // 0: no limit
  uint64_t seed = 0;         // the stream depends on seed and position only
};

/// Most stop ids of one request.
inline constexpr int32_t kStopIdsMax = 128;

struct StopRule {
  std::vector<int32_t> stop_ids;  // any of these ends the request; the id itself is delivered
  int32_t max_tokens = 16;        // at least 1
  int32_t min_tokens = 0;         // stop ids do not end the request before this many
};

struct Request {
  RequestId id = 0;
  std::vector<int32_t> prompt_ids;  // at least 1
  SamplingParams sampling;
  StopRule stop;
};

/// What one step did for one request.
struct RequestEvent {
  RequestId id = 0;
  std::vector<int32_t> token_ids;  // new tokens, in order; may be empty when the request ends
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

/// What a step produced, given to the sink on the engine thread.
struct StepEvents {
  uint64_t step = 0;
  std::vector<RequestEvent> requests;
  EngineLoad load;
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
  uint64_t preemptions = 0;  // a running request gave its KV blocks up, to compute anew
  double step_seconds = 0;   // summed
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
};

}  // namespace glm::engine
