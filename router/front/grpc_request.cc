#include "router/front/grpc_request.h"

#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "router/front/json_fields.h"
#include "router/front/openai_chat.h"

namespace glm::router {
namespace {

namespace pb = ::glmserve::v1;

constexpr uint32_t kIntegerMax = std::numeric_limits<int32_t>::max();

absl::StatusOr<int32_t> ReadInteger(const std::string& field, uint32_t value) {
  if (value > kIntegerMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, "=", value, " must be at most ", kIntegerMax));
  }
  return static_cast<int32_t>(value);
}

template <typename Ids>
absl::StatusOr<std::vector<int32_t>> ReadIds(const std::string& field, const Ids& ids) {
  std::vector<int32_t> read;
  read.reserve(static_cast<size_t>(ids.size()));
  for (const uint32_t id : ids) {
    absl::StatusOr<int32_t> value = ReadInteger(field, id);
    if (!value.ok()) return value.status();
    read.push_back(*value);
  }
  return read;
}

/// `out` is an int32_t or holds one.
template <typename Out>
absl::Status TakeInteger(const char* field, bool is_there, uint32_t value, Out* out) {
  if (!is_there) return absl::OkStatus();
  absl::StatusOr<int32_t> read = ReadInteger(field, value);
  if (read.ok()) *out = *read;
  return read.status();
}

absl::Status ReadIntegers(const pb::GenerationParams& params, ExchangeRequest* request) {
  absl::Status status =
      TakeInteger("max_tokens", params.has_max_tokens(), params.max_tokens(), &request->max_tokens);
  status.Update(TakeInteger("min_tokens", params.has_min_tokens(), params.min_tokens(),
                            &request->min_tokens));
  status.Update(
      TakeInteger("logprobs", params.has_logprobs(), params.logprobs(), &request->logprobs));
  status.Update(TakeInteger("queue_timeout_ms", params.has_queue_timeout_ms(),
                            params.queue_timeout_ms(), &request->queue_timeout_ms));
  status.Update(TakeInteger("prompt_logprobs", params.has_prompt_logprobs(),
                            params.prompt_logprobs(), &request->prompt_logprobs));
  return status;
}

absl::Status ReadTokenLists(const pb::GenerationParams& params, ExchangeRequest* request) {
  absl::StatusOr<std::vector<int32_t>> ids = ReadIds("stop_token_ids", params.stop_token_ids());
  if (!ids.ok()) return ids.status();
  request->stop_token_ids = *std::move(ids);
  ids = ReadIds("allowed_token_ids", params.allowed_token_ids());
  if (!ids.ok()) return ids.status();
  request->allowed_token_ids = *std::move(ids);
  for (const auto& [id, add] : params.logit_bias()) {
    absl::StatusOr<int32_t> read = ReadInteger("logit_bias token id", id);
    if (!read.ok()) return read.status();
    request->logit_bias.push_back({*read, add});
  }
  return absl::OkStatus();
}

absl::Status ReadParams(const pb::GenerationParams& params, ExchangeRequest* request) {
  if (absl::Status status = ReadIntegers(params, request); !status.ok()) return status;
  if (params.has_temperature()) request->temperature = params.temperature();
  if (params.has_top_p()) request->top_p = params.top_p();
  if (params.has_top_k()) request->top_k = params.top_k();
  if (params.has_seed()) request->seed = params.seed();
  if (params.has_min_p()) request->min_p = params.min_p();
  if (params.has_repetition_penalty()) request->repetition_penalty = params.repetition_penalty();
  if (params.has_frequency_penalty()) request->frequency_penalty = params.frequency_penalty();
  if (params.has_presence_penalty()) request->presence_penalty = params.presence_penalty();
  if (params.has_ignore_eos()) request->ignore_eos = params.ignore_eos();
  request->stop.assign(params.stop().begin(), params.stop().end());
  request->bad_words.assign(params.bad_words().begin(), params.bad_words().end());
  request->priority = params.priority();
  request->cache_salt = params.cache_salt();
  request->session = params.session();
  return ReadTokenLists(params, request);
}

absl::StatusOr<ChatMessage::Role> ReadRole(const std::string& path, const std::string& role) {
  if (role == "system") return ChatMessage::Role::kSystem;
  if (role == "user") return ChatMessage::Role::kUser;
  if (role == "assistant") return ChatMessage::Role::kAssistant;
  if (role == "tool") return ChatMessage::Role::kTool;
  return absl::InvalidArgumentError(
      absl::StrCat(path, ".role='", role, "' must be 'system', 'user', 'assistant' or 'tool'"));
}

/// The list of tools or calls that stands as JSON in a string field.
template <typename Item>
absl::Status ReadJsonList(const std::string& path, const std::string& text,
                          absl::StatusOr<std::vector<Item>> (*read)(const Json&,
                                                                    const std::string&),
                          std::vector<Item>* out) {
  if (text.empty()) return absl::OkStatus();
  absl::StatusOr<Json> json = ParseJson(text);
  if (!json.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is ", json.status().message()));
  }
  absl::StatusOr<std::vector<Item>> items = read(*json, path);
  if (!items.ok()) return items.status();
  *out = *std::move(items);
  return absl::OkStatus();
}

absl::StatusOr<ChatMessage> ReadMessage(const std::string& path, const pb::ChatMessage& message) {
  absl::StatusOr<ChatMessage::Role> role = ReadRole(path, message.role());
  if (!role.ok()) return role.status();
  ChatMessage read{
      .role = *role, .content = message.content(), .reasoning = std::nullopt, .tool_calls = {}};
  const bool assistant = *role == ChatMessage::Role::kAssistant;
  if (!assistant && !message.reasoning_content().empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ".reasoning_content is an assistant's; the role is '", message.role(), "'"));
  }
  if (!assistant && !message.tool_calls_json().empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ".tool_calls_json is an assistant's; the role is '", message.role(), "'"));
  }
  if (!message.reasoning_content().empty()) read.reasoning = message.reasoning_content();
  absl::Status status = ReadJsonList(path + ".tool_calls_json", message.tool_calls_json(),
                                     ReadToolCalls, &read.tool_calls);
  if (!status.ok()) return status;
  return read;
}

}  // namespace

absl::StatusOr<ExchangeRequest> ReadGenerateRequest(const pb::GenerateRequest& message) {
  ExchangeRequest request;
  request.endpoint = Endpoint::kGrpcGenerate;
  request.model = message.model();
  request.echo = message.echo();
  switch (message.prompt_case()) {
    case pb::GenerateRequest::kText:
      request.prompt = message.text();
      break;
    case pb::GenerateRequest::kTokenIds: {
      absl::StatusOr<std::vector<int32_t>> ids = ReadIds("token_ids", message.token_ids().ids());
      if (!ids.ok()) return ids.status();
      request.prompt = *std::move(ids);
      break;
    }
    case pb::GenerateRequest::PROMPT_NOT_SET:
      return absl::InvalidArgumentError("prompt is missing; text or token_ids must be set");
  }
  absl::Status status = ReadParams(message.params(), &request);
  if (!status.ok()) return status;
  return request;
}

absl::StatusOr<ExchangeRequest> ReadChatRequest(const pb::ChatRequest& message) {
  ExchangeRequest request;
  request.endpoint = Endpoint::kGrpcChat;
  request.model = message.model();
  Chat chat;
  for (int i = 0; i < message.messages_size(); ++i) {
    absl::StatusOr<ChatMessage> read =
        ReadMessage(absl::StrCat("messages[", i, "]"), message.messages(i));
    if (!read.ok()) return read.status();
    chat.messages.push_back(*std::move(read));
  }
  absl::Status status = ReadJsonList("tools_json", message.tools_json(), ReadTools, &chat.tools);
  if (!status.ok()) return status;
  if (message.has_enable_thinking()) chat.enable_thinking = message.enable_thinking();
  request.prompt = std::move(chat);
  status = ReadParams(message.params(), &request);
  if (!status.ok()) return status;
  return request;
}

absl::StatusOr<int32_t> ReadAnswers(const pb::GenerationParams& params) {
  if (!params.has_n()) return 1;
  if (params.n() < 1 || params.n() > static_cast<uint32_t>(kAnswersMax)) {
    return absl::InvalidArgumentError(
        absl::StrCat("n=", params.n(), " must be from 1 to ", kAnswersMax));
  }
  return static_cast<int32_t>(params.n());
}

}  // namespace glm::router
