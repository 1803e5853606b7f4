#include "router/front/openai_answer.h"

#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "proto/base/log.h"
#include "router/front/json_fields.h"

namespace glm::router {
namespace {

constexpr absl::string_view kInvalidRequest = "invalid_request_error";
constexpr absl::string_view kServerError = "server_error";

struct ErrorKind {
  absl::StatusCode code;
  int http_status;
  absl::string_view type;
  absl::string_view name;  // OpenAI's "code"; empty: null
};

constexpr std::array<ErrorKind, 16> kErrorKinds = {{
    {absl::StatusCode::kInvalidArgument, 400, kInvalidRequest, ""},
    {absl::StatusCode::kOutOfRange, 400, kInvalidRequest, "context_length_exceeded"},
    {absl::StatusCode::kFailedPrecondition, 400, kInvalidRequest, ""},
    {absl::StatusCode::kUnimplemented, 400, kInvalidRequest, "unsupported_value"},
    {absl::StatusCode::kNotFound, 404, kInvalidRequest, "model_not_found"},
    {absl::StatusCode::kUnauthenticated, 401, "authentication_error", "invalid_api_key"},
    {absl::StatusCode::kPermissionDenied, 403, "permission_error", ""},
    {absl::StatusCode::kResourceExhausted, 429, "rate_limit_error", "rate_limit_exceeded"},
    {absl::StatusCode::kCancelled, 499, kServerError, "cancelled"},
    {absl::StatusCode::kDeadlineExceeded, 504, kServerError, "timeout"},
    {absl::StatusCode::kUnavailable, 503, kServerError, "unavailable"},
    {absl::StatusCode::kAborted, 503, kServerError, "unavailable"},
    {absl::StatusCode::kAlreadyExists, 500, kServerError, "internal_error"},
    {absl::StatusCode::kDataLoss, 500, kServerError, "internal_error"},
    {absl::StatusCode::kInternal, 500, kServerError, "internal_error"},
    {absl::StatusCode::kUnknown, 500, kServerError, "internal_error"},
}};

const ErrorKind& KindOf(const absl::Status& status) {
  for (const ErrorKind& kind : kErrorKinds) {
    if (kind.code == status.code()) return kind;
  }
  CHECK(false) << "no HTTP status for " << status.ToString();
  return kErrorKinds.back();
}

/// The request field that an exchange's error starts with, as in "temperature=3 must be ...".
absl::string_view LeadingField(absl::string_view message) {
  constexpr absl::string_view kFields[] = {"model",
                                           "prompt",
                                           "messages",
                                           "max_tokens",
                                           "min_tokens",
                                           "temperature",
                                           "top_p",
                                           "top_k",
                                           "min_p",
                                           "repetition_penalty",
                                           "frequency_penalty",
                                           "presence_penalty",
                                           "seed",
                                           "stop",
                                           "stop_token_ids",
                                           "echo",
                                           "logit_bias",
                                           "bad_words",
                                           "allowed_token_ids",
                                           "logprobs",
                                           "prompt_logprobs",
                                           "priority",
                                           "queue_timeout_ms",
                                           "cache_salt"};
  const absl::string_view word = message.substr(0, message.find_first_of("=[ "));
  for (const absl::string_view field : kFields) {
    if (word == field) return field;
  }
  return "";
}

std::string ParamOf(const absl::Status& status, int http_status) {
  std::string field = FieldOf(status);
  if (field.empty() && http_status < 500) field = std::string(LeadingField(status.message()));
  return field;
}

Json OrNull(absl::string_view text) { return text.empty() ? Json() : Json(std::string(text)); }

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

std::string ErrorObject(absl::string_view message, absl::string_view type, absl::string_view param,
                        absl::string_view code) {
  return Dump(Json{{"error",
                    {{"message", std::string(message)},
                     {"type", std::string(type)},
                     {"param", OrNull(param)},
                     {"code", OrNull(code)}}}});
}

absl::string_view FinishReason(AnswerEnd end) {
  return end == AnswerEnd::kStop ? "stop" : "length";
}

Json UsageJson(const Usage& usage) {
  return Json{{"prompt_tokens", usage.prompt_tokens},
              {"completion_tokens", usage.completion_tokens},
              {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
              {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}}};
}

Json ChoiceJson(const AnswerHead& head, size_t index, const AnswerChoice& choice) {
  Json json{{"index", index}};
  if (head.is_chat) {
    Json message{{"role", "assistant"}, {"content", choice.content}};
    if (!choice.reasoning.empty()) message["reasoning_content"] = choice.reasoning;
    json["message"] = std::move(message);
  } else {
    json["text"] = choice.content;
  }
  json["logprobs"] = choice.logprobs;
  json["finish_reason"] = std::string(FinishReason(choice.end));
  if (!head.is_chat && !choice.prompt_logprobs.is_null()) {
    json["prompt_logprobs"] = choice.prompt_logprobs;
  }
  return json;
}

}  // namespace

int HttpStatusOf(const absl::Status& status) { return KindOf(status).http_status; }

std::string ErrorJson(const absl::Status& status) {
  const ErrorKind& kind = KindOf(status);
  return ErrorObject(status.message(), kind.type, ParamOf(status, kind.http_status), kind.name);
}

std::string HttpErrorJson(int http_status, absl::string_view message) {
  return ErrorObject(message, http_status < 500 ? kInvalidRequest : kServerError, "", "");
}

std::string WholeAnswerJson(const AnswerHead& head, const std::vector<AnswerChoice>& choices,
                            const Usage& usage) {
  Json list = Json::array();
  for (size_t i = 0; i < choices.size(); ++i) list.push_back(ChoiceJson(head, i, choices[i]));
  Json answer{{"id", head.id},
              {"object", head.is_chat ? "chat.completion" : "text_completion"},
              {"created", head.created_s},
              {"model", head.model},
              {"choices", std::move(list)},
              {"usage", UsageJson(usage)}};
  // All choices of a chat have one prompt.
  if (head.is_chat && !choices[0].prompt_logprobs.is_null()) {
    answer["prompt_logprobs"] = choices[0].prompt_logprobs;
  }
  return Dump(answer);
}

AnswerEvents::AnswerEvents(const AnswerHead& head) : is_chat_(head.is_chat) {
  prefix_ = Dump(Json{{"id", head.id},
                      {"object", head.is_chat ? "chat.completion.chunk" : "text_completion"},
                      {"created", head.created_s},
                      {"model", head.model}});
  prefix_.back() = ',';
  prefix_.insert(0, "data: ");
}

void AnswerEvents::AppendDelta(int32_t index, bool is_first, const AnswerDelta& delta,
                               const Json& logprobs, std::string* out) const {
  absl::StrAppend(out, prefix_, "\"choices\":[{\"index\":", index, ",");
  if (is_chat_) {
    absl::string_view comma = "";
    absl::StrAppend(out, "\"delta\":{");
    const auto append_field = [&](absl::string_view name, absl::string_view text) {
      absl::StrAppend(out, comma, "\"", name, "\":");
      AppendJsonString(text, out);
      comma = ",";
    };
    if (is_first) append_field("role", "assistant");
    if (!delta.reasoning.empty()) append_field("reasoning_content", delta.reasoning);
    if (!delta.content.empty() || delta.reasoning.empty()) append_field("content", delta.content);
    absl::StrAppend(out, "}");
  } else {
    absl::StrAppend(out, "\"text\":");
    AppendJsonString(delta.content, out);
  }
  absl::StrAppend(out, ",\"logprobs\":", logprobs.is_null() ? "null" : Dump(logprobs),
                  ",\"finish_reason\":null}]}\n\n");
}

void AnswerEvents::AppendEnd(int32_t index, bool is_first, AnswerEnd end, std::string* out) const {
  absl::string_view text = "\"text\":\"\"";
  if (is_chat_) {
    text = is_first ? "\"delta\":{\"role\":\"assistant\",\"content\":\"\"}" : "\"delta\":{}";
  }
  absl::StrAppend(out, prefix_, "\"choices\":[{\"index\":", index, ",", text);
  absl::StrAppend(out, ",\"logprobs\":null,\"finish_reason\":\"", FinishReason(end), "\"}]}\n\n");
}

void AnswerEvents::AppendUsage(const Usage& usage, std::string* out) const {
  absl::StrAppend(out, prefix_, "\"choices\":[],\"usage\":", Dump(UsageJson(usage)), "}\n\n");
}

void AnswerEvents::AppendError(const absl::Status& status, std::string* out) {
  absl::StrAppend(out, "data: ", ErrorJson(status), "\n\n");
}

void AnswerEvents::AppendDone(std::string* out) { absl::StrAppend(out, "data: [DONE]\n\n"); }

void AppendJsonString(absl::string_view text, std::string* out) {
  out->push_back('"');
  size_t plain_start = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const unsigned char c = static_cast<unsigned char>(text[i]);
    if (c >= 0x20 && c != '"' && c != '\\') continue;
    out->append(text.data() + plain_start, i - plain_start);
    plain_start = i + 1;
    switch (c) {
      case '"':
        out->append("\\\"");
        break;
      case '\\':
        out->append("\\\\");
        break;
      case '\n':
        out->append("\\n");
        break;
      default:
        absl::StrAppendFormat(out, "\\u%04x", c);
        break;
    }
  }
  out->append(text.data() + plain_start, text.size() - plain_start);
  out->push_back('"');
}

}  // namespace glm::router
