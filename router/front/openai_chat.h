// The "messages" and "tools" of OpenAI's chat format to a Chat.
//
// Who calls: the JSON of both fronts, on any thread. Pure functions; errors are INVALID_ARGUMENT,
// or UNIMPLEMENTED for what OpenAI knows and we do not support, and carry their field (FieldOf).
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "router/text/chat_format.h"

namespace glm::router {

/// `path` names the value in errors.
absl::StatusOr<std::vector<ChatMessage>> ReadMessages(const Json& messages,
                                                      const std::string& path);

/// An assistant's calls. Arguments come as a string of JSON, or as the object itself.
absl::StatusOr<std::vector<ToolCall>> ReadToolCalls(const Json& calls, const std::string& path);

/// The tools as they are, once checked.
absl::StatusOr<std::vector<Json>> ReadTools(const Json& tools, const std::string& path);

}  // namespace glm::router
