// One client's connection: reads requests, calls their routes, writes the replies.
//
// Who calls: the server creates it on the loop it will stay on, and drains or closes it there;
// routes see it as an HttpReply. Only http.cc includes this.
#pragma once

#include <array>
#include <atomic>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <unordered_set>

#include "absl/strings/string_view.h"
#include "router/front/http.h"
#include "router/front/http_reader.h"

namespace glm::router {

class HttpConnection;

/// What all connections of a server share. Nothing but the counters changes once it listens.
struct HttpShared {
  HttpOptions options;
  HttpRoutes routes;
  HttpErrorBody error_body;
  RouterMetrics* metrics = nullptr;
  std::atomic<bool> draining{false};
  std::atomic<int32_t> connections_open{0};
};

/// The connections of one loop. Owned by that loop.
struct HttpLane {
  ThreadLoop* loop = nullptr;
  std::unordered_set<std::shared_ptr<HttpConnection>> connections;
  std::function<void()> on_empty;                  // called once, when the last connection ends
  std::mt19937_64 random{std::random_device{}()};  // for request ids
};

class HttpConnection final : public HttpReply, public std::enable_shared_from_this<HttpConnection> {
 public:
  using Socket = boost::asio::ip::tcp::socket;

  /// `shared` and `lane` outlive every connection that is not closed.
  HttpConnection(HttpShared* shared, HttpLane* lane, Socket socket);

  void Start();
  /// Closes if no request is being read or answered; else the request that is will be the last.
  void BeginDrain();
  /// Leaves the lane and destroys the answer. Not from inside a call of the answer's own.
  void Close();

  void Send(int status, absl::string_view content_type, absl::string_view body,
            const HttpHeaders& headers) override;
  void StartStream(absl::string_view content_type, const HttpHeaders& headers) override;
  void Write(absl::string_view piece) override;
  void EndStream() override;

 private:
  enum class State : uint8_t {
    kReading,    // a request, or waiting for one
    kAnswering,  // until the reply is written
    kLingering,  // our side is shut; what still comes is dropped until the client closes too
    kDoomed,     // about to be closed
    kClosed,
  };
  enum class Reply : uint8_t { kNone, kStreaming, kEnded };

  void NextRequest();
  void KeepReading();
  void OnRead(const boost::system::error_code& error, size_t bytes);
  void Parse();
  void Refuse(int status, absl::string_view message);
  void Dispatch(HttpRequest request);
  void SendOptions(const HttpRoutes::Match& match);
  void SendError(int status, absl::string_view message, const HttpHeaders& headers = {});

  void AppendHead(int status, absl::string_view content_type, std::optional<size_t> length,
                  const HttpHeaders& headers);
  void EndReply();
  void CheckRoom();
  void FlushSoon();
  void Flush();
  void SendSome();
  void OnSent(const boost::system::error_code& error, size_t bytes);
  void Proceed();
  void Linger();

  void SetDeadline(std::chrono::milliseconds wait);
  void ClearDeadline();
  void ArmTimer();
  void OnDeadline();

  static constexpr auto kNever = std::chrono::steady_clock::time_point::max();

  HttpShared* const shared_;
  HttpLane* const lane_;
  Socket socket_;
  State state_ = State::kReading;

  // In.
  std::array<char, 8 << 10> read_buffer_;
  bool read_pending_ = false;
  std::string in_;  // read and not yet parsed
  std::optional<HttpReader> reader_;
  bool request_begun_ = false;
  bool continue_sent_ = false;

  // The request being answered.
  std::unique_ptr<HttpAnswer> answer_;
  std::string id_;
  bool head_only_ = false;
  bool http_1_1_ = true;
  bool keep_alive_ = true;
  bool chunked_ = false;
  bool answered_ = false;  // the answer is gone; what is left is to write its reply
  Reply reply_ = Reply::kNone;

  // Out. Pieces gather in `out_` while `sending_` is on its way.
  std::string out_;
  std::string sending_;
  size_t sent_bytes_ = 0;
  bool send_pending_ = false;
  bool flush_pending_ = false;

  // One timer for every deadline. It is moved only when it would ring too late, so that a deadline
  // per written piece costs no timer operation.
  boost::asio::steady_timer timer_;
  std::chrono::steady_clock::time_point deadline_ = kNever;
  std::chrono::steady_clock::time_point timer_at_ = kNever;  // kNever: not armed
};

}  // namespace glm::router
