#include "router/front/openai_json.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/numbers.h"
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

/// How many answers each prompt gets.
void ReadAnswers(JsonFields* fields, OpenAiCall* call) {
  int32_t answers = 1;
  if (fields->Read("n", &answers) && (answers < 1 || answers > kAnswersMax)) {
    return fields->Fail("n", absl::StrCat("of ", answers, " must be from 1 to ", kAnswersMax));
  }
  // To choose the best of as many as are told is to tell them all.
  fields->ReadNeutral("best_of", {answers});
  call->answers_per_prompt = answers;
}

/// An object of token ids, written as strings, to numbers.
void ReadLogitBias(JsonFields* fields, std::vector<TokenBias>* biases) {
  const Json* value = fields->Find("logit_bias");
  if (value == nullptr) return;
  JsonFields parts(*value, "logit_bias");
  if (!parts.status().ok()) return fields->Fail(parts.status());
  for (auto field = value->begin(); field != value->end(); ++field) {
    TokenBias bias;
    // Only digits: what else parses as a number is no id that a client means.
    const bool is_id = field.key().find_first_not_of("0123456789") == std::string::npos &&
                       absl::SimpleAtoi(field.key(), &bias.id);
    if (!is_id) {
      return fields->Fail("logit_bias", absl::StrCat("has the key ", ShownValue(field.key()),
                                                     "; keys must be token ids"));
    }
    // A null is no number here, as elsewhere it is no field.
    if (!field->is_number()) {
      return fields->Fail(FieldError(absl::StatusCode::kInvalidArgument, parts.PathOf(field.key()),
                                     absl::StrCat("must be a number, not ", ShownValue(*field))));
    }
    bias.add = field->get<float>();
    biases->push_back(bias);
  }
}

/// A number of alternatives. True when it was there and good.
bool ReadAlternatives(JsonFields* fields, absl::string_view name, int32_t* alternatives) {
  int32_t number = 0;
  if (!fields->Read(name, &number)) return false;
  if (number < 0 || number > kLogprobsMax) {
    fields->Fail(name, absl::StrCat("of ", number, " must be from 0 to ", kLogprobsMax));
    return false;
  }
  *alternatives = number;
  return true;
}

void ReadPromptLogprobs(JsonFields* fields, OpenAiCall* call, ExchangeRequest* request) {
  if (!ReadAlternatives(fields, "prompt_logprobs", &call->prompt_logprobs)) return;
  if (call->stream) return fields->Fail("prompt_logprobs", "needs \"stream\": false");
  request->prompt_logprobs = call->prompt_logprobs;
}

void ReadSampling(JsonFields* fields, ExchangeRequest* request) {
  fields->Read("temperature", &request->temperature);
  fields->Read("top_p", &request->top_p);
  fields->Read("top_k", &request->top_k);
  fields->Read("min_p", &request->min_p);
  fields->Read("repetition_penalty", &request->repetition_penalty);
  fields->Read("frequency_penalty", &request->frequency_penalty);
  fields->Read("presence_penalty", &request->presence_penalty);
  ReadSeed(fields, &request->seed);
  ReadLogitBias(fields, &request->logit_bias);
  fields->Read("bad_words", &request->bad_words);
  fields->Read("allowed_token_ids", &request->allowed_token_ids);
}

/// What both endpoints know and do not act on.
void ReadNeutrals(JsonFields* fields) {
  fields->ReadNeutral("response_format", {Json{{"type", "text"}}});
  fields->ReadNeutral("skip_special_tokens", {true});
  fields->ReadNeutral("spaces_between_special_tokens", {true});
  fields->ReadNeutral("include_stop_str_in_output", {false});
  fields->ReadNeutral("truncate_prompt_tokens", {});
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
  ReadSampling(fields, request);
  fields->Read("stop", &request->stop);
  fields->Read("stop_token_ids", &request->stop_token_ids);
  fields->Read("ignore_eos", &request->ignore_eos);
  fields->Read("min_tokens", &request->min_tokens);
  fields->Read("priority", &request->priority);
  fields->Read("cache_salt", &request->cache_salt);
  ReadAnswers(fields, call);
  ReadStream(fields, call);
  ReadPromptLogprobs(fields, call, request);
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

void ReadChatLogprobs(JsonFields* fields, OpenAiCall* call, ExchangeRequest* request) {
  bool wanted = false;
  int32_t alternatives = 0;
  fields->Read("logprobs", &wanted);
  ReadAlternatives(fields, "top_logprobs", &alternatives);
  if (alternatives > 0 && !wanted) return fields->Fail("top_logprobs", "needs \"logprobs\": true");
  if (wanted) request->logprobs = call->logprobs = alternatives;
}

void ReadChatNeutrals(JsonFields* fields) {
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

/// With "echo" the prompt's tokens are among those whose logprobs are told.
void ReadCompletionLogprobs(JsonFields* fields, OpenAiCall* call, ExchangeRequest* request) {
  if (!ReadAlternatives(fields, "logprobs", &call->logprobs)) return;
  request->logprobs = call->logprobs;
  if (request->echo) request->prompt_logprobs = std::max(call->prompt_logprobs, call->logprobs);
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
  ReadChatLogprobs(&fields, &call, &request);
  ReadToolFields(&fields, &chat);
  ReadThinking(&fields, &chat);
  ReadChatNeutrals(&fields);
  if (absl::Status status = fields.Finish(); !status.ok()) return status;

  request.prompt = std::move(chat);
  call.requests = RequestsFor(std::move(request), call.answers_per_prompt);
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
  ReadCompletionLogprobs(&fields, &call, &request);
  fields.ReadNeutral("suffix", {""});

  std::vector<Prompt> prompts;
  if (const Json* value = fields.Find("prompt"); value != nullptr) {
    absl::StatusOr<std::vector<Prompt>> read = ReadPrompts(*value);
    if (!read.ok()) return read.status();
    prompts = *std::move(read);
  } else {
    fields.Fail("prompt", "is required");
  }
  if (absl::Status status = fields.Finish(); !status.ok()) return status;
  const size_t choices = prompts.size() * static_cast<size_t>(call.answers_per_prompt);
  if (choices > kChoicesMax) {
    return FieldError(
        absl::StatusCode::kInvalidArgument, "n",
        absl::StrCat("of ", call.answers_per_prompt, " for ", prompts.size(), " prompts makes ",
                     choices, " choices; the limit is ", kChoicesMax));
  }
  for (Prompt& prompt : prompts) {
    request.prompt = std::move(prompt);
    for (ExchangeRequest& answer : RequestsFor(request, call.answers_per_prompt)) {
      call.requests.push_back(std::move(answer));
    }
  }
  return call;
}

}  // namespace glm::router
