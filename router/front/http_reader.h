// Bytes of a connection to one HttpRequest, within limits.
//
// Who calls: a connection, on its loop, one reader per request. A pure state machine: no socket, no
// clock. What is ambiguous is refused, since a proxy in front of us may have read it differently.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "router/front/http_message.h"
#include "router/options.h"

namespace glm::router {

class HttpReader {
 public:
  enum class State : uint8_t { kHead, kBody, kDone, kRefused };

  /// Why a request is not read further.
  struct Refusal {
    int status = 400;
    std::string message;
  };

  /// `header_bytes_max` also bounds one chunk's head and the trailer. `options` outlives the
  /// reader.
  explicit HttpReader(const HttpOptions& options);
  ~HttpReader();

  /// Takes what it can from the front of `bytes` and returns how many bytes that were. The rest is
  /// to be given again, with more behind it. REQUIRES: state() is kHead or kBody.
  size_t Feed(absl::string_view bytes);

  State state() const { return state_; }
  /// In kBody: the client waits for "100 Continue" before it sends the body.
  bool expects_continue() const { return expects_continue_; }
  /// REQUIRES: kDone. `id` is not set.
  HttpRequest& request();
  /// REQUIRES: kRefused.
  const Refusal& refusal() const { return refusal_; }

 private:
  class Parser;

  size_t FeedHead(absl::string_view bytes);
  size_t FeedBody(absl::string_view bytes);
  void CheckHead();
  void SplitTarget();
  void Refuse(int status, std::string message);

  const HttpOptions& options_;
  State state_ = State::kHead;
  bool expects_continue_ = false;
  size_t scanned_bytes_ = 0;  // of the head: searched for its end already
  Refusal refusal_;
  std::unique_ptr<Parser> parser_;
};

}  // namespace glm::router
