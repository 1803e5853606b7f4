#include "bench/router_clients.h"

#include <algorithm>
#include <array>
#include <boost/asio/read.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <cstring>
#include <deque>
#include <memory>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"

namespace glm::bench {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using Clock = std::chrono::steady_clock;
using Error = boost::system::error_code;

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

Clock::duration InSeconds(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

tcp::endpoint Loopback(int32_t port) {
  return {asio::ip::address_v4::loopback(), static_cast<uint16_t>(port)};
}

/// Requests one by one on one connection.
class ShortClient {
 public:
  /// `done(ok)` after each answer.
  ShortClient(asio::io_context& loop, const tcp::endpoint& endpoint, std::function<void(bool)> done)
      : socket_(loop), endpoint_(endpoint), done_(std::move(done)) {}

  void Send(const std::string& request) {
    request_ = &request;
    if (socket_.is_open()) return Write();
    socket_.async_connect(endpoint_, [this](Error error) {
      if (error) return Fail();
      socket_.set_option(tcp::no_delay(true));
      Write();
    });
  }

 private:
  void Write() {
    asio::async_write(socket_, asio::buffer(*request_), [this](Error error, size_t) {
      if (error) return Fail();
      ReadHeader();
    });
  }

  void ReadHeader() {
    asio::async_read_until(
        socket_, asio::dynamic_buffer(text_), "\r\n\r\n", [this](Error error, size_t end) {
          if (error) return Fail();
          const std::string_view header(text_.data(), end);
          const bool ok = header.substr(0, 12) == "HTTP/1.1 200";
          size_t at = header.find("Content-Length: ");
          if (at == std::string_view::npos) at = header.find("content-length: ");
          if (at == std::string_view::npos) return Fail();
          const size_t size = end + static_cast<size_t>(std::atoll(text_.c_str() + at + 16));
          ReadBody(size, ok);
        });
  }

  void ReadBody(size_t size, bool ok) {
    const size_t missing = size > text_.size() ? size - text_.size() : 0;
    asio::async_read(socket_, asio::dynamic_buffer(text_), asio::transfer_exactly(missing),
                     [this, size, ok](Error error, size_t) {
                       if (error) return Fail();
                       text_.erase(0, size);
                       done_(ok);
                     });
  }

  void Fail() {
    Error ignored;
    socket_.close(ignored);
    text_.clear();
    done_(false);
  }

  tcp::socket socket_;
  const tcp::endpoint endpoint_;
  const std::function<void(bool)> done_;
  const std::string* request_ = nullptr;
  std::string text_;
};

class ShortGenerator {
 public:
  explicit ShortGenerator(const ShortLoad& load) : load_(load), timer_(loop_) {
    for (int32_t i = 0; i < load.connections; ++i) {
      clients_.push_back(std::make_unique<ShortClient>(
          loop_, Loopback(load.port), [this, i](bool ok) { Done(static_cast<size_t>(i), ok); }));
      idle_.push_back(static_cast<size_t>(i));
    }
    due_.resize(clients_.size());
  }

  ShortResult Run() {
    begin_ = Clock::now();
    end_ = begin_ + InSeconds(load_.seconds);
    SendDue();
    loop_.run();
    result_.seconds = Seconds(Clock::now() - begin_);
    return std::move(result_);
  }

 private:
  /// When request `number` is due; now, where there is no rate.
  Clock::time_point DueAt(int64_t number) const {
    if (load_.rate == 0) return Clock::now();
    return begin_ + InSeconds(static_cast<double>(number) / load_.rate);
  }

  void SendDue() {
    while (!idle_.empty()) {
      const Clock::time_point due = DueAt(sent_);
      if (due >= end_) return;
      if (due > Clock::now()) {
        timer_.expires_at(due);
        timer_.async_wait([this](Error error) {
          if (!error) SendDue();
        });
        return;
      }
      const size_t client = idle_.front();
      idle_.pop_front();
      due_[client] = due;
      clients_[client]->Send(load_.requests[static_cast<size_t>(sent_++) % load_.requests.size()]);
    }
  }

  void Done(size_t client, bool ok) {
    if (ok) {
      ++result_.answers;
      result_.latency.Add(Seconds(Clock::now() - due_[client]));
    } else if (++result_.errors > kErrorsMax) {
      return;
    }
    idle_.push_back(client);
    SendDue();
  }

  static constexpr int64_t kErrorsMax = 1000;

  const ShortLoad& load_;
  asio::io_context loop_;
  asio::steady_timer timer_;
  std::vector<std::unique_ptr<ShortClient>> clients_;
  std::deque<size_t> idle_;
  std::vector<Clock::time_point> due_;
  Clock::time_point begin_;
  Clock::time_point end_;
  int64_t sent_ = 0;
  ShortResult result_;
};

}  // namespace

double Sample::Quantile(double share) {
  if (seconds_.empty()) return 0;
  const auto at = static_cast<int64_t>(share * static_cast<double>(seconds_.size() - 1));
  std::nth_element(seconds_.begin(), seconds_.begin() + at, seconds_.end());
  return seconds_[static_cast<size_t>(at)];
}

double Sample::Mean() const {
  double sum = 0;
  for (const double one : seconds_) sum += one;
  return seconds_.empty() ? 0 : sum / static_cast<double>(seconds_.size());
}

ShortResult RunShortLoad(const ShortLoad& load) { return ShortGenerator(load).Run(); }

std::string PostRequest(const std::string& target, const std::string& body) {
  return absl::StrCat("POST ", target, " HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: ",
                      "application/json\r\nContent-Length: ", body.size(), "\r\n\r\n", body);
}

/// Counts the marks "data: " in what comes; what else is in the bytes does not matter.
class StreamLoad::Stream : public std::enable_shared_from_this<Stream> {
 public:
  Stream(StreamLoad* load, bool is_timed)
      : load_(load), is_timed_(is_timed), socket_(load->loop_) {}

  void Start() {
    socket_.async_connect(load_->endpoint_, [self = shared_from_this()](Error error) {
      if (error) return self->End();
      asio::async_write(self->socket_, asio::buffer(self->load_->request_),
                        [self](Error failed, size_t) {
                          if (failed) return self->End();
                          self->Read();
                        });
    });
  }
  void Close() {
    Error ignored;
    load_ = nullptr;
    socket_.close(ignored);
  }

 private:
  void Read() {
    socket_.async_read_some(asio::buffer(bytes_),
                            [self = shared_from_this()](Error error, size_t n) {
                              if (self->load_ == nullptr) return;
                              if (error) return self->End();
                              self->Take(std::string_view(self->bytes_.data(), n));
                              self->Read();
                            });
  }

  void Take(std::string_view bytes) {
    constexpr std::string_view kMark = "data: ";
    int32_t events = 0;
    for (const char byte : bytes) {
      matched_ = byte == kMark[matched_] ? matched_ + 1 : (byte == kMark[0] ? 1 : 0);
      if (matched_ < kMark.size()) continue;
      matched_ = 0;
      ++events;
    }
    if (events == 0) return;
    if (!std::exchange(has_events_, true)) {
      ++load_->opened_;
      load_->OpenNext();
    }
    if (load_->measuring_) load_->events_ += events;
    if (!is_timed_) return;
    const Clock::time_point now = Clock::now();
    if (load_->measuring_ && last_ != Clock::time_point()) load_->gaps_.Add(Seconds(now - last_));
    last_ = now;
  }

  void End() {
    if (load_ == nullptr) return;
    ++load_->ended_;
    load_->OpenNext();
  }

  StreamLoad* load_;
  const bool is_timed_;
  tcp::socket socket_;
  std::array<char, 4096> bytes_;
  size_t matched_ = 0;
  bool has_events_ = false;
  Clock::time_point last_{};
};

StreamLoad::StreamLoad(int32_t port, std::string request, int32_t count, int32_t at_once)
    : endpoint_(Loopback(port)), request_(std::move(request)), count_(count) {
  for (int32_t i = 0; i < std::min(count, at_once); ++i) OpenNext();
}

StreamLoad::~StreamLoad() {
  for (const std::shared_ptr<Stream>& stream : streams_) stream->Close();
  loop_.restart();
  loop_.run();
}

void StreamLoad::OpenNext() {
  if (static_cast<int32_t>(streams_.size()) >= count_) return;
  streams_.push_back(std::make_shared<Stream>(this, streams_.size() % 16 == 0));
  streams_.back()->Start();
}

bool StreamLoad::Open(double seconds) {
  const Clock::time_point end = Clock::now() + InSeconds(seconds);
  while (opened_ < count_ && ended_ == 0 && Clock::now() < end) {
    loop_.run_for(std::chrono::milliseconds(20));
  }
  return opened_ == count_ && ended_ == 0;
}

void StreamLoad::Measure(double seconds) {
  measuring_ = true;
  events_ = 0;
  gaps_ = {};
  loop_.run_for(InSeconds(seconds));
  measuring_ = false;
}

}  // namespace glm::bench
