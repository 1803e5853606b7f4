// The checks that both processes make of their options, so that both say alike what is wrong: the
// flag, its value and the limit.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace glm {

/// Collects the first failure, so that a long list of bounds reads as a table. `flag` is its name
/// without the dashes.
class OptionChecks {
 public:
  void Range(absl::string_view flag, int64_t value, int64_t least, int64_t most);
  /// host:port with a port from `port_min` to 65535, or unix:/path.
  void Address(absl::string_view flag, absl::string_view value, int32_t port_min);
  /// `flag` says something, so `needed` has to.
  void Needs(absl::string_view flag, absl::string_view value, absl::string_view needed,
             absl::string_view needed_value);
  void Fail(const std::string& message);

  const absl::Status& status() const { return status_; }

 private:
  absl::Status status_;
};

/// host:port with a port from `port_min` to 65535, or unix:/path. An IPv6 host is in brackets.
bool IsAddress(absl::string_view text, int32_t port_min);

}  // namespace glm
