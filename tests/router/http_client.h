// A plain blocking HTTP client for tests: sends bytes exactly as given, reads replies one by one.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "proto/base/log.h"

namespace glm::router {

struct HttpAnswered {
  int status = 0;                              // 0: the server closed before a whole head came
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;                            // of chunks: joined
  bool whole = false;                          // the body ended as announced
};

class HttpClient {
 public:
  /// A reply that takes longer than this fails its test.
  static constexpr int kWaitSeconds = 20;

  explicit HttpClient(int32_t port, int receive_buffer_bytes = 0) {
    fd_ = ::socket(AF_INET, SOCK_STREAM, 0);
    if (receive_buffer_bytes > 0) {
      ::setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer_bytes, sizeof(receive_buffer_bytes));
    }
    const timeval wait{kWaitSeconds, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait));
    const int on = 1;
    ::setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK_EQ(::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;
  ~HttpClient() { Close(); }

  void Close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }

  /// False when the server has closed.
  bool Send(const std::string& bytes) {
    size_t sent = 0;
    while (sent < bytes.size()) {
      const ssize_t n = ::send(fd_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
      if (n <= 0) return false;
      sent += static_cast<size_t>(n);
    }
    return true;
  }

  HttpAnswered Get(const std::string& path, const std::string& headers = "") {
    Send(absl::StrCat("GET ", path, " HTTP/1.1\r\nHost: test\r\n", headers, "\r\n"));
    return Read();
  }

  void SendPost(const std::string& path, const std::string& body, const std::string& headers = "") {
    Send(absl::StrCat("POST ", path,
                      " HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
                      "Content-Length: ",
                      body.size(), "\r\n", headers, "\r\n", body));
  }

  HttpAnswered Post(const std::string& path, const std::string& body,
                    const std::string& headers = "") {
    SendPost(path, body, headers);
    return Read();
  }

  /// One whole reply; "100 Continue" counts as one.
  HttpAnswered Read(bool head_only = false) {
    HttpAnswered answered = ReadHead();
    if (answered.status == 0) return answered;
    if (head_only || answered.status == 204 || answered.status == 100) {
      answered.whole = true;
    } else if (answered.headers.count("content-length") > 0) {
      const size_t length = std::strtoull(answered.headers["content-length"].c_str(), nullptr, 10);
      while (in_.size() < length && Receive()) {
      }
      answered.whole = in_.size() >= length;
      answered.body = Take(length);
    } else if (answered.headers.count("transfer-encoding") > 0) {
      for (;;) {
        std::string chunk;
        if (!ReadChunk(&chunk)) return answered;
        if (chunk.empty()) break;
        answered.body += chunk;
      }
      answered.whole = true;
    } else {
      while (Receive()) {
      }
      answered.body = Take(in_.size());
      answered.whole = true;
    }
    return answered;
  }

  HttpAnswered ReadHead() {
    HttpAnswered answered;
    size_t end;
    while ((end = in_.find("\r\n\r\n")) == std::string::npos) {
      if (!Receive()) return answered;
    }
    const std::string head = Take(end + 4);
    CHECK_EQ(head.compare(0, 9, "HTTP/1.1 "), 0) << head;
    answered.status = std::atoi(head.c_str() + 9);
    size_t line = head.find("\r\n") + 2;
    while (line + 2 < head.size()) {
      const size_t line_end = head.find("\r\n", line);
      const size_t colon = head.find(':', line);
      CHECK(colon < line_end) << head;
      answered.headers[absl::AsciiStrToLower(head.substr(line, colon - line))] =
          std::string(absl::StripAsciiWhitespace(head.substr(colon + 1, line_end - colon - 1)));
      line = line_end + 2;
    }
    return answered;
  }

  /// The next chunk; empty for the last. False when the server closed first.
  bool ReadChunk(std::string* chunk) {
    size_t end;
    while ((end = in_.find("\r\n")) == std::string::npos) {
      if (!Receive()) return false;
    }
    const size_t length = std::strtoull(Take(end + 2).c_str(), nullptr, 16);
    while (in_.size() < length + 2) {
      if (!Receive()) return false;
    }
    *chunk = Take(length);
    Take(2);
    return true;
  }

  /// Whether the server closes, with nothing more to read.
  bool ReadsEnd() { return in_.empty() && !Receive() && in_.empty(); }

 private:
  bool Receive() {
    char bytes[16 << 10];
    const ssize_t n = ::recv(fd_, bytes, sizeof(bytes), 0);
    CHECK(n >= 0 || (errno != EAGAIN && errno != EWOULDBLOCK))
        << "the server has sent nothing for " << kWaitSeconds << " s";
    if (n <= 0) return false;
    in_.append(bytes, static_cast<size_t>(n));
    return true;
  }

  std::string Take(size_t bytes) {
    bytes = std::min(bytes, in_.size());
    std::string taken = in_.substr(0, bytes);
    in_.erase(0, bytes);
    return taken;
  }

  int fd_ = -1;
  std::string in_;
};

}  // namespace glm::router
