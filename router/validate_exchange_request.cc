#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "router/exchange.h"

namespace glm::router {
namespace {

constexpr size_t kStopStringsMax = 16;
constexpr size_t kStopBytesMax = 256;
constexpr size_t kStopIdsMax = 64;

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
  for (const auto check : {CheckPrompt, CheckSampling, CheckStops, CheckLengths}) {
    if (absl::Status status = check(request); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace glm::router
