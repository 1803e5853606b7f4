// JSON files of a checkpoint, read strictly: no exceptions, no duplicate keys, bounded size and
// depth.
//
// Who calls: the readers of config.json, of the safetensors index and of safetensors headers, while
// a checkpoint is loaded, on the thread that loads it.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace glm::engine {

/// Objects and arrays may be nested this deep.
inline constexpr int kJsonDepthMax = 32;

/// The object that `text` holds. INVALID_ARGUMENT opens with `what` (a file name) and says where
/// the text is wrong: not JSON, not an object, a key given twice, nested too deep.
absl::StatusOr<nlohmann::json> ParseJsonObject(absl::string_view text, absl::string_view what);

/// The whole file. NOT_FOUND names the path; INVALID_ARGUMENT when it is longer than `bytes_max`.
absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t bytes_max);

}  // namespace glm::engine
