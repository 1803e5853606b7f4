#include "router/front/json_fields.h"

#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace glm::router {
namespace {

constexpr absl::string_view kFieldPayload = "glmserve/field";

/// Depth and width are bounded before the parser runs: it recurses when it frees what it built, and
/// an ordered object looks each new key up in all before.
absl::Status CheckShape(absl::string_view text) {
  std::vector<int32_t> fields;  // one entry per open object or array: its colons so far
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
      continue;
    }
    switch (c) {
      case '"':
        in_string = true;
        break;
      case '{':
      case '[':
        fields.push_back(0);
        if (fields.size() > kJsonDepthMax) {
          return absl::InvalidArgumentError(absl::StrCat("the JSON nests deeper than the limit of ",
                                                         kJsonDepthMax, " at byte ", i));
        }
        break;
      case '}':
      case ']':
        if (!fields.empty()) fields.pop_back();
        break;
      case ':':
        if (!fields.empty() && ++fields.back() > kJsonFieldsMax) {
          return absl::InvalidArgumentError(absl::StrCat(
              "a JSON object has more fields than the limit of ", kJsonFieldsMax, " at byte ", i));
        }
        break;
      default:
        break;
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Json> ParseJson(absl::string_view text) {
  if (absl::Status status = CheckShape(text); !status.ok()) return status;
  try {
    return Json::parse(text.begin(), text.end());
  } catch (const Json::parse_error& error) {
    return absl::InvalidArgumentError(absl::StrCat("not valid JSON in UTF-8: the error is at byte ",
                                                   error.byte, " of ", text.size()));
  } catch (const Json::exception&) {
    return absl::InvalidArgumentError("not valid JSON: it has a number out of range");
  }
}

absl::Status FieldError(absl::StatusCode code, absl::string_view path, absl::string_view message) {
  absl::Status status(code, absl::StrCat(path, " ", message));
  status.SetPayload(kFieldPayload, absl::Cord(path));
  return status;
}

std::string FieldOf(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kFieldPayload);
  return payload.has_value() ? std::string(*payload) : "";
}

std::string ShownValue(const Json& value) {
  std::string shown = value.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
  if (shown.size() > kShownValueBytesMax) {
    shown.resize(kShownValueBytesMax);
    shown += "...";
  }
  return shown;
}

JsonFields::JsonFields(const Json& object, std::string path)
    : object_(object), path_(std::move(path)) {
  if (!object_.is_object()) {
    status_ = FieldError(absl::StatusCode::kInvalidArgument, path_.empty() ? "the body" : path_,
                         absl::StrCat("must be an object, not ", ShownValue(object_)));
    return;
  }
  known_.resize(object_.size());
}

std::string JsonFields::PathOf(absl::string_view name) const {
  return path_.empty() ? std::string(name) : absl::StrCat(path_, ".", name);
}

const Json* JsonFields::Find(absl::string_view name) {
  if (!status_.ok()) return nullptr;
  size_t place = 0;
  for (auto field = object_.begin(); field != object_.end(); ++field, ++place) {
    if (field.key() != name) continue;
    known_[place] = true;
    return field->is_null() ? nullptr : &*field;
  }
  return nullptr;
}

bool JsonFields::Read(absl::string_view name, std::string* out) {
  const Json* value = Find(name);
  if (value == nullptr) return false;
  if (!value->is_string()) {
    FailType(name, "a string", *value);
    return false;
  }
  *out = value->get_ref<const std::string&>();
  return true;
}

bool JsonFields::Read(absl::string_view name, bool* out) {
  const Json* value = Find(name);
  if (value == nullptr) return false;
  if (!value->is_boolean()) {
    FailType(name, "true or false", *value);
    return false;
  }
  *out = value->get<bool>();
  return true;
}

bool JsonFields::Read(absl::string_view name, float* out) {
  const Json* value = Find(name);
  if (value == nullptr) return false;
  const float number = value->is_number() ? value->get<float>() : std::nanf("");
  if (!std::isfinite(number)) {
    FailType(name, "a number", *value);
    return false;
  }
  *out = number;
  return true;
}

bool JsonFields::Read(absl::string_view name, int32_t* out) {
  const Json* value = Find(name);
  return value != nullptr && ReadInteger(*value, PathOf(name), out);
}

bool JsonFields::Read(absl::string_view name, std::vector<std::string>* out) {
  const Json* value = Find(name);
  if (value == nullptr) return false;
  out->clear();
  if (value->is_string()) {
    out->push_back(value->get<std::string>());
    return true;
  }
  if (!value->is_array()) {
    FailType(name, "a string or a list of strings", *value);
    return false;
  }
  for (const Json& item : *value) {
    if (!item.is_string()) {
      FailType(name, "a string or a list of strings", *value);
      return false;
    }
    out->push_back(item.get<std::string>());
  }
  return true;
}

bool JsonFields::Read(absl::string_view name, std::vector<int32_t>* out) {
  const Json* value = Find(name);
  if (value == nullptr) return false;
  if (!value->is_array()) {
    FailType(name, "a list of integers", *value);
    return false;
  }
  out->resize(value->size());
  for (size_t i = 0; i < value->size(); ++i) {
    const std::string path = absl::StrCat(PathOf(name), "[", i, "]");
    if (!ReadInteger((*value)[i], path, &(*out)[i])) return false;
  }
  return true;
}

bool JsonFields::ReadInteger(const Json& value, const std::string& path, int32_t* out) {
  constexpr int64_t kLeast = std::numeric_limits<int32_t>::min();
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const bool is_huge =
      value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(kMost);
  if (!value.is_number_integer() || is_huge || value.get<int64_t>() < kLeast) {
    Fail(FieldError(absl::StatusCode::kInvalidArgument, path,
                    absl::StrCat("must be an integer from ", kLeast, " to ", kMost, ", not ",
                                 ShownValue(value))));
    return false;
  }
  *out = value.get<int32_t>();
  return true;
}

void JsonFields::ReadNeutral(absl::string_view name, std::initializer_list<Json> values) {
  const Json* value = Find(name);
  if (value == nullptr) return;
  for (const Json& neutral : values) {
    // Equality of numbers ignores their type, and a bool is no number.
    if (*value == neutral) return;
  }
  if (values.size() == 0) {
    return Fail(name, absl::StrCat("is not supported; remove it (", ShownValue(*value), ")"),
                absl::StatusCode::kUnimplemented);
  }
  Fail(name,
       absl::StrCat("is supported only as ",
                    absl::StrJoin(values, " or ",
                                  [](std::string* out, const Json& neutral) {
                                    absl::StrAppend(out, ShownValue(neutral));
                                  }),
                    ", not ", ShownValue(*value)),
       absl::StatusCode::kUnimplemented);
}

void JsonFields::ReadAnyString(absl::string_view name) {
  const Json* value = Find(name);
  if (value != nullptr && !value->is_string()) FailType(name, "a string", *value);
}

void JsonFields::ReadAnyObject(absl::string_view name) {
  const Json* value = Find(name);
  if (value != nullptr && !value->is_object()) FailType(name, "an object", *value);
}

void JsonFields::FailType(absl::string_view name, absl::string_view wanted, const Json& value) {
  Fail(name, absl::StrCat("must be ", wanted, ", not ", ShownValue(value)));
}

void JsonFields::Fail(absl::string_view name, absl::string_view message, absl::StatusCode code) {
  Fail(FieldError(code, PathOf(name), message));
}

void JsonFields::Fail(absl::Status status) {
  if (status_.ok()) status_ = std::move(status);
}

absl::Status JsonFields::Finish() const {
  if (!status_.ok()) return status_;
  size_t place = 0;
  for (auto field = object_.begin(); field != object_.end(); ++field, ++place) {
    if (known_[place]) continue;
    return FieldError(absl::StatusCode::kInvalidArgument,
                      PathOf(field.key().substr(0, kShownValueBytesMax)),
                      "is not a known field; remove it");
  }
  return absl::OkStatus();
}

}  // namespace glm::router
