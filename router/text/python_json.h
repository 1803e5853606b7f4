// JSON as Python's json.dumps(value, ensure_ascii=False) writes it, which is what the models were
// trained on.
//
// Who calls: the chat format. Pure function; any thread.
#pragma once

#include <string>

#include "nlohmann/json.hpp"

namespace glm::router {

/// Appends `value`: ", " and ": " between, keys in their order, floats in the shortest form that
/// reads back the same. Any depth; time and memory grow with the size of the value.
void AppendPythonJson(const nlohmann::ordered_json& value, std::string* out);

}  // namespace glm::router
