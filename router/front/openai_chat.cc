#include "router/front/openai_chat.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "router/front/json_fields.h"

namespace glm::router {
namespace {

using Role = ChatMessage::Role;

std::string At(const std::string& path, size_t index) {
  return absl::StrCat(path, "[", index, "]");
}

absl::Status NotAList(const std::string& path, const Json& value) {
  return FieldError(absl::StatusCode::kInvalidArgument, path,
                    absl::StrCat("must be a list, not ", ShownValue(value)));
}

absl::StatusOr<std::string> ReadPart(const Json& part, const std::string& path) {
  JsonFields fields(part, path);
  std::string type;
  std::string text;
  fields.Read("type", &type);
  if (fields.status().ok() && type != "text") {
    fields.Fail("type", absl::StrCat("is supported only as \"text\", not ", ShownValue(type)),
                absl::StatusCode::kUnimplemented);
  }
  if (!fields.Read("text", &text)) fields.Fail("text", "is required");
  if (absl::Status status = fields.Finish(); !status.ok()) return status;
  return text;
}

/// False when there is no content.
bool ReadContent(JsonFields* fields, std::string* content) {
  const Json* value = fields->Find("content");
  if (value == nullptr) return false;
  const std::string path = fields->PathOf("content");
  if (value->is_string()) {
    *content = value->get<std::string>();
    return true;
  }
  if (!value->is_array()) {
    fields->Fail("content",
                 absl::StrCat("must be a string or a list of parts, not ", ShownValue(*value)));
    return true;
  }
  for (size_t i = 0; i < value->size(); ++i) {
    absl::StatusOr<std::string> part = ReadPart((*value)[i], At(path, i));
    if (!part.ok()) {
      fields->Fail(part.status());
      return true;
    }
    *content += *part;
  }
  return true;
}

void ReadRole(JsonFields* fields, Role* role) {
  std::string name;
  if (!fields->Read("role", &name)) {
    fields->Fail("role", "is required");
  } else if (name == "system" || name == "developer") {
    *role = Role::kSystem;
  } else if (name == "user") {
    *role = Role::kUser;
  } else if (name == "assistant") {
    *role = Role::kAssistant;
  } else if (name == "tool") {
    *role = Role::kTool;
  } else {
    fields->Fail("role", absl::StrCat("must be \"system\", \"developer\", \"user\", \"assistant\" "
                                      "or \"tool\", not ",
                                      ShownValue(name)));
  }
}

void ReadAssistant(JsonFields* fields, bool has_content, ChatMessage* message) {
  std::string reasoning;
  if (fields->Read("reasoning_content", &reasoning) || fields->Read("reasoning", &reasoning)) {
    message->reasoning = std::move(reasoning);
  }
  fields->Find("reasoning");  // clients that send both names mean the same text
  if (const Json* calls = fields->Find("tool_calls"); calls != nullptr) {
    absl::StatusOr<std::vector<ToolCall>> read =
        ReadToolCalls(*calls, fields->PathOf("tool_calls"));
    if (read.ok()) {
      message->tool_calls = *std::move(read);
    } else {
      fields->Fail(read.status());
    }
  }
  // What clients send back of an answer that they were given.
  fields->ReadNeutral("refusal", {""});
  fields->ReadNeutral("annotations", {Json::array()});
  fields->ReadNeutral("audio", {});
  fields->ReadNeutral("function_call", {});
  if (!has_content && message->tool_calls.empty() && !message->reasoning.has_value()) {
    fields->Fail("content", "is required where there are no tool_calls");
  }
}

absl::StatusOr<ChatMessage> ReadMessage(const Json& json, const std::string& path) {
  JsonFields fields(json, path);
  ChatMessage message;
  ReadRole(&fields, &message.role);
  const bool has_content = ReadContent(&fields, &message.content);
  fields.ReadAnyString("name");
  if (message.role == Role::kAssistant) {
    ReadAssistant(&fields, has_content, &message);
  } else if (!has_content) {
    fields.Fail("content", "is required");
  }
  if (message.role == Role::kTool) fields.ReadAnyString("tool_call_id");
  if (absl::Status status = fields.Finish(); !status.ok()) return status;
  return message;
}

absl::StatusOr<Json> ReadArguments(const Json& value, const std::string& path) {
  const auto fail = [&](absl::string_view message) {
    return FieldError(absl::StatusCode::kInvalidArgument, path, message);
  };
  if (value.is_object()) return value;
  if (!value.is_string()) {
    return fail(absl::StrCat("must be a string that holds a JSON object, not ", ShownValue(value)));
  }
  const std::string& text = value.get_ref<const std::string&>();
  if (text.empty()) return Json::object();
  absl::StatusOr<Json> parsed = ParseJson(text);
  if (!parsed.ok()) return fail(absl::StrCat("is ", parsed.status().message()));
  if (!parsed->is_object()) {
    return fail(absl::StrCat("must hold a JSON object, not ", ShownValue(*parsed)));
  }
  return parsed;
}

absl::StatusOr<ToolCall> ReadToolCall(const Json& json, const std::string& path) {
  JsonFields fields(json, path);
  fields.ReadAnyString("id");
  fields.ReadNeutral("type", {"function"});
  int32_t index;
  fields.Read("index", &index);
  const Json* function = fields.Find("function");
  if (function == nullptr) fields.Fail("function", "is required");
  if (absl::Status status = fields.Finish(); !status.ok()) return status;

  JsonFields parts(*function, fields.PathOf("function"));
  ToolCall call;
  call.arguments = Json::object();
  parts.Read("name", &call.name);
  if (parts.status().ok() && call.name.empty()) parts.Fail("name", "is required");
  if (const Json* arguments = parts.Find("arguments"); arguments != nullptr) {
    absl::StatusOr<Json> read = ReadArguments(*arguments, parts.PathOf("arguments"));
    if (read.ok()) {
      call.arguments = *std::move(read);
    } else {
      parts.Fail(read.status());
    }
  }
  if (absl::Status status = parts.Finish(); !status.ok()) return status;
  return call;
}

/// Fields that we do not know are no error here: the model reads the whole object.
absl::Status CheckTool(const Json& json, const std::string& path) {
  JsonFields fields(json, path);
  std::string type;
  fields.Read("type", &type);
  if (fields.status().ok() && type != "function") {
    fields.Fail("type", absl::StrCat("is supported only as \"function\", not ", ShownValue(type)),
                absl::StatusCode::kUnimplemented);
  }
  const Json* function = fields.Find("function");
  if (function == nullptr) fields.Fail("function", "is required");
  if (!fields.status().ok()) return fields.status();

  JsonFields parts(*function, fields.PathOf("function"));
  std::string name;
  parts.Read("name", &name);
  if (parts.status().ok() && name.empty()) parts.Fail("name", "is required");
  parts.ReadAnyString("description");
  parts.ReadAnyObject("parameters");
  parts.ReadNeutral("strict", {false});
  return parts.status();
}

}  // namespace

absl::StatusOr<std::vector<ChatMessage>> ReadMessages(const Json& messages,
                                                      const std::string& path) {
  if (!messages.is_array()) return NotAList(path, messages);
  if (messages.empty()) {
    return FieldError(absl::StatusCode::kInvalidArgument, path, "must have at least 1 message");
  }
  std::vector<ChatMessage> read;
  read.reserve(messages.size());
  for (size_t i = 0; i < messages.size(); ++i) {
    absl::StatusOr<ChatMessage> message = ReadMessage(messages[i], At(path, i));
    if (!message.ok()) return message.status();
    read.push_back(*std::move(message));
  }
  return read;
}

absl::StatusOr<std::vector<ToolCall>> ReadToolCalls(const Json& calls, const std::string& path) {
  if (!calls.is_array()) return NotAList(path, calls);
  std::vector<ToolCall> read;
  for (size_t i = 0; i < calls.size(); ++i) {
    absl::StatusOr<ToolCall> call = ReadToolCall(calls[i], At(path, i));
    if (!call.ok()) return call.status();
    read.push_back(*std::move(call));
  }
  return read;
}

absl::StatusOr<std::vector<Json>> ReadTools(const Json& tools, const std::string& path) {
  if (!tools.is_array()) return NotAList(path, tools);
  for (size_t i = 0; i < tools.size(); ++i) {
    if (absl::Status status = CheckTool(tools[i], At(path, i)); !status.ok()) return status;
  }
  return std::vector<Json>(tools.begin(), tools.end());
}

}  // namespace glm::router
