#include "worker/speculative_config.h"

#include <limits>
#include <nlohmann/json.hpp>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "engine/request.h"

namespace glm::worker {
namespace {

using Json = nlohmann::json;

constexpr int32_t kDraftsMax =
    static_cast<int32_t>(std::tuple_size_v<decltype(engine::EngineStats::draft_accepted)>);

absl::Status Refuse(const std::string& key, const Json& value, const std::string& limit) {
  return absl::InvalidArgumentError(
      absl::StrCat("--speculative-config: ", key, " is ", value.dump(), ", it must be ", limit));
}

bool FitsInteger(const Json& value) {
  if (!value.is_number_integer()) return false;
  // An unsigned number beyond 63 bits turns negative.
  const int64_t number = value.get<int64_t>();
  return number >= 0 && number <= std::numeric_limits<int32_t>::max();
}

}  // namespace

absl::StatusOr<SpeculativeConfig> ReadSpeculativeConfig(const std::string& json) {
  const Json object = Json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--speculative-config is '", json, "', it must be a JSON object"));
  }
  SpeculativeConfig config;
  for (const auto& [key, value] : object.items()) {
    if (key == "method") {
      if (!value.is_string()) return Refuse(key, value, "a string");
      config.method = value.get<std::string>();
    } else if (key == "num_speculative_tokens") {
      if (!FitsInteger(value)) return Refuse(key, value, absl::StrCat("from 1 to ", kDraftsMax));
      config.num_speculative_tokens = value.get<int32_t>();
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("--speculative-config: '", key,
                       "' is not known; there are method and num_speculative_tokens"));
    }
  }
  return config;
}

absl::StatusOr<int32_t> DraftsAsked(const std::string& json, const SpeculativeConfig& parts) {
  SpeculativeConfig config = parts;
  if (!json.empty()) {
    if (!parts.method.empty() || parts.num_speculative_tokens.has_value()) {
      return absl::InvalidArgumentError(
          "--speculative-config and --speculative-config.* are both given, it must be one form");
    }
    absl::StatusOr<SpeculativeConfig> read = ReadSpeculativeConfig(json);
    if (!read.ok()) return read.status();
    config = *std::move(read);
  }
  if (config.method.empty()) {
    if (json.empty() && !config.num_speculative_tokens.has_value()) return 0;
    return absl::InvalidArgumentError(
        "--speculative-config.method is not given, it must be \"mtp\"");
  }
  if (config.method != "mtp") {
    return absl::InvalidArgumentError(
        absl::StrCat("--speculative-config.method is \"", config.method, "\", it must be \"mtp\""));
  }
  const int32_t drafts = config.num_speculative_tokens.value_or(1);
  if (drafts < 1 || drafts > kDraftsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("--speculative-config.num_speculative_tokens is ", drafts,
                     ", it must be from 1 to ", kDraftsMax));
  }
  return drafts;
}

}  // namespace glm::worker
