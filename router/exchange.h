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
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "router/metrics.h"
#include "router/options.h"
#include "router/text/chat_format.h"

namespace glm::router {

class Fleet;
class Loop;
class TextModel;

/// A chat to render, or text to tokenize as it is, or ready token ids.
using Prompt = std::variant<Chat, std::string, std::vector<int32_t>>;

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
  std::optional<uint64_t> seed;       // default: drawn at random
  std::vector<std::string> stop;      // at most 16, each 1 to 256 bytes
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  int32_t min_tokens = 0;
  bool echo = false;  // completions only: the prompt's text comes first
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
  std::optional<AnswerEnd> end;  // set in the last delta
  Usage usage;                   // complete in the last delta
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
  const TextModel* text = nullptr;
  RouterMetrics* metrics = nullptr;
  std::string model_name;  // the one that is served
  ExchangeOptions options;
};

class Exchange {
 public:
  /// Renders and tokenizes the prompt, chooses a worker and submits. Errors that are known at once
  /// (prompt too long, no worker) come through on_error before Start returns or later, never both.
  static std::unique_ptr<Exchange> Start(const ExchangeRooms& rooms, ExchangeRequest request,
                                         ExchangeSink sink);

  /// Cancels the request at its worker unless it has ended.
  virtual ~Exchange() = default;
};

}  // namespace glm::router
