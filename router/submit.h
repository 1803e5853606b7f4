// What an exchange asks of a worker: its request as a Submit frame.
//
// Who calls: Exchange, on its loop, at each attempt. Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/worker.pb.h"
#include "router/exchange.h"
#include "router/text/text_model.h"

namespace glm::router {

/// The token runs that write `words`: each as it is, and as a word after a space, which mostly is
/// another token. INVALID_ARGUMENT naming a word that takes too many tokens.
absl::StatusOr<std::vector<std::vector<int32_t>>> EncodeBadWords(
    const std::vector<std::string>& words, const TextModel& text);

/// INVALID_ARGUMENT naming the field and the id that is not below `vocabulary`.
absl::Status CheckTokenIds(const ExchangeRequest& request, absl::Span<const int32_t> prompt_ids,
                           int32_t vocabulary);

/// What is settled apart from what the client asked.
struct SubmitParts {
  absl::Span<const int32_t> prompt_ids;
  /// Generated before by a worker that was lost. The next one goes on after them: it is told that
  /// they are no prompt, so that draws, penalties and min_tokens are as if nothing had happened.
  absl::Span<const int32_t> answer_ids;
  absl::Span<const std::vector<int32_t>> bad_words;  // of EncodeBadWords
  absl::Span<const int32_t> eos_ids;                 // the worker's
  int32_t max_tokens = 0;                            // of the whole answer
  uint64_t seed = 0;
  bool prompt_logprobs = false;  // asked for and not there yet
};

glmserve::worker::v1::Submit MakeSubmit(const ExchangeRequest& request, const SubmitParts& parts);

}  // namespace glm::router
