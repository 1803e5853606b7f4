#include "router/front/http_routes.h"

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "proto/base/log.h"

namespace glm::router {
namespace {

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  c = absl::ascii_tolower(static_cast<unsigned char>(c));
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

}  // namespace

bool DecodePercent(absl::string_view text, std::string* decoded) {
  decoded->clear();
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      decoded->push_back(text[i]);
      continue;
    }
    if (i + 2 >= text.size()) return false;
    const int high = HexDigit(text[i + 1]);
    const int low = HexDigit(text[i + 2]);
    if (high < 0 || low < 0) return false;
    decoded->push_back(static_cast<char>(high * 16 + low));
    i += 2;
  }
  return true;
}

void HttpRoutes::Add(std::string method, std::string path, HttpRoute route) {
  CHECK(absl::StartsWith(path, "/")) << "route '" << path << "'";
  const bool is_prefix = absl::EndsWith(path, "/*");
  if (is_prefix) path.pop_back();
  ByMethod& methods = (is_prefix ? prefixes_ : exact_)[std::move(path)];
  CHECK(methods.emplace(std::move(method), std::move(route)).second) << "route added twice";
}

HttpRoutes::Match HttpRoutes::Find(absl::string_view method, absl::string_view path) const {
  Match match;
  const ByMethod* methods = nullptr;
  if (const auto exact = exact_.find(path); exact != exact_.end()) {
    methods = &exact->second;
  } else {
    for (const auto& [prefix, prefix_methods] : prefixes_) {
      if (path.size() <= prefix.size() || !absl::StartsWith(path, prefix)) continue;
      if (!DecodePercent(path.substr(prefix.size()), &match.rest)) continue;
      methods = &prefix_methods;
    }
  }
  if (methods == nullptr) return match;
  for (const auto& [name, route] : *methods) {
    absl::StrAppend(&match.allow, name, ", ", name == "GET" ? "HEAD, " : "");
  }
  absl::StrAppend(&match.allow, "OPTIONS");
  const auto found = methods->find(method == "HEAD" ? "GET" : method);
  if (found != methods->end()) match.route = &found->second;
  return match;
}

}  // namespace glm::router
