#include "router/submit.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace glm::router {

namespace wire = ::glmserve::worker::v1;

namespace {

constexpr size_t kBadWordTokensMax = 32;  // the worker's

absl::Status CheckBelow(const char* field, absl::Span<const int32_t> ids, int32_t vocabulary) {
  for (const int32_t id : ids) {
    if (id < vocabulary) continue;
    return absl::InvalidArgumentError(absl::StrCat(field, "=", id, " must be below ", vocabulary,
                                                   ", the size of the vocabulary"));
  }
  return absl::OkStatus();
}

void FillSampling(const ExchangeRequest& request, const SubmitParts& parts,
                  wire::Sampling* sampling) {
  sampling->set_temperature(request.temperature);
  sampling->set_top_p(request.top_p);
  sampling->set_top_k(std::max(request.top_k, 0));
  sampling->set_min_p(request.min_p);
  sampling->set_repetition_penalty(request.repetition_penalty);
  sampling->set_frequency_penalty(request.frequency_penalty);
  sampling->set_presence_penalty(request.presence_penalty);
  // Draws depend on seed, choice and position, so a replay draws the same.
  sampling->set_seed(parts.seed);
  sampling->set_choice(static_cast<uint32_t>(request.choice));
  for (const TokenBias& bias : request.logit_bias) {
    wire::LogitBias* const added = sampling->add_logit_bias();
    added->set_id(static_cast<uint32_t>(bias.id));
    added->set_add(bias.add);
  }
  for (const std::vector<int32_t>& run : parts.bad_words) {
    sampling->add_bad_words()->mutable_ids()->Add(run.begin(), run.end());
  }
  sampling->mutable_allowed_ids()->Add(request.allowed_token_ids.begin(),
                                       request.allowed_token_ids.end());
  if (request.logprobs >= 0) sampling->set_logprobs(static_cast<uint32_t>(request.logprobs));
  if (parts.prompt_logprobs) {
    sampling->set_prompt_logprobs(static_cast<uint32_t>(request.prompt_logprobs));
  }
}

}  // namespace

absl::StatusOr<std::vector<std::vector<int32_t>>> EncodeBadWords(
    const std::vector<std::string>& words, const TextModel& text) {
  std::vector<std::vector<int32_t>> runs;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string bare =
        words[i].substr(std::min(words[i].find_first_not_of(' '), words[i].size()));
    for (const std::string& form : {bare, absl::StrCat(" ", bare)}) {
      absl::StatusOr<std::vector<int32_t>> ids = text.EncodePrompt(form);
      if (!ids.ok()) return ids.status();
      if (ids->empty() || ids->size() > kBadWordTokensMax) {
        return absl::InvalidArgumentError(absl::StrCat("bad_words[", i, "] of ", ids->size(),
                                                       " tokens must have from 1 to ",
                                                       kBadWordTokensMax));
      }
      if (std::find(runs.begin(), runs.end(), *ids) == runs.end()) runs.push_back(*std::move(ids));
    }
  }
  return runs;
}

absl::Status CheckTokenIds(const ExchangeRequest& request, absl::Span<const int32_t> prompt_ids,
                           int32_t vocabulary) {
  absl::Status status = CheckBelow("prompt token id", prompt_ids, vocabulary);
  status.Update(CheckBelow("stop_token_ids", request.stop_token_ids, vocabulary));
  status.Update(CheckBelow("allowed_token_ids", request.allowed_token_ids, vocabulary));
  for (const TokenBias& bias : request.logit_bias) {
    status.Update(CheckBelow("logit_bias token id", {&bias.id, 1}, vocabulary));
  }
  return status;
}

wire::Submit MakeSubmit(const ExchangeRequest& request, const SubmitParts& parts) {
  wire::Submit submit;
  const size_t answered = parts.answer_ids.size();
  submit.mutable_prompt_ids()->Reserve(static_cast<int>(parts.prompt_ids.size() + answered));
  submit.mutable_prompt_ids()->Add(parts.prompt_ids.begin(), parts.prompt_ids.end());
  submit.mutable_prompt_ids()->Add(parts.answer_ids.begin(), parts.answer_ids.end());
  submit.set_generated_before(static_cast<uint32_t>(answered));
  submit.set_priority(request.priority);
  submit.set_cache_salt(request.cache_salt);
  FillSampling(request, parts, submit.mutable_sampling());
  wire::Stop* const stop = submit.mutable_stop();
  if (!request.ignore_eos)
    stop->mutable_stop_ids()->Add(parts.eos_ids.begin(), parts.eos_ids.end());
  stop->mutable_stop_ids()->Add(request.stop_token_ids.begin(), request.stop_token_ids.end());
  stop->set_max_tokens(static_cast<uint32_t>(parts.max_tokens) - static_cast<uint32_t>(answered));
  stop->set_min_tokens(static_cast<uint32_t>(request.min_tokens));
  return submit;
}

}  // namespace glm::router
