// Untrusted JSON, read within limits and strictly: every error names its field.
//
// Who calls: the fronts, on any thread. Pure functions and values.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "router/text/chat_format.h"

namespace glm::router {

inline constexpr int32_t kJsonDepthMax = 64;        // objects and arrays within each other
inline constexpr int32_t kJsonFieldsMax = 1024;     // of one object
inline constexpr int32_t kShownValueBytesMax = 64;  // of a bad value, in an error

/// INVALID_ARGUMENT saying what is wrong and where: not JSON, not UTF-8, too deep, too many fields.
absl::StatusOr<Json> ParseJson(absl::string_view text);

/// A status about the field `path`, which FieldOf gives back.
absl::Status FieldError(absl::StatusCode code, absl::string_view path, absl::string_view message);
/// The field that `status` is about; empty when it was not made by FieldError.
std::string FieldOf(const absl::Status& status);

/// The value as JSON, cut to kShownValueBytesMax.
std::string ShownValue(const Json& value);

/// Reads one object field by field. A field that is null counts as absent. The first error is kept
/// and what comes after it is not looked at; Finish tells it, or names a field nobody asked for.
class JsonFields {
 public:
  /// `path` is the object's own name in errors, such as "messages[3]"; empty for the body.
  JsonFields(const Json& object, std::string path);

  /// The first error so far.
  const absl::Status& status() const { return status_; }
  /// "tools" within "messages[3]": "messages[3].tools".
  std::string PathOf(absl::string_view name) const;

  /// The value, or null. The field is known from now on.
  const Json* Find(absl::string_view name);

  // Each leaves `out` as it is when the field is absent. True when it was there and good.
  bool Read(absl::string_view name, std::string* out);
  bool Read(absl::string_view name, bool* out);
  bool Read(absl::string_view name, float* out);
  bool Read(absl::string_view name, int32_t* out);
  bool Read(absl::string_view name, std::vector<std::string>* out);  // a string or a list of them
  bool Read(absl::string_view name, std::vector<int32_t>* out);

  /// A field that is known and that we do not act on: absent, or one of `values`.
  void ReadNeutral(absl::string_view name, std::initializer_list<Json> values);
  /// A field that may say anything of its type without changing the answer.
  void ReadAnyString(absl::string_view name);
  void ReadAnyObject(absl::string_view name);

  void Fail(absl::string_view name, absl::string_view message,
            absl::StatusCode code = absl::StatusCode::kInvalidArgument);
  void Fail(absl::Status status);

  absl::Status Finish() const;

 private:
  bool ReadInteger(const Json& value, const std::string& path, int32_t* out);
  void FailType(absl::string_view name, absl::string_view wanted, const Json& value);

  const Json& object_;
  const std::string path_;
  std::vector<bool> known_;  // by place in the object
  absl::Status status_;
};

}  // namespace glm::router
