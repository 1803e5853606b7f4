#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "router/exchange.h"

namespace glm::router {
namespace {

constexpr size_t kStopStringsMax = 16;
constexpr size_t kStopBytesMax = 256;
constexpr size_t kStopIdsMax = 64;
constexpr size_t kLogitBiasMax = 1024;
constexpr size_t kBadWordsMax = 128;
constexpr size_t kBadWordBytesMax = 256;
constexpr size_t kCacheSaltBytesMax = 256;
constexpr size_t kSessionBytesMax = 256;
constexpr int32_t kPriorityMax = 1000;
constexpr int32_t kQueueTimeoutMsMax = 3'600'000;

template <typename Value>
absl::Status Refuse(const char* field, Value value, const char* limit) {
  return absl::InvalidArgumentError(absl::StrCat(field, "=", value, " must be ", limit));
}

absl::Status CheckSampling(const ExchangeRequest& request) {
  // Negated, so that a NaN is refused as well.
  if (!(request.temperature >= 0 && request.temperature <= 2)) {
    return Refuse("temperature", request.temperature, "from 0 to 2");
  }
  if (!(request.top_p > 0 && request.top_p <= 1)) {
    return Refuse("top_p", request.top_p, "above 0 and at most 1");
  }
  if (request.top_k < -1) {
    return Refuse("top_k", request.top_k, "at least 1, or 0 or -1 for no limit");
  }
  if (!(request.min_p >= 0 && request.min_p <= 1)) {
    return Refuse("min_p", request.min_p, "from 0 to 1");
  }
  return absl::OkStatus();
}

absl::Status CheckPenalties(const ExchangeRequest& request) {
  if (!(request.repetition_penalty > 0 && request.repetition_penalty <= 10)) {
    return Refuse("repetition_penalty", request.repetition_penalty, "above 0 and at most 10");
  }
  if (!(request.frequency_penalty >= -2 && request.frequency_penalty <= 2)) {
    return Refuse("frequency_penalty", request.frequency_penalty, "from -2 to 2");
  }
  if (!(request.presence_penalty >= -2 && request.presence_penalty <= 2)) {
    return Refuse("presence_penalty", request.presence_penalty, "from -2 to 2");
  }
  return absl::OkStatus();
}

absl::Status CheckTokenLists(const ExchangeRequest& request) {
  if (request.logit_bias.size() > kLogitBiasMax) {
    return Refuse("logit_bias (how many)", request.logit_bias.size(), "at most 1024");
  }
  std::set<int32_t> biased;
  for (const TokenBias& bias : request.logit_bias) {
    if (bias.id < 0) return Refuse("logit_bias token id", bias.id, "at least 0");
    if (!biased.insert(bias.id).second) {
      return Refuse("logit_bias token id", bias.id, "there once");
    }
    if (!(bias.add >= -100 && bias.add <= 100)) {
      return absl::InvalidArgumentError(
          absl::StrCat("logit_bias[", bias.id, "]=", bias.add, " must be from -100 to 100"));
    }
  }
  if (request.bad_words.size() > kBadWordsMax) {
    return Refuse("bad_words (how many)", request.bad_words.size(), "at most 128");
  }
  for (size_t i = 0; i < request.bad_words.size(); ++i) {
    const std::string& word = request.bad_words[i];
    if (word.find_first_not_of(' ') == std::string::npos || word.size() > kBadWordBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("bad_words[", i, "] of ", word.size(),
                       " bytes must have from 1 to 256, and more than spaces"));
    }
  }
  for (const int32_t id : request.allowed_token_ids) {
    if (id < 0) return Refuse("allowed_token_ids", id, "at least 0");
  }
  return absl::OkStatus();
}

absl::Status CheckRest(const ExchangeRequest& request) {
  if (request.logprobs < -1 || request.logprobs > kLogprobsMax) {
    return Refuse("logprobs", request.logprobs, "from 0 to 20");
  }
  if (request.prompt_logprobs < -1 || request.prompt_logprobs > kLogprobsMax) {
    return Refuse("prompt_logprobs", request.prompt_logprobs, "from 0 to 20");
  }
  if (request.choice < 0 || request.choice >= kAnswersMax) {
    return Refuse("choice", request.choice, "from 0 to 15");
  }
  if (request.priority < -kPriorityMax || request.priority > kPriorityMax) {
    return Refuse("priority", request.priority, "from -1000 to 1000");
  }
  const int32_t timeout_ms = request.queue_timeout_ms.value_or(0);
  if (timeout_ms < 0 || timeout_ms > kQueueTimeoutMsMax) {
    return Refuse("queue_timeout_ms", timeout_ms, "from 0 to 3600000");
  }
  if (request.cache_salt.size() > kCacheSaltBytesMax) {
    return Refuse("cache_salt (bytes)", request.cache_salt.size(), "at most 256");
  }
  if (request.session.size() > kSessionBytesMax) {
    return Refuse("session (bytes)", request.session.size(), "at most 256");
  }
  return absl::OkStatus();
}

absl::Status CheckStops(const ExchangeRequest& request) {
  if (request.stop.size() > kStopStringsMax) {
    return Refuse("stop (how many)", request.stop.size(), "at most 16");
  }
  for (size_t i = 0; i < request.stop.size(); ++i) {
    const size_t bytes = request.stop[i].size();
    if (bytes < 1 || bytes > kStopBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("stop[", i, "] of ", bytes, " bytes must have from 1 to 256"));
    }
  }
  if (request.stop_token_ids.size() > kStopIdsMax) {
    return Refuse("stop_token_ids (how many)", request.stop_token_ids.size(), "at most 64");
  }
  for (const int32_t id : request.stop_token_ids) {
    if (id < 0) return Refuse("stop_token_ids", id, "at least 0");
  }
  return absl::OkStatus();
}

absl::Status CheckLengths(const ExchangeRequest& request) {
  if (request.max_tokens.has_value() && *request.max_tokens < 1) {
    return Refuse("max_tokens", *request.max_tokens, "at least 1");
  }
  if (request.min_tokens < 0) return Refuse("min_tokens", request.min_tokens, "at least 0");
  if (request.max_tokens.has_value() && request.min_tokens > *request.max_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "min_tokens=", request.min_tokens, " must be at most max_tokens=", *request.max_tokens));
  }
  return absl::OkStatus();
}

absl::Status CheckPrompt(const ExchangeRequest& request) {
  if (const Chat* chat = std::get_if<Chat>(&request.prompt)) {
    if (chat->messages.empty()) return Refuse("messages (how many)", 0, "at least 1");
    if (request.echo) return Refuse("echo", "true", "false for a chat");
  } else if (const auto* ids = std::get_if<std::vector<int32_t>>(&request.prompt)) {
    for (const int32_t id : *ids) {
      if (id < 0) return Refuse("prompt token id", id, "at least 0");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateExchangeRequest(const ExchangeRequest& request,
                                     const std::string& model_name) {
  if (!request.model.empty() && request.model != model_name) {
    return absl::NotFoundError(
        absl::StrCat("model='", request.model, "' does not exist; '", model_name, "' is served"));
  }
  for (const auto check : {CheckPrompt, CheckSampling, CheckPenalties, CheckStops, CheckLengths,
                           CheckTokenLists, CheckRest}) {
    if (absl::Status status = check(request); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace glm::router
