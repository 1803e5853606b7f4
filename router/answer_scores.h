// The logprobs of an answer and of its prompt, as a worker sends them, to what a front tells.
//
// Who calls: Exchange, on its loop. Pure functions.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "proto/worker.pb.h"
#include "router/exchange.h"
#include "router/text/tokenizer.h"

namespace glm::router {

/// Of one token. Its bytes are the tokenizer's.
TokenScore ScoreOf(const ::glmserve::worker::v1::TokenLogprobs& token, const Tokenizer& tokenizer);

/// INTERNAL unless there is one for each token.
absl::Status CheckScores(const ::glmserve::worker::v1::Output& output);

/// Adds the scores of the prompt's next tokens to `scores`; the first token has none, and gets one
/// that says so. INTERNAL when there are more than tokens, or not all by the answer's first token.
absl::Status TakePromptScores(const ::glmserve::worker::v1::Output& output,
                              absl::Span<const int32_t> prompt_ids, const Tokenizer& tokenizer,
                              std::vector<TokenScore>* scores);

}  // namespace glm::router
