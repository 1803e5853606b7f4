#include "router/front/http_connection.h"

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "proto/base/log.h"

namespace glm::router {
namespace {

using boost::system::error_code;
using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

/// Pipelined requests that are read ahead of their turn.
constexpr size_t kReadAheadBytesMax = 64 << 10;
/// How long a client may take to close after we did; it still reads our last reply meanwhile.
constexpr milliseconds kLinger{2000};
/// A buffer that has grown beyond this is given back once it is empty.
constexpr size_t kKeptBytesMax = 64 << 10;
constexpr size_t kRequestIdBytesMax = 128;

constexpr absl::string_view kJson = "application/json";

absl::string_view ReasonOf(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 204:
      return "No Content";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 413:
      return "Content Too Large";
    case 415:
      return "Unsupported Media Type";
    case 417:
      return "Expectation Failed";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    default:
      return "Unknown";
  }
}

bool IsSaneRequestId(absl::string_view id) {
  return !id.empty() && id.size() <= kRequestIdBytesMax &&
         std::all_of(id.begin(), id.end(), [](unsigned char c) {
           return absl::ascii_isalnum(c) || c == '-' || c == '_' || c == '.' || c == ':';
         });
}

}  // namespace

HttpConnection::HttpConnection(HttpShared* shared, HttpLane* lane, Socket socket)
    : shared_(shared), lane_(lane), socket_(std::move(socket)), timer_(lane->loop->io_context()) {}

void HttpConnection::Start() {
  error_code ignored;
  socket_.set_option(boost::asio::ip::tcp::no_delay(true), ignored);
  NextRequest();
}

void HttpConnection::BeginDrain() {
  if (state_ == State::kReading && !request_begun_) Close();
}

void HttpConnection::Close() {
  if (state_ == State::kClosed) return;
  state_ = State::kClosed;
  error_code ignored;
  timer_.cancel(ignored);
  socket_.close(ignored);
  answer_.reset();
  shared_->metrics->AddConnections(-1);
  --shared_->connections_open;
  HttpLane* const lane = lane_;
  lane->connections.erase(shared_from_this());
  if (lane->connections.empty() && lane->on_empty) std::exchange(lane->on_empty, nullptr)();
}

// ---- In
// ------------------------------------------------------------------------------------------

void HttpConnection::NextRequest() {
  state_ = State::kReading;
  reader_.emplace(shared_->options);
  request_begun_ = false;
  continue_sent_ = false;
  answered_ = false;
  reply_ = Reply::kNone;
  if (in_.empty()) {
    if (shared_->draining) return Linger();
    SetDeadline(seconds(shared_->options.idle_timeout_s));
  } else {
    Parse();
  }
  KeepReading();
}

void HttpConnection::KeepReading() {
  if (read_pending_ || state_ == State::kClosed || state_ == State::kDoomed) return;
  if (state_ == State::kAnswering && in_.size() >= kReadAheadBytesMax) return;
  read_pending_ = true;
  socket_.async_read_some(boost::asio::buffer(read_buffer_),
                          [self = shared_from_this()](const error_code& error, size_t bytes) {
                            self->OnRead(error, bytes);
                          });
}

void HttpConnection::OnRead(const error_code& error, size_t bytes) {
  read_pending_ = false;
  if (state_ == State::kClosed) return;
  // A client that has shut its side is taken as gone: most that do are, and their work is not done
  // for nobody.
  if (error) return Close();
  if (state_ == State::kReading || state_ == State::kAnswering) {
    in_.append(read_buffer_.data(), bytes);
  }
  if (state_ == State::kReading) Parse();
  KeepReading();
}

void HttpConnection::Parse() {
  if (!request_begun_) {
    request_begun_ = true;
    SetDeadline(seconds(shared_->options.read_timeout_s));
  }
  const size_t used = reader_->Feed(in_);
  in_.erase(0, used);
  switch (reader_->state()) {
    case HttpReader::State::kHead:
      break;
    case HttpReader::State::kBody:
      if (reader_->expects_continue() && !continue_sent_) {
        continue_sent_ = true;
        out_ += "HTTP/1.1 100 Continue\r\n\r\n";
        Flush();
      }
      break;
    case HttpReader::State::kDone:
      Dispatch(std::move(reader_->request()));
      break;
    case HttpReader::State::kRefused:
      Refuse(reader_->refusal().status, reader_->refusal().message);
      break;
  }
}

void HttpConnection::Refuse(int status, absl::string_view message) {
  state_ = State::kAnswering;
  ClearDeadline();
  keep_alive_ = false;
  head_only_ = false;
  http_1_1_ = true;
  id_.clear();
  in_.clear();
  SendError(status, message);
}

void HttpConnection::Dispatch(HttpRequest request) {
  state_ = State::kAnswering;
  ClearDeadline();
  const absl::string_view client_id = request.Header("x-request-id");
  id_ = IsSaneRequestId(client_id)
            ? std::string(client_id)
            : absl::StrFormat("req-%016x%016x", lane_->random(), lane_->random());
  request.id = id_;
  head_only_ = request.method == "HEAD";
  http_1_1_ = request.http_1_1;
  keep_alive_ = request.keep_alive;

  HttpRoutes::Match match = shared_->routes.Find(request.method, request.path);
  if (request.method == "OPTIONS" && (request.path == "*" || !match.allow.empty())) {
    return SendOptions(match);
  }
  if (match.allow.empty()) {
    return SendError(404, absl::StrCat("there is no path '", request.path.substr(0, 256), "'"));
  }
  if (match.route == nullptr) {
    return SendError(405,
                     absl::StrCat("'", request.path.substr(0, 256), "' does not take ",
                                  request.method.substr(0, 32), "; it takes ", match.allow),
                     {{"Allow", match.allow}});
  }
  answer_ = (*match.route)(HttpCall{std::move(request), std::move(match.rest), lane_->loop, this});
  CHECK(answer_ != nullptr || reply_ == Reply::kEnded) << "a route did not answer";
}

void HttpConnection::SendOptions(const HttpRoutes::Match& match) {
  HttpHeaders headers;
  if (!match.allow.empty()) headers.emplace_back("Allow", match.allow);
  if (!shared_->options.cors_origin.empty()) {
    headers.emplace_back("Access-Control-Allow-Methods", "GET, POST");
    headers.emplace_back("Access-Control-Allow-Headers",
                         "Authorization, Content-Type, X-Request-Id");
  }
  Send(204, "", "", headers);
}

void HttpConnection::SendError(int status, absl::string_view message, const HttpHeaders& headers) {
  Send(status, kJson, shared_->error_body(status, message), headers);
}

// ---- Out
// -----------------------------------------------------------------------------------------

void HttpConnection::AppendHead(int status, absl::string_view content_type,
                                std::optional<size_t> length, const HttpHeaders& headers) {
  if (shared_->draining) keep_alive_ = false;
  absl::StrAppend(&out_, "HTTP/1.1 ", status, " ", ReasonOf(status), "\r\n");
  absl::StrAppend(&out_, "Date: ",
                  absl::FormatTime("%a, %d %b %Y %H:%M:%S GMT", absl::Now(), absl::UTCTimeZone()),
                  "\r\n");
  if (!content_type.empty()) absl::StrAppend(&out_, "Content-Type: ", content_type, "\r\n");
  if (!id_.empty()) absl::StrAppend(&out_, "X-Request-Id: ", id_, "\r\n");
  if (!shared_->options.cors_origin.empty()) {
    absl::StrAppend(&out_, "Access-Control-Allow-Origin: ", shared_->options.cors_origin, "\r\n");
  }
  for (const auto& [name, value] : headers) absl::StrAppend(&out_, name, ": ", value, "\r\n");
  if (chunked_) {
    out_ += "Transfer-Encoding: chunked\r\n";
  } else if (length.has_value() && status != 204) {
    absl::StrAppend(&out_, "Content-Length: ", *length, "\r\n");
  }
  if (!keep_alive_) {
    out_ += "Connection: close\r\n";
  } else if (!http_1_1_) {
    out_ += "Connection: keep-alive\r\n";
  }
  out_ += "\r\n";
}

void HttpConnection::Send(int status, absl::string_view content_type, absl::string_view body,
                          const HttpHeaders& headers) {
  if (state_ != State::kAnswering) return;
  CHECK(reply_ == Reply::kNone) << "a request answered twice";
  chunked_ = false;
  AppendHead(status, content_type, body.size(), headers);
  // A whole body is already in memory, and is the only one that this connection waits to send: it
  // is not held against output_bytes_max.
  if (!head_only_) absl::StrAppend(&out_, body);
  EndReply();
}

void HttpConnection::StartStream(absl::string_view content_type, const HttpHeaders& headers) {
  if (state_ != State::kAnswering) return;
  CHECK(reply_ == Reply::kNone) << "a request answered twice";
  reply_ = Reply::kStreaming;
  chunked_ = http_1_1_;
  if (!chunked_) keep_alive_ = false;  // the end of the connection ends the body
  AppendHead(200, content_type, std::nullopt, headers);
  FlushSoon();
}

void HttpConnection::Write(absl::string_view piece) {
  if (state_ != State::kAnswering || piece.empty()) return;
  CHECK(reply_ == Reply::kStreaming) << "a piece outside of a stream";
  if (chunked_) {
    absl::StrAppend(&out_, absl::Hex(piece.size()), "\r\n", piece, "\r\n");
  } else {
    absl::StrAppend(&out_, piece);
  }
  CheckRoom();
  FlushSoon();
}

void HttpConnection::EndStream() {
  if (state_ != State::kAnswering) return;
  CHECK(reply_ == Reply::kStreaming) << "a stream ended that was not begun";
  if (chunked_) out_ += "0\r\n\r\n";
  EndReply();
}

void HttpConnection::EndReply() {
  reply_ = Reply::kEnded;
  // The answer may be the caller, and its route may not have returned yet.
  lane_->loop->Post([self = shared_from_this()] {
    if (self->state_ != State::kAnswering) return;
    self->answer_.reset();
    self->answered_ = true;
    self->Flush();
    self->Proceed();
  });
}

void HttpConnection::CheckRoom() {
  const size_t unsent_bytes = out_.size() + sending_.size() - sent_bytes_;
  if (static_cast<int64_t>(unsent_bytes) <= shared_->options.output_bytes_max) return;
  LOG(WARNING) << "request " << id_ << ": the client has left " << unsent_bytes
               << " bytes unread, over the limit of " << shared_->options.output_bytes_max
               << "; its connection is closed";
  state_ = State::kDoomed;
  lane_->loop->Post([self = shared_from_this()] { self->Close(); });
}

void HttpConnection::FlushSoon() {
  // What is written within one turn of the loop leaves in one packet.
  if (flush_pending_ || send_pending_ || state_ != State::kAnswering) return;
  flush_pending_ = true;
  lane_->loop->Post([self = shared_from_this()] {
    self->flush_pending_ = false;
    self->Flush();
  });
}

void HttpConnection::Flush() {
  if (send_pending_ || out_.empty() || state_ == State::kClosed || state_ == State::kDoomed) {
    return;
  }
  std::swap(sending_, out_);
  sent_bytes_ = 0;
  SendSome();
}

void HttpConnection::SendSome() {
  send_pending_ = true;
  if (state_ == State::kAnswering) SetDeadline(seconds(shared_->options.write_timeout_s));
  socket_.async_write_some(
      boost::asio::buffer(sending_.data() + sent_bytes_, sending_.size() - sent_bytes_),
      [self = shared_from_this()](const error_code& error, size_t bytes) {
        self->OnSent(error, bytes);
      });
}

void HttpConnection::OnSent(const error_code& error, size_t bytes) {
  send_pending_ = false;
  if (state_ == State::kClosed || state_ == State::kDoomed) return;
  if (error) return Close();
  sent_bytes_ += bytes;
  if (sent_bytes_ < sending_.size()) return SendSome();
  sent_bytes_ = 0;
  sending_.clear();
  if (sending_.capacity() > kKeptBytesMax) sending_.shrink_to_fit();
  if (!out_.empty()) return Flush();
  if (state_ == State::kAnswering) ClearDeadline();
  Proceed();
}

void HttpConnection::Proceed() {
  if (state_ != State::kAnswering || !answered_ || send_pending_ || !out_.empty()) return;
  if (!keep_alive_) return Linger();
  NextRequest();
}

void HttpConnection::Linger() {
  state_ = State::kLingering;
  in_.clear();
  error_code ignored;
  socket_.shutdown(Socket::shutdown_send, ignored);
  SetDeadline(kLinger);
  KeepReading();
}

// ---- Deadlines
// -----------------------------------------------------------------------------------

void HttpConnection::SetDeadline(milliseconds wait) {
  deadline_ = steady_clock::now() + wait;
  if (deadline_ < timer_at_) ArmTimer();
}

void HttpConnection::ClearDeadline() { deadline_ = kNever; }

void HttpConnection::ArmTimer() {
  timer_at_ = deadline_;
  timer_.expires_at(deadline_);
  timer_.async_wait([self = shared_from_this()](const error_code& error) {
    if (error || self->state_ == State::kClosed) return;
    self->timer_at_ = kNever;
    if (self->deadline_ == kNever) return;
    if (steady_clock::now() < self->deadline_) return self->ArmTimer();
    self->OnDeadline();
  });
}

void HttpConnection::OnDeadline() {
  if (state_ == State::kReading && request_begun_) {
    return Refuse(408, absl::StrCat("the request took longer than the limit of ",
                                    shared_->options.read_timeout_s, " s to arrive"));
  }
  Close();
}

}  // namespace glm::router
