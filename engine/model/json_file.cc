#include "engine/model/json_file.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <set>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace glm::engine {
namespace {

using nlohmann::json;

// The depth is checked before parsing, since a parser would have built the nest by then.
bool TooDeep(absl::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kJsonDepthMax) return true;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return false;
}

// Where the text stops being JSON; the message of the library is not taken, since it may quote the
// text.
struct ErrorPosition : nlohmann::json_sax<json> {
  size_t position = 0;
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(size_t) override { return true; }
  bool key(string_t&) override { return true; }
  bool end_object() override { return true; }
  bool start_array(size_t) override { return true; }
  bool end_array() override { return true; }
  bool parse_error(size_t at, const std::string&, const json::exception&) override {
    position = at;
    return false;
  }
};

}  // namespace

absl::StatusOr<json> ParseJsonObject(absl::string_view text, absl::string_view what) {
  if (TooDeep(text)) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": nested deeper than ", kJsonDepthMax, " levels"));
  }
  std::vector<std::set<std::string>> keys;
  std::string repeated;
  const auto watch = [&](int, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key &&
        !keys.back().insert(parsed.get<std::string>()).second) {
      repeated = parsed.get<std::string>();
    }
    return true;
  };
  json parsed = json::parse(text.begin(), text.end(), watch, /*allow_exceptions=*/false);
  if (parsed.is_discarded()) {
    ErrorPosition error;
    json::sax_parse(text.begin(), text.end(), &error);
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": not valid JSON at byte ", error.position));
  }
  if (!repeated.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": key \"", absl::Utf8SafeCEscape(repeated), "\" is given twice"));
  }
  if (!parsed.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": not a JSON object"));
  }
  return parsed;
}

absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t bytes_max) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(errno)));
  const int64_t bytes = file.tellg();
  if (bytes < 0) return absl::InvalidArgumentError(absl::StrCat(path, ": not a readable file"));
  if (bytes > bytes_max) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", bytes, " bytes; accepted: at most ", bytes_max));
  }
  std::string text(static_cast<size_t>(bytes), '\0');
  file.seekg(0);
  if (!file.read(text.data(), bytes)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": cannot be read"));
  }
  return text;
}

}  // namespace glm::engine
