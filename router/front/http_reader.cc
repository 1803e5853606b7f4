#include "router/front/http_reader.h"

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/beast/http/basic_parser.hpp>
#include <boost/beast/http/error.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "proto/base/log.h"

namespace glm::router {
namespace {

namespace http = boost::beast::http;
using boost::beast::error_code;
using boost::beast::string_view;

absl::string_view View(string_view text) { return {text.data(), text.size()}; }

}  // namespace

/// Beast's grammar, filling our request.
class HttpReader::Parser final : public http::basic_parser<true> {
 public:
  HttpRequest request;
  std::string target;

 private:
  void on_request_impl(http::verb, string_view method, string_view request_target, int version,
                       error_code&) override {
    request.method = std::string(View(method));
    request.http_1_1 = version >= 11;
    target = std::string(View(request_target));
  }
  void on_response_impl(int, string_view, int, error_code&) override {}
  void on_field_impl(http::field, string_view name, string_view value, error_code&) override {
    // A trailer may not change what the head has said.
    if (!is_header_done()) {
      request.headers.emplace_back(absl::AsciiStrToLower(View(name)), std::string(View(value)));
    }
  }
  void on_header_impl(error_code&) override {}
  void on_body_init_impl(const boost::optional<uint64_t>&, error_code&) override {}
  size_t on_body_impl(string_view body, error_code&) override {
    request.body.append(body.data(), body.size());
    return body.size();
  }
  void on_chunk_header_impl(uint64_t, string_view, error_code&) override {}
  size_t on_chunk_body_impl(uint64_t, string_view body, error_code&) override {
    request.body.append(body.data(), body.size());
    return body.size();
  }
  void on_finish_impl(error_code&) override {}
};

HttpReader::HttpReader(const HttpOptions& options)
    : options_(options), parser_(std::make_unique<Parser>()) {
  parser_->body_limit(static_cast<uint64_t>(options.body_bytes_max));
  // The head is given whole and within our own limit.
  parser_->header_limit(static_cast<uint32_t>(options.header_bytes_max + 1));
}

HttpReader::~HttpReader() = default;

HttpRequest& HttpReader::request() {
  CHECK(state_ == State::kDone) << "request taken before it was read";
  return parser_->request;
}

void HttpReader::Refuse(int status, std::string message) {
  state_ = State::kRefused;
  refusal_ = {status, std::move(message)};
}

size_t HttpReader::Feed(absl::string_view bytes) {
  CHECK(state_ == State::kHead || state_ == State::kBody) << "reader fed after its end";
  size_t used = 0;
  if (state_ == State::kHead) used = FeedHead(bytes);
  if (state_ == State::kBody) used += FeedBody(bytes.substr(used));
  return used;
}

size_t HttpReader::FeedHead(absl::string_view bytes) {
  // An empty line before the request line is tolerated, as RFC 9112 section 2.2 asks for.
  size_t skipped = 0;
  if (scanned_bytes_ == 0 && absl::StartsWith(bytes, "\r\n")) skipped = 2;
  bytes.remove_prefix(skipped);
  if (bytes.empty() || bytes == "\r") return skipped;
  if (!absl::ascii_isupper(static_cast<unsigned char>(bytes[0]))) {
    Refuse(400, "this port speaks HTTP/1.1; the request does not start with a method");
    return skipped;
  }
  const size_t from = scanned_bytes_ < 3 ? 0 : scanned_bytes_ - 3;
  const size_t end = bytes.find("\r\n\r\n", from);
  scanned_bytes_ = bytes.size();
  const size_t head_bytes = end == absl::string_view::npos ? bytes.size() : end + 4;
  if (static_cast<int64_t>(head_bytes) > options_.header_bytes_max) {
    Refuse(431, absl::StrCat("request line and headers are over the limit of ",
                             options_.header_bytes_max, " bytes"));
    return skipped;
  }
  if (end == absl::string_view::npos) return skipped;

  const absl::string_view head = bytes.substr(0, head_bytes);
  if (absl::StrContains(head, "\r\n ") || absl::StrContains(head, "\r\n\t")) {
    Refuse(400, "a header is folded over several lines");
    return skipped;
  }
  error_code error;
  parser_->put(boost::asio::const_buffer(head.data(), head.size()), error);
  if (error == http::error::body_limit) {
    Refuse(413, absl::StrCat("the body is over the limit of ", options_.body_bytes_max, " bytes"));
  } else if (error || !parser_->is_header_done()) {
    Refuse(400, absl::StrCat("the request is not well-formed HTTP: ", error.message()));
  } else {
    CheckHead();
  }
  return skipped + head_bytes;
}

void HttpReader::CheckHead() {
  HttpRequest& request = parser_->request;
  const auto count = [&](absl::string_view name) {
    return std::count_if(request.headers.begin(), request.headers.end(),
                         [&](const auto& header) { return header.first == name; });
  };
  request.keep_alive = parser_->keep_alive();
  if (request.http_1_1 && count("host") != 1) {
    return Refuse(400, "HTTP/1.1 needs exactly one Host header");
  }
  if (count("transfer-encoding") > 0 &&
      (!request.http_1_1 ||
       !absl::EqualsIgnoreCase(request.Header("transfer-encoding"), "chunked"))) {
    return Refuse(501, "Transfer-Encoding may only be \"chunked\", in HTTP/1.1");
  }
  // One length, said once: a list of equal lengths is legal and still not worth trusting.
  if (count("content-length") > 1 || absl::StrContains(request.Header("content-length"), ',')) {
    return Refuse(400, "Content-Length is given more than once");
  }
  if (count("content-encoding") > 0 &&
      !absl::EqualsIgnoreCase(request.Header("content-encoding"), "identity")) {
    return Refuse(415, "Content-Encoding is not supported; send the body as it is");
  }
  const absl::string_view expectation = request.Header("expect");
  if (!expectation.empty() && !absl::EqualsIgnoreCase(expectation, "100-continue")) {
    return Refuse(417, "Expect may only be \"100-continue\"");
  }
  SplitTarget();
  if (state_ == State::kRefused) return;
  state_ = parser_->is_done() ? State::kDone : State::kBody;
  expects_continue_ = state_ == State::kBody && request.http_1_1 && !expectation.empty();
}

void HttpReader::SplitTarget() {
  HttpRequest& request = parser_->request;
  absl::string_view target = parser_->target;
  if (absl::StartsWithIgnoreCase(target, "http://")) {
    target.remove_prefix(7);
    const size_t path_start = std::min(target.find('/'), target.size());
    target.remove_prefix(path_start);
    if (target.empty()) target = "/";
  }
  if (target == "*" && request.method == "OPTIONS") {
    request.path = "*";
    return;
  }
  if (!absl::StartsWith(target, "/")) {
    return Refuse(400, "the request target must be a path that starts with '/'");
  }
  const size_t path_end = std::min(target.find('?'), target.size());
  request.path = std::string(target.substr(0, path_end));
  if (path_end < target.size()) request.query = std::string(target.substr(path_end + 1));
}

size_t HttpReader::FeedBody(absl::string_view bytes) {
  size_t used = 0;
  while (used < bytes.size() && !parser_->is_done()) {
    error_code error;
    const size_t put =
        parser_->put(boost::asio::const_buffer(bytes.data() + used, bytes.size() - used), error);
    used += put;
    if (error == http::error::need_more) break;
    if (error == http::error::body_limit) {
      Refuse(413,
             absl::StrCat("the body is over the limit of ", options_.body_bytes_max, " bytes"));
      return used;
    }
    if (error) {
      Refuse(400, absl::StrCat("the body is not well-formed HTTP: ", error.message()));
      return used;
    }
  }
  if (parser_->is_done()) {
    state_ = State::kDone;
  } else if (static_cast<int64_t>(bytes.size() - used) > options_.header_bytes_max) {
    Refuse(400, absl::StrCat("a chunk's head or the trailer is over the limit of ",
                             options_.header_bytes_max, " bytes"));
  }
  return used;
}

}  // namespace glm::router
