// Clients of a router that cost little: many short requests on kept connections, and many open
// streams of which only the events are counted.
//
// Who calls: the router benchmark, on its thread; everything runs on the io_context given.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace glm::bench {

/// Seconds, in no order.
class Sample {
 public:
  void Add(double seconds) { seconds_.push_back(seconds); }
  size_t count() const { return seconds_.size(); }
  double Quantile(double share);  // 0 when there is none
  double Mean() const;

 private:
  std::vector<double> seconds_;
};

struct ShortLoad {
  int32_t port = 0;
  std::vector<std::string> requests;  // whole HTTP requests, taken by turns
  int32_t connections = 1;
  double rate = 0;  // requests a second at even times; 0: the next as soon as one is answered
  double seconds = 1;
};

struct ShortResult {
  int64_t answers = 0;
  int64_t errors = 0;  // connections lost, and statuses other than 200
  double seconds = 0;
  Sample latency;  // from the time at which a request was due
};

/// REQUIRES that nothing else runs on this thread.
ShortResult RunShortLoad(const ShortLoad& load);

/// A whole HTTP/1.1 request.
std::string PostRequest(const std::string& target, const std::string& body);

/// Streams that stay open; times of their events.
class StreamLoad {
 public:
  /// Opens `count` streams by `request` one after the other, `at_once` at a time.
  StreamLoad(int32_t port, std::string request, int32_t count, int32_t at_once);
  ~StreamLoad();

  /// Runs until each stream has had an event; false after `seconds`, or when one ended.
  bool Open(double seconds);
  /// Runs for `seconds`; counts what comes from now on.
  void Measure(double seconds);

  int64_t events() const { return events_; }  // of the last Measure
  Sample& gaps() { return gaps_; }            // between the events of one stream; one of 16 streams
  int32_t ended() const { return ended_; }    // streams that did not stay open

 private:
  class Stream;

  void OpenNext();

  boost::asio::io_context loop_;
  const boost::asio::ip::tcp::endpoint endpoint_;
  const std::string request_;
  const int32_t count_;
  std::vector<std::shared_ptr<Stream>> streams_;
  int32_t opened_ = 0;
  int32_t ended_ = 0;
  bool measuring_ = false;
  int64_t events_ = 0;
  Sample gaps_;
};

}  // namespace glm::bench
