#include "router/answer_scores.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace glm::router {

namespace wire = ::glmserve::worker::v1;

TokenScore ScoreOf(const wire::TokenLogprobs& token, const Tokenizer& tokenizer) {
  TokenScore score;
  score.id = static_cast<int32_t>(token.id());
  score.logprob = token.logprob();
  score.rank = static_cast<int32_t>(token.rank());
  score.bytes = tokenizer.TokenBytes(score.id);
  score.is_text = !tokenizer.IsSpecial(score.id);
  const int count = std::min(token.top_ids_size(), token.top_logprobs_size());
  score.top.reserve(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) {
    const int32_t id = static_cast<int32_t>(token.top_ids(i));
    score.top.push_back({id, token.top_logprobs(i), tokenizer.TokenBytes(id)});
  }
  return score;
}

absl::Status CheckScores(const wire::Output& output) {
  if (output.logprobs_size() == output.token_ids_size()) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("worker sent ", output.logprobs_size(), " logprobs with ",
                                          output.token_ids_size(), " tokens"));
}

absl::Status TakePromptScores(const wire::Output& output, absl::Span<const int32_t> prompt_ids,
                              const Tokenizer& tokenizer, std::vector<TokenScore>* scores) {
  if (scores->empty()) {  // nothing comes before the first token
    wire::TokenLogprobs first;
    first.set_id(static_cast<uint32_t>(prompt_ids[0]));
    scores->push_back(ScoreOf(first, tokenizer));
  }
  for (const wire::TokenLogprobs& token : output.prompt_logprobs()) {
    scores->push_back(ScoreOf(token, tokenizer));
  }
  const size_t wanted = prompt_ids.size();
  if (scores->size() > wanted || (output.token_ids_size() > 0 && scores->size() < wanted)) {
    return absl::InternalError(absl::StrCat("worker sent ", scores->size() - 1,
                                            " prompt logprobs; ", wanted - 1, " are needed"));
  }
  return absl::OkStatus();
}

}  // namespace glm::router
