#include "engine/validate_request.h"

#include <limits>

#include "absl/strings/str_format.h"

namespace glm::engine {
namespace {

absl::Status CheckId(const std::string& field, int32_t id, int32_t vocabulary) {
  if (id >= 0 && id < vocabulary) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("%s is %d, must be in [0, %d], the vocabulary", field, id, vocabulary - 1));
}

absl::Status CheckIds(const std::string& field, const std::vector<int32_t>& ids,
                      int32_t vocabulary) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < vocabulary) continue;
    return CheckId(absl::StrFormat("%s[%d]", field, i), ids[i], vocabulary);
  }
  return absl::OkStatus();
}

absl::Status CheckCount(const char* field, size_t count, int64_t max) {
  if (count <= static_cast<size_t>(max)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("%s has %d entries, must have at most %d", field, count, max));
}

absl::Status CheckRange(const char* field, int64_t value, int64_t min, int64_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("%s is %d, must be in [%d, %d]", field, value, min, max));
}

/// Written so that NaN fails.
absl::Status CheckReal(const char* field, float value, float min, float max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("%s is %g, must be in [%g, %g]", field, value, min, max));
}

absl::Status CheckPositive(const char* field, float value, float max) {
  if (value > 0 && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("%s is %g, must be above 0 and at most %g", field, value, max));
}

absl::Status ValidateBias(const std::vector<LogitBias>& biases, int32_t vocabulary) {
  absl::Status status = CheckCount("logit_bias", biases.size(), kLogitBiasMax);
  for (size_t i = 0; i < biases.size() && status.ok(); ++i) {
    const LogitBias& bias = biases[i];
    status.Update(CheckId(absl::StrFormat("logit_bias[%d].id", i), bias.id, vocabulary));
    const bool ban = bias.add == -std::numeric_limits<float>::infinity();
    if (ban || (bias.add >= -100.0f && bias.add <= 100.0f)) continue;
    status.Update(absl::InvalidArgumentError(absl::StrFormat(
        "logit_bias[%d].add is %g, must be in [-100, 100], or minus infinity", i, bias.add)));
  }
  return status;
}

absl::Status ValidateBadWords(const std::vector<std::vector<int32_t>>& words, int32_t vocabulary) {
  absl::Status status = CheckCount("bad_words", words.size(), kBadWordsMax);
  for (size_t i = 0; i < words.size() && status.ok(); ++i) {
    const std::string field = absl::StrFormat("bad_words[%d]", i);
    if (words[i].empty()) {
      return absl::InvalidArgumentError(field + " is empty, must have at least 1 token");
    }
    status.Update(CheckCount(field.c_str(), words[i].size(), kBadWordTokensMax));
    status.Update(CheckIds(field, words[i], vocabulary));
  }
  return status;
}

absl::Status ValidateSampling(const SamplingParams& sampling, int32_t vocabulary) {
  absl::Status status = CheckReal("temperature", sampling.temperature, 0, 100);
  status.Update(CheckPositive("top_p", sampling.top_p, 1));
  status.Update(CheckReal("min_p", sampling.min_p, 0, 1));
  if (sampling.top_k < 0) {
    status.Update(absl::InvalidArgumentError(
        absl::StrFormat("top_k is %d, must be at least 0", sampling.top_k)));
  }
  status.Update(CheckPositive("repetition_penalty", sampling.repetition_penalty, 10));
  status.Update(CheckReal("frequency_penalty", sampling.frequency_penalty, -2, 2));
  status.Update(CheckReal("presence_penalty", sampling.presence_penalty, -2, 2));
  status.Update(ValidateBias(sampling.logit_bias, vocabulary));
  status.Update(ValidateBadWords(sampling.bad_words, vocabulary));
  status.Update(CheckCount("allowed_ids", sampling.allowed_ids.size(), vocabulary));
  status.Update(CheckIds("allowed_ids", sampling.allowed_ids, vocabulary));
  status.Update(CheckRange("logprobs", sampling.logprobs, -1, kLogprobsMax));
  status.Update(CheckRange("prompt_logprobs", sampling.prompt_logprobs, -1, kLogprobsMax));
  return status;
}

absl::Status ValidateStop(const StopRule& stop, int32_t generated_before, int32_t vocabulary) {
  if (stop.max_tokens < 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("max_tokens is %d, must be at least 1", stop.max_tokens));
  }
  const int64_t min_tokens_max = int64_t{stop.max_tokens} + generated_before;
  if (stop.min_tokens < 0 || stop.min_tokens > min_tokens_max) {
    return absl::InvalidArgumentError(
        absl::StrFormat("min_tokens is %d, must be in [0, %d], %s", stop.min_tokens, min_tokens_max,
                        generated_before > 0 ? "generated_before + max_tokens" : "max_tokens"));
  }
  absl::Status status = CheckCount("stop_ids", stop.stop_ids.size(), kStopIdsMax);
  status.Update(CheckIds("stop_ids", stop.stop_ids, vocabulary));
  return status;
}

}  // namespace

absl::Status ValidateRequest(const Request& request, const EngineShape& shape) {
  if (request.prompt_ids.empty()) {
    return absl::InvalidArgumentError("prompt_ids is empty, must have at least 1 token");
  }
  const auto prompt = static_cast<int64_t>(request.prompt_ids.size());
  if (request.generated_before < 0 || request.generated_before >= prompt) {
    return absl::InvalidArgumentError(
        absl::StrFormat("generated_before is %d, must be in [0, %d], below prompt_ids's tokens",
                        request.generated_before, prompt - 1));
  }
  absl::Status status = ValidateStop(request.stop, request.generated_before, shape.vocabulary);
  status.Update(ValidateSampling(request.sampling, shape.vocabulary));
  status.Update(CheckRange("priority", request.priority, -1000, 1000));
  if (request.cache_salt.size() > static_cast<size_t>(kCacheSaltMax)) {
    status.Update(
        absl::InvalidArgumentError(absl::StrFormat("cache_salt has %d bytes, must have at most %d",
                                                   request.cache_salt.size(), kCacheSaltMax)));
  }
  if (prompt + request.stop.max_tokens > shape.length_max) {
    status.Update(absl::InvalidArgumentError(absl::StrFormat(
        "prompt_ids has %d tokens and max_tokens is %d, %d together, must be at most %d", prompt,
        request.stop.max_tokens, prompt + request.stop.max_tokens, shape.length_max)));
  }
  if (status.ok()) status = CheckIds("prompt_ids", request.prompt_ids, shape.vocabulary);
  return status;
}

}  // namespace glm::engine
