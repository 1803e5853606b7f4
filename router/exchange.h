// One client request from its first byte to its last: prompt, choice of worker, stream, cancel.
//
// Who calls: a front (HTTP or gRPC), on the loop thread that owns the client's connection. An
// Exchange lives and dies on that loop: its callbacks run there, and nothing of it is locked. Text
// in, text out; towards the worker it speaks token ids.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "router/admit/tenant.h"
#include "router/metrics.h"
#include "router/options.h"
#include "router/text/chat_format.h"

namespace glm::router {

class Admission;
class Fleet;
class Placement;
class Loop;
class TextModel;

/// Most alternatives of a token whose logprobs are told.
inline constexpr int32_t kLogprobsMax = 20;
/// Most answers to one prompt.
inline constexpr int32_t kAnswersMax = 16;

/// A chat to render, or text to tokenize as it is, or ready token ids.
using Prompt = std::variant<Chat, std::string, std::vector<int32_t>>;

/// A prompt's tokens, as the first of its answers made them. The answers to one prompt share it, so
/// that it is rendered and tokenized once; they live on one loop.
struct EncodedPrompt {
  bool is_made = false;
  std::shared_ptr<const void> counted;  // takes its bytes off the metric when it goes
  std::vector<int32_t> ids;
  AnswerStart start = AnswerStart::kPlain;
  std::string echo;                 // the prompt's text, if asked for
  bool echo_shows_special = false;  // as the client wrote it, special tokens too
};

/// Something added to the logit of one token.
struct TokenBias {
  int32_t id = 0;
  float add = 0;  // [-100, 100]
};

/// What a front asks for. A field's default is the public default; bounds are checked by
/// ValidateExchangeRequest.
struct ExchangeRequest {
  Endpoint endpoint = Endpoint::kCompletions;  // for the metrics
  std::string model;                           // empty: the one that is served
  Prompt prompt;
  std::optional<int32_t> max_tokens;  // default: what the model's length leaves after the prompt
  float temperature = 1;              // [0, 2]
  float top_p = 1;                    // (0, 1]
  int32_t top_k = 0;                  // 0: no limit; also -1
  float min_p = 0;                    // [0, 1]
  float repetition_penalty = 1;       // (0, 10]
  float frequency_penalty = 0;        // [-2, 2]
  float presence_penalty = 0;         // [-2, 2]
  std::optional<uint64_t> seed;       // default: drawn at random
  std::vector<std::string> stop;      // at most 16, each 1 to 256 bytes
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  int32_t min_tokens = 0;
  bool echo = false;                       // completions only: the prompt's text comes first
  int32_t choice = 0;                      // which of the answers to its prompt, of kAnswersMax
  std::vector<TokenBias> logit_bias;       // at most 1024, each id once
  std::vector<std::string> bad_words;      // at most 128 texts, never in the answer
  std::vector<int32_t> allowed_token_ids;  // if there are any: no other is in the answer
  int32_t logprobs = -1;         // alternatives a token, to kLogprobsMax; 0: its own; -1: none
  int32_t prompt_logprobs = -1;  // the same of the prompt's tokens
  std::string session;   // at most 256 bytes; with --policy session: its requests go to one worker
  int32_t priority = 0;  // [-1000, 1000]; the lower is served first
  TenantId tenant;       // who shares the fleet with others; see router/admit
  std::optional<int32_t> queue_timeout_ms;  // it waits no longer to be sent; up to an hour
  std::string cache_salt;  // at most 256 bytes; prefixes are shared among equal ones only
  std::shared_ptr<EncodedPrompt> encoded;  // shared by the answers to one prompt, or null
};

/// The requests for `answers` answers to one prompt: they share it, and differ in their choice. The
/// prompt itself is the first one's, which must be started first; its logprobs come with the first,
/// unless each answer shows the prompt.
inline std::vector<ExchangeRequest> RequestsFor(ExchangeRequest request, int32_t answers) {
  if (answers > 1) request.encoded = std::make_shared<EncodedPrompt>();
  Prompt prompt = std::exchange(request.prompt, {});
  std::vector<ExchangeRequest> requests(static_cast<size_t>(answers), request);
  requests[0].prompt = std::move(prompt);
  for (int32_t i = 1; i < answers; ++i) {
    requests[i].prompt = std::string();
    requests[i].choice = i;
    if (!request.echo) requests[i].prompt_logprobs = -1;
  }
  return requests;
}

/// The logprob of one token, and those of the likeliest at its place.
struct TokenScore {
  struct Alternative {
    int32_t id = 0;
    float logprob = 0;
    std::string_view bytes;
  };

  int32_t id = 0;
  float logprob = 0;
  int32_t rank = 0;  // 1: the likeliest; 0: the prompt's first token, which has no logprob
  /// The token's own bytes, which may be a part of a character. Valid as long as the TextModel.
  std::string_view bytes;
  bool is_text = true;           // false: a special token, of which the text shows nothing
  std::vector<Alternative> top;  // falling; as many as asked for
};

struct Usage {
  int32_t prompt_tokens = 0;
  int32_t completion_tokens = 0;
  int32_t cached_tokens = 0;
};

enum class AnswerEnd : uint8_t { kStop, kLength };

/// The next piece of an answer.
struct AnswerDelta {
  std::string content;    // whole characters only
  std::string reasoning;  // chat only: what stands between <think> and </think>
  std::vector<int32_t> token_ids;
  /// If asked for: of token_ids, from their first on; not of an id that ended the answer, nor of
  /// what came after a stop string.
  std::vector<TokenScore> logprobs;
  std::vector<TokenScore> prompt_logprobs;  // if asked for: of the whole prompt, in the first delta
  std::optional<AnswerEnd> end;             // set in the last delta
  Usage usage;                              // complete in the last delta
};

/// What an exchange tells its front. Exactly one of `on_delta` with an end, or `on_error`, comes
/// last; none comes after Cancel or destruction.
struct ExchangeSink {
  std::function<void(AnswerDelta)> on_delta;
  std::function<void(absl::Status)> on_error;
};

/// INVALID_ARGUMENT naming the field, its value and the limit; NOT_FOUND for another model's name.
absl::Status ValidateExchangeRequest(const ExchangeRequest& request, const std::string& model_name);

/// The rooms an exchange works with; they outlive every exchange.
struct ExchangeRooms {
  Loop* loop = nullptr;
  Fleet* fleet = nullptr;
  Admission* admission = nullptr;
  Placement* placement = nullptr;
  const TextModel* text = nullptr;
  RouterMetrics* metrics = nullptr;
  std::string model_name;  // the one that is served
  ExchangeOptions options;
};

class Exchange {
 public:
  /// Renders and tokenizes the prompt, waits for its turn, chooses a worker and submits. Errors
  /// that are known at once (prompt too long, no room) come through on_error before Start returns
  /// or later, never both.
  static std::unique_ptr<Exchange> Start(const ExchangeRooms& rooms, ExchangeRequest request,
                                         ExchangeSink sink);

  /// Cancels the request at its worker unless it has ended.
  virtual ~Exchange() = default;
};

}  // namespace glm::router
