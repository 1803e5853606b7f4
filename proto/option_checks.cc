#include "proto/option_checks.h"

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace glm {

bool IsAddress(absl::string_view text, int32_t port_min) {
  if (absl::StartsWith(text, "unix:")) return text.size() > 5;
  const size_t colon = text.rfind(':');
  if (colon == absl::string_view::npos || colon == 0) return false;
  const absl::string_view host = text.substr(0, colon);
  const bool bracketed = host.front() == '[' && host.back() == ']';
  if (!bracketed && host.find(':') != absl::string_view::npos) return false;
  for (const char byte : host) {
    if (byte <= ' ' || byte > '~' || byte == '/' || byte == ',') return false;
  }
  int32_t port = -1;
  return absl::SimpleAtoi(text.substr(colon + 1), &port) && port >= port_min && port <= 65'535;
}

void OptionChecks::Range(absl::string_view flag, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return;
  Fail(absl::StrCat("--", flag, "=", value, " must be from ", least, " to ", most));
}

void OptionChecks::Address(absl::string_view flag, absl::string_view value, int32_t port_min) {
  if (IsAddress(value, port_min)) return;
  Fail(absl::StrCat("--", flag, "='", value, "' must be host:port, with a port from ", port_min,
                    " to 65535, or unix:/path"));
}

void OptionChecks::Needs(absl::string_view flag, absl::string_view value, absl::string_view needed,
                         absl::string_view needed_value) {
  if (value.empty() || !needed_value.empty()) return;
  Fail(absl::StrCat("--", flag, "='", value, "' needs --", needed, " too"));
}

void OptionChecks::Fail(const std::string& message) {
  if (status_.ok()) status_ = absl::InvalidArgumentError(message);
}

}  // namespace glm
