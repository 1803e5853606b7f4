// (method, path) to the function that answers it.
//
// Who calls: main fills it before the server starts; connections read it, on their loops.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "router/front/http_message.h"
#include "router/thread_loop.h"

namespace glm::router {

/// A request with what its route needs beside it.
struct HttpCall {
  HttpRequest request;
  std::string rest;  // of a path route: what stood for '*', decoded
  ThreadLoop* loop = nullptr;
  HttpReply* reply = nullptr;
};

/// Answers at once and returns null, or returns what goes on.
using HttpRoute = std::function<std::unique_ptr<HttpAnswer>(HttpCall)>;

class HttpRoutes {
 public:
  struct Match {
    const HttpRoute* route = nullptr;  // null: no such path, or not with this method
    std::string rest;
    std::string allow;  // the methods of the path, for an Allow header; empty: no such path
  };

  /// `path` is exact, or ends in "/*" and takes every longer path. GET is for HEAD too.
  void Add(std::string method, std::string path, HttpRoute route);

  Match Find(absl::string_view method, absl::string_view path) const;

 private:
  using ByMethod = std::map<std::string, HttpRoute, std::less<>>;
  std::map<std::string, ByMethod, std::less<>> exact_;
  std::map<std::string, ByMethod, std::less<>> prefixes_;  // without the '*'
};

/// Resolves %XX. False when a '%' is not followed by two hexadecimal digits.
bool DecodePercent(absl::string_view text, std::string* decoded);

}  // namespace glm::router
