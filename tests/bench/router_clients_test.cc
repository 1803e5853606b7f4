#include "bench/router_clients.h"

#include <gtest/gtest.h>

#include <boost/asio/read_until.hpp>
#include <boost/asio/write.hpp>
#include <string>
#include <thread>
#include <vector>

namespace glm::bench {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;

/// Takes one connection after the other and hands it to `serve`.
template <typename Serve>
class Server {
 public:
  Server(int32_t connections, Serve serve)
      : acceptor_(loop_, {asio::ip::address_v4::loopback(), 0}),
        thread_([this, connections, serve] {
          for (int32_t i = 0; i < connections; ++i) {
            tcp::socket socket(loop_);
            acceptor_.accept(socket);
            serve(socket);
          }
        }) {}
  ~Server() { thread_.join(); }
  int32_t port() const { return acceptor_.local_endpoint().port(); }

 private:
  asio::io_context loop_;
  tcp::acceptor acceptor_;
  std::thread thread_;
};

void Write(tcp::socket& socket, const std::string& text) {
  boost::system::error_code ignored;
  asio::write(socket, asio::buffer(text), ignored);
}

TEST(RouterClientsTest, ShortRequestsAreCountedByTheirStatus) {
  const Server server(1, [](tcp::socket& socket) {
    std::string text;
    boost::system::error_code error;
    for (int i = 0;; ++i) {
      asio::read_until(socket, asio::dynamic_buffer(text), "\r\n\r\n{}", error);
      if (error) return;
      text.clear();
      Write(socket, i % 4 == 3 ? "HTTP/1.1 429 No\r\nContent-Length: 0\r\n\r\n"
                               : "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
    }
  });
  ShortResult result = RunShortLoad({.port = server.port(),
                                     .requests = {PostRequest("/v1/completions", "{}")},
                                     .connections = 1,
                                     .rate = 200,
                                     .seconds = 0.2});
  EXPECT_EQ(result.answers, 30);
  EXPECT_EQ(result.errors, 10);
  EXPECT_GT(result.latency.Quantile(0.5), 0);
}

TEST(RouterClientsTest, EventsAreCountedHoweverTheyAreCut) {
  // "dadata: " has a mark behind the beginning of one.
  const std::string head = "HTTP/1.1 200 OK\r\n\r\ndata: {}\n\n";
  const std::vector<std::string> parts = {"da", "ta: {}\n\ndata", ": {}\n\n",
                                          "data: {\"dadata: \"}"};
  const Server server(1, [&](tcp::socket& socket) {
    Write(socket, head);
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    for (const std::string& part : parts) Write(socket, part);
    char byte = 0;
    boost::system::error_code error;
    while (!error) socket.read_some(asio::buffer(&byte, 1), error);  // until the client leaves
  });
  StreamLoad load(server.port(), PostRequest("/", "{}"), 1, 1);
  ASSERT_TRUE(load.Open(10));
  load.Measure(1.0);
  EXPECT_EQ(load.events(), 4);
  EXPECT_EQ(load.ended(), 0);
}

TEST(RouterClientsTest, AStreamThatEndsIsSeen) {
  const Server server(1, [](tcp::socket& socket) { Write(socket, "HTTP/1.1 503 No\r\n\r\n"); });
  StreamLoad load(server.port(), PostRequest("/", "{}"), 1, 1);
  EXPECT_FALSE(load.Open(10));
  EXPECT_EQ(load.ended(), 1);
}

TEST(RouterClientsTest, Quantiles) {
  Sample sample;
  EXPECT_EQ(sample.Quantile(0.5), 0);
  for (int i = 100; i >= 0; --i) sample.Add(i);
  EXPECT_EQ(sample.Quantile(0.5), 50);
  EXPECT_EQ(sample.Quantile(0.99), 99);
  EXPECT_EQ(sample.Mean(), 50);
}

}  // namespace
}  // namespace glm::bench
