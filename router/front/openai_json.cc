#include "router/front/openai_json.h"

#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "router/front/json_fields.h"
#include "router/front/openai_chat.h"

namespace glm::router {
namespace {

void ReadSeed(JsonFields* fields, std::optional<uint64_t>* seed) {
  const Json* value = fields->Find("seed");
  if (value == nullptr) return;
  if (!value->is_number_integer()) {
    return fields->Fail("seed",
                        absl::StrCat("must be an integer of 64 bits, not ", ShownValue(*value)));
  }
  *seed = value->is_number_unsigned() ? value->get<uint64_t>()
                                      : static_cast<uint64_t>(value->get<int64_t>());
}

void ReadStream(JsonFields* fields, OpenAiCall* call) {
  fields->Read("stream", &call->stream);
  const Json* options = fields->Find("stream_options");
  if (options == nullptr) return;
  if (!call->stream) return fields->Fail("stream_options", "needs \"stream\": true");
  JsonFields parts(*options, "stream_options");
  parts.Read("include_usage", &call->include_usage);
  parts.ReadNeutral("continuous_usage_stats", {false});
  parts.ReadNeutral("include_obfuscation", {false});
  if (absl::Status status = parts.Finish(); !status.ok()) fields->Fail(std::move(status));
}

/// What both endpoints know and do not act on.
void ReadNeutrals(JsonFields* fields) {
  fields->ReadNeutral("n", {1});
  fields->ReadNeutral("best_of", {1});
  fields->ReadNeutral("frequency_penalty", {0});
  fields->ReadNeutral("presence_penalty", {0});
  fields->ReadNeutral("repetition_penalty", {1});
  fields->ReadNeutral("min_p", {0});
  fields->ReadNeutral("logit_bias", {Json::object()});
  fields->ReadNeutral("response_format", {Json{{"type", "text"}}});
  fields->ReadNeutral("skip_special_tokens", {true});
  fields->ReadNeutral("spaces_between_special_tokens", {true});
  fields->ReadNeutral("include_stop_str_in_output", {false});
  fields->ReadNeutral("prompt_logprobs", {});
  fields->ReadNeutral("truncate_prompt_tokens", {});
  fields->ReadNeutral("priority", {0});
  fields->ReadNeutral("store", {false});
  fields->ReadAnyString("user");
  fields->ReadAnyString("service_tier");
  fields->ReadAnyString("safety_identifier");
  fields->ReadAnyString("prompt_cache_key");
  fields->ReadAnyObject("metadata");
}

void ReadShared(JsonFields* fields, OpenAiCall* call, ExchangeRequest* request) {
  int32_t tokens;
  fields->Read("model", &request->model);
  if (fields->Read("max_tokens", &tokens)) request->max_tokens = tokens;
  fields->Read("temperature", &request->temperature);
  fields->Read("top_p", &request->top_p);
  fields->Read("top_k", &request->top_k);
  ReadSeed(fields, &request->seed);
  fields->Read("stop", &request->stop);
  fields->Read("stop_token_ids", &request->stop_token_ids);
  fields->Read("ignore_eos", &request->ignore_eos);
  fields->Read("min_tokens", &request->min_tokens);
  ReadStream(fields, call);
  ReadNeutrals(fields);
}

// ---- Chat
// ----------------------------------------------------------------------------------------

void ReadMaxCompletionTokens(JsonFields* fields, std::optional<int32_t>* max_tokens) {
  int32_t tokens;
  if (!fields->Read("max_completion_tokens", &tokens)) return;
  if (max_tokens->has_value() && *max_tokens != tokens) {
    return fields->Fail("max_completion_tokens",
                        absl::StrCat("of ", tokens, " contradicts max_tokens of ", **max_tokens));
  }
  *max_tokens = tokens;
}

void ReadToolFields(JsonFields* fields, Chat* chat) {
  if (const Json* tools = fields->Find("tools"); tools != nullptr) {
    absl::StatusOr<std::vector<Json>> read = ReadTools(*tools, "tools");
    if (!read.ok()) return fields->Fail(read.status());
    chat->tools = *std::move(read);
  }
  fields->ReadNeutral("tool_choice", {"auto", "none"});
  const Json* choice = fields->Find("tool_choice");
  // A model that is not shown the tools calls none.
  if (choice != nullptr && *choice == "none") chat->tools.clear();
  if (chat->tools.empty()) {
    bool parallel;
    fields->Read("parallel_tool_calls", &parallel);
  } else {
    fields->ReadNeutral("parallel_tool_calls", {true});
  }
  fields->ReadNeutral("functions", {Json::array()});
  fields->ReadNeutral("function_call", {"auto", "none"});
}

/// "chat_template_kwargs" as vLLM has it, and "thinking" as GLM's own API has it.
void ReadThinking(JsonFields* fields, Chat* chat) {
  std::optional<bool> enabled;
  bool flag;
  if (const Json* value = fields->Find("chat_template_kwargs"); value != nullptr) {
    JsonFields parts(*value, "chat_template_kwargs");
    if (parts.Read("enable_thinking", &flag)) enabled = flag;
    if (parts.Read("clear_thinking", &flag)) chat->clear_thinking = flag;
    parts.ReadNeutral("add_generation_prompt", {true});
    if (absl::Status status = parts.Finish(); !status.ok()) fields->Fail(std::move(status));
  }
  if (const Json* value = fields->Find("thinking"); value != nullptr) {
    JsonFields parts(*value, "thinking");
    std::string type = "enabled";
    parts.Read("type", &type);
    if (type != "enabled" && type != "disabled") {
      parts.Fail("type",
                 absl::StrCat("must be \"enabled\" or \"disabled\", not ", ShownValue(type)));
    }
    if (enabled.has_value() && *enabled != (type == "enabled")) {
      parts.Fail("type", "contradicts chat_template_kwargs.enable_thinking");
    }
    enabled = type == "enabled";
    if (parts.Read("clear_thinking", &flag)) {
      if (chat->clear_thinking.value_or(flag) != flag) {
        parts.Fail("clear_thinking", "contradicts chat_template_kwargs.clear_thinking");
      }
      chat->clear_thinking = flag;
    }
    if (absl::Status status = parts.Finish(); !status.ok()) fields->Fail(std::move(status));
  }
  chat->enable_thinking = enabled.value_or(true);
}

void ReadChatNeutrals(JsonFields* fields) {
  fields->ReadNeutral("logprobs", {false});
  fields->ReadNeutral("top_logprobs", {0});
  fields->ReadNeutral("reasoning_effort", {"medium"});
  fields->ReadNeutral("verbosity", {"medium"});
  fields->ReadNeutral("modalities", {Json::array({"text"})});
  fields->ReadNeutral("audio", {});
  fields->ReadNeutral("prediction", {});
  fields->ReadNeutral("web_search_options", {});
  fields->ReadNeutral("add_generation_prompt", {true});
  fields->ReadNeutral("continue_final_message", {false});
  fields->ReadNeutral("include_reasoning", {true});
  fields->ReadNeutral("separate_reasoning", {true});
}

// ---- Completions
// ---------------------------------------------------------------------------------

absl::Status BadPrompt(absl::string_view message) {
  return FieldError(absl::StatusCode::kInvalidArgument, "prompt", message);
}

absl::StatusOr<std::vector<int32_t>> ReadTokenIds(const Json& list) {
  std::vector<int32_t> ids;
  const Json holder{{"prompt", list}};
  JsonFields fields(holder, "");
  fields.Read("prompt", &ids);
  if (!fields.status().ok()) return fields.status();
  return ids;
}

/// A string, a list of token ids, or a list of either.
absl::StatusOr<std::vector<Prompt>> ReadPrompts(const Json& value) {
  std::vector<Prompt> prompts;
  if (value.is_string()) {
    prompts.emplace_back(value.get<std::string>());
    return prompts;
  }
  if (!value.is_array()) {
    return BadPrompt(absl::StrCat("must be a string, a list of token ids, or a list of those, not ",
                                  ShownValue(value)));
  }
  if (value.empty()) return BadPrompt("must not be an empty list");
  if (value[0].is_number()) {
    absl::StatusOr<std::vector<int32_t>> ids = ReadTokenIds(value);
    if (!ids.ok()) return ids.status();
    prompts.emplace_back(*std::move(ids));
    return prompts;
  }
  if (value.size() > kPromptsMax) {
    return BadPrompt(absl::StrCat("has ", value.size(), " prompts; the limit is ", kPromptsMax));
  }
  for (const Json& item : value) {
    if (item.is_string() && value[0].is_string()) {
      prompts.emplace_back(item.get<std::string>());
    } else if (item.is_array() && value[0].is_array() && !item.empty()) {
      absl::StatusOr<std::vector<int32_t>> ids = ReadTokenIds(item);
      if (!ids.ok()) return ids.status();
      prompts.emplace_back(*std::move(ids));
    } else {
      return BadPrompt(absl::StrCat(
          "as a list must hold only strings, or only lists of at least 1 token id, not ",
          ShownValue(item)));
    }
  }
  return prompts;
}

}  // namespace

absl::StatusOr<OpenAiCall> ReadChatBody(absl::string_view body) {
  absl::StatusOr<Json> json = ParseJson(body);
  if (!json.ok()) return json.status();
  JsonFields fields(*json, "");
  OpenAiCall call;
  ExchangeRequest request;
  request.endpoint = Endpoint::kChatCompletions;
  ReadShared(&fields, &call, &request);
  ReadMaxCompletionTokens(&fields, &request.max_tokens);

  Chat chat;
  if (const Json* messages = fields.Find("messages"); messages != nullptr) {
    absl::StatusOr<std::vector<ChatMessage>> read = ReadMessages(*messages, "messages");
    if (!read.ok()) return read.status();
    chat.messages = *std::move(read);
  } else {
    fields.Fail("messages", "is required");
  }
  ReadToolFields(&fields, &chat);
  ReadThinking(&fields, &chat);
  ReadChatNeutrals(&fields);
  if (absl::Status status = fields.Finish(); !status.ok()) return status;

  request.prompt = std::move(chat);
  call.requests.push_back(std::move(request));
  return call;
}

absl::StatusOr<OpenAiCall> ReadCompletionBody(absl::string_view body) {
  absl::StatusOr<Json> json = ParseJson(body);
  if (!json.ok()) return json.status();
  JsonFields fields(*json, "");
  OpenAiCall call;
  ExchangeRequest request;
  request.endpoint = Endpoint::kCompletions;
  request.max_tokens = kCompletionTokensDefault;
  ReadShared(&fields, &call, &request);
  fields.Read("echo", &request.echo);
  fields.ReadNeutral("suffix", {""});
  fields.ReadNeutral("logprobs", {});

  std::vector<Prompt> prompts;
  if (const Json* value = fields.Find("prompt"); value != nullptr) {
    absl::StatusOr<std::vector<Prompt>> read = ReadPrompts(*value);
    if (!read.ok()) return read.status();
    prompts = *std::move(read);
  } else {
    fields.Fail("prompt", "is required");
  }
  if (absl::Status status = fields.Finish(); !status.ok()) return status;
  for (Prompt& prompt : prompts) {
    request.prompt = std::move(prompt);
    call.requests.push_back(request);
  }
  return call;
}

}  // namespace glm::router
