// What a front's routes see of HTTP: a request as a value, and the reply to it.
//
// Who calls: the server builds requests and implements HttpReply; routes read the one and call the
// other, on the loop thread that owns the connection.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace glm::router {

/// Names and values as they stand on the wire, in order.
using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string method;   // as sent: "GET"
  std::string path;     // starts with '/', not decoded, without the query
  std::string query;    // what stands behind '?', not decoded
  HttpHeaders headers;  // names in lower case
  std::string body;
  std::string id;  // the client's X-Request-Id if that is sane, else made by the server
  bool keep_alive = true;
  bool http_1_1 = true;

  /// The first value of `name` (in lower case); empty when absent.
  absl::string_view Header(absl::string_view name) const {
    for (const auto& [header_name, value] : headers) {
      if (header_name == name) return value;
    }
    return {};
  }
};

/// The reply to one request: either Send, or StartStream, Write, ..., EndStream. It outlives the
/// HttpAnswer that its route returned. Calls after the client has gone do nothing.
class HttpReply {
 public:
  virtual ~HttpReply() = default;

  virtual void Send(int status, absl::string_view content_type, absl::string_view body,
                    const HttpHeaders& headers = {}) = 0;

  /// Status 200; the pieces follow as chunks.
  virtual void StartStream(absl::string_view content_type, const HttpHeaders& headers = {}) = 0;
  /// What the client does not take is kept up to the server's `output_bytes_max`; beyond it the
  /// connection is closed.
  virtual void Write(absl::string_view piece) = 0;
  virtual void EndStream() = 0;
};

/// What is under way for one request. Destroyed on its loop, never inside a call that it made: soon
/// after its reply has ended, or as soon as the client is gone; the destructor cancels what is
/// left.
class HttpAnswer {
 public:
  virtual ~HttpAnswer() = default;
};

}  // namespace glm::router
