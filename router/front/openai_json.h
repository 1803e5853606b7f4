// Bodies of OpenAI's API to exchange requests.
//
// Who calls: OpenAiFront, on its loop. Pure functions. Every field is acted on, or known to change
// nothing at the value it has, or refused by name: INVALID_ARGUMENT, or UNIMPLEMENTED for what
// OpenAI knows and we do not support; FieldOf gives the field. Bounds of sampling fields are those
// of ValidateExchangeRequest.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "router/exchange.h"

namespace glm::router {

inline constexpr int32_t kPromptsMax = 128;              // of one completions request
inline constexpr int32_t kChoicesMax = 128;              // of one request: its prompts times n
inline constexpr int32_t kCompletionTokensDefault = 16;  // OpenAI's, for completions only

struct OpenAiCall {
  /// The answers to the first prompt, then those to the second; at least 1.
  std::vector<ExchangeRequest> requests;
  int32_t answers_per_prompt = 1;
  bool stream = false;
  bool include_usage = false;  // a last chunk of a stream tells it
  int32_t logprobs = -1;       // alternatives a token that the answer tells; -1: no logprobs
  int32_t prompt_logprobs = -1;
};

/// The body of POST /v1/chat/completions.
absl::StatusOr<OpenAiCall> ReadChatBody(absl::string_view body);
/// The body of POST /v1/completions.
absl::StatusOr<OpenAiCall> ReadCompletionBody(absl::string_view body);

}  // namespace glm::router
