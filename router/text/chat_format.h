// Messages and tools to the prompt text of a GLM model.
//
// One dialect per chat template: 4.5 (GLM-4.5, 4.5-Air, 4.6) and 4.7 (GLM-4.7, 4.7-Flash).
// Rendering equals that of the model's own Jinja template byte for byte. Pure functions; any
// thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace glm::router {

/// Keeps the key order of the client, as the templates' tojson does.
using Json = nlohmann::ordered_json;

struct ToolCall {
  std::string name;
  Json arguments;  // an object
};

struct ChatMessage {
  enum class Role : uint8_t { kSystem, kUser, kAssistant, kTool };
  Role role = Role::kUser;
  std::string content = {};  // text parts of list content are joined without separator
  std::optional<std::string> reasoning = std::nullopt;
  std::vector<ToolCall> tool_calls = {};
};

struct Chat {
  std::vector<ChatMessage> messages;  // at least 1
  std::vector<Json> tools;            // OpenAI's objects, whole
  bool enable_thinking = true;
  std::optional<bool> clear_thinking;  // 4.7 only; unset: reasoning of earlier turns is dropped
  bool add_generation_prompt = true;   // whether the assistant's turn is opened
};

enum class ChatDialect : uint8_t { kGlm45, kGlm47 };

/// The dialect of a checkpoint, told from the text of its chat_template.jinja. NOT_FOUND when it is
/// neither.
absl::StatusOr<ChatDialect> DetectChatDialect(const std::string& chat_template);

/// The prompt, up to and including the opening of the assistant's turn.
std::string RenderChat(const Chat& chat, ChatDialect dialect);

/// What the first token of an answer belongs to.
enum class AnswerStart : uint8_t {
  kPlain,      // no chat: neither reasoning nor content is marked
  kUndecided,  // reasoning if the answer opens <think>, else content
  kReasoning,  // the prompt has opened <think>
  kContent,    // the prompt has closed </think>
};

/// Where the answer to RenderChat(chat, dialect) begins.
AnswerStart StartOfAnswer(const Chat& chat, ChatDialect dialect);

}  // namespace glm::router
