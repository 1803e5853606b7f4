#include "bench/scripted/script.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace glm::bench {
namespace {

struct ModeName {
  std::string_view name;
  Script::Mode mode;
};
constexpr std::array<ModeName, 5> kModes = {{{"serve", Script::Mode::kServe},
                                             {"hang", Script::Mode::kHang},
                                             {"stall", Script::Mode::kStall},
                                             {"refuse", Script::Mode::kRefuse},
                                             {"fail", Script::Mode::kFail}}};

}  // namespace

int32_t AnswerState::Next(const AnswerIds& ids) const {
  const auto range = static_cast<uint64_t>(ids.end - ids.begin);
  auto id = static_cast<int32_t>(static_cast<uint64_t>(ids.begin) + (state_ >> 32) % range);
  while (std::find(ids.never.begin(), ids.never.end(), id) != ids.never.end()) {
    id = id + 1 < ids.end ? id + 1 : ids.begin;
  }
  return id;
}

std::vector<int32_t> ScriptedAnswer(absl::Span<const int32_t> prompt_ids, int32_t count,
                                    const AnswerIds& ids) {
  AnswerState state;
  for (const int32_t id : prompt_ids) state.Take(id);
  std::vector<int32_t> answer;
  for (int32_t i = 0; i < count; ++i) {
    answer.push_back(state.Next(ids));
    state.Take(answer.back());
  }
  return answer;
}

absl::Status Script::Validate() const {
  struct Bound {
    const char* name;
    double value, low, high;
  };
  for (const Bound& bound : {Bound{"tokens_per_s", tokens_per_s, 0, 1e5},
                             {"prefill_tokens_per_s", prefill_tokens_per_s, 0, 1e9},
                             {"slow", slow, 0.001, 1e6},
                             {"garble", garble, 0, 1}}) {
    if (bound.value >= bound.low && bound.value <= bound.high) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        bound.name, " is ", bound.value, ", it must be from ", bound.low, " to ", bound.high));
  }
  return absl::OkStatus();
}

absl::StatusOr<Script> ParseScript(const std::string& json, const Script& base) {
  const nlohmann::json fields = nlohmann::json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!fields.is_object()) return absl::InvalidArgumentError("a script is a JSON object");
  Script script = base;
  for (const auto& [name, value] : fields.items()) {
    const auto bad = [&, &name = name, &value = value] {
      return absl::InvalidArgumentError(absl::StrCat(name, " is ", value.dump()));
    };
    if (name == "mode") {
      const std::string text = value.is_string() ? value.get<std::string>() : "";
      const auto* const found = std::find_if(
          kModes.begin(), kModes.end(), [&](const ModeName& mode) { return mode.name == text; });
      if (found == kModes.end()) return bad();
      script.mode = found->mode;
    } else if (name == "draining") {
      if (!value.is_boolean()) return bad();
      script.draining = value.get<bool>();
    } else if (!value.is_number()) {
      return bad();
    } else if (name == "tokens_per_s") {
      script.tokens_per_s = value.get<double>();
    } else if (name == "prefill_tokens_per_s") {
      script.prefill_tokens_per_s = value.get<double>();
    } else if (name == "slow") {
      script.slow = value.get<double>();
    } else if (name == "garble") {
      script.garble = value.get<double>();
    } else {
      return absl::InvalidArgumentError(absl::StrCat("a script has no ", name));
    }
  }
  if (absl::Status status = script.Validate(); !status.ok()) return status;
  return script;
}

}  // namespace glm::bench
