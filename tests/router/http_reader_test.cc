#include "router/front/http_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "router/front/http_routes.h"

namespace glm::router {
namespace {

using State = HttpReader::State;
using testing::HasSubstr;

HttpOptions SmallLimits() {
  HttpOptions options;
  options.header_bytes_max = 1024;
  options.body_bytes_max = 1000;
  return options;
}

/// Feeds `bytes` in pieces of `step`, as a connection does. Returns what is left unread.
std::string FeedInSteps(HttpReader* reader, const std::string& bytes, size_t step) {
  std::string in;
  for (size_t at = 0; at < bytes.size(); at += step) {
    in += bytes.substr(at, step);
    if (reader->state() == State::kDone || reader->state() == State::kRefused) continue;
    in.erase(0, reader->Feed(in));
  }
  return in;
}

TEST(HttpReaderTest, ReadsTheSameInAnySteps) {
  const std::string plain =
      "POST /v1/completions?a=b HTTP/1.1\r\nHost: x\r\nX-Request-Id:  r1 \r\n"
      "Content-Length: 11\r\n\r\nhello world";
  const std::string chunked =
      "\r\nPOST /v1/completions?a=b HTTP/1.1\r\nHost: x\r\nX-Request-Id: r1\r\n"
      "Transfer-Encoding: chunked\r\n\r\n5;note=1\r\nhello\r\n6\r\n world\r\n0\r\n"
      "Host: trailer\r\n\r\n";
  const HttpOptions options = SmallLimits();
  for (const std::string& bytes : {plain, chunked}) {
    for (size_t step = 1; step <= bytes.size(); ++step) {
      HttpReader reader(options);
      const std::string rest = FeedInSteps(&reader, bytes + "NEXT", step);
      ASSERT_EQ(reader.state(), State::kDone) << bytes << " in steps of " << step;
      EXPECT_EQ(rest, "NEXT");
      EXPECT_EQ(reader.request().method, "POST");
      EXPECT_EQ(reader.request().path, "/v1/completions");
      EXPECT_EQ(reader.request().query, "a=b");
      EXPECT_EQ(reader.request().Header("x-request-id"), "r1");
      EXPECT_EQ(reader.request().Header("host"), "x");
      EXPECT_EQ(reader.request().body, "hello world");
      EXPECT_TRUE(reader.request().keep_alive);
    }
  }
}

TEST(HttpReaderTest, TellsKeepAlive) {
  const struct {
    std::string head;
    bool keep_alive;
  } kCases[] = {
      {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", true},
      {"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", false},
      {"GET / HTTP/1.0\r\n\r\n", false},
      {"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true},
  };
  const HttpOptions options;
  for (const auto& c : kCases) {
    HttpReader reader(options);
    reader.Feed(c.head);
    ASSERT_EQ(reader.state(), State::kDone) << c.head;
    EXPECT_EQ(reader.request().keep_alive, c.keep_alive) << c.head;
  }
}

TEST(HttpReaderTest, TakesAbsoluteTargets) {
  const HttpOptions options;
  HttpReader reader(options);
  reader.Feed("GET http://host:80/v1/models?x HTTP/1.1\r\nHost: host\r\n\r\n");
  ASSERT_EQ(reader.state(), State::kDone);
  EXPECT_EQ(reader.request().path, "/v1/models");
  EXPECT_EQ(reader.request().query, "x");
}

TEST(HttpReaderTest, RefusesWhatIsAmbiguousOrTooMuch) {
  const std::string post = "POST / HTTP/1.1\r\nHost: x\r\n";
  const struct {
    std::string bytes;
    int status;
    std::string message;
  } kCases[] = {
      {"\x16\x03\x01\x02", 400, "does not start with a method"},
      {"get / HTTP/1.1\r\n", 400, "does not start with a method"},
      {"GET\r\n\r\n", 400, "not well-formed"},
      {"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 400, "not well-formed"},
      {"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400, "not well-formed"},
      {"GET / HTTP/1.1\nHost: x\r\n\r\n", 400, "not well-formed"},
      {"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", 400, "not well-formed"},
      {"GET / HTTP/1.1\r\n\r\n", 400, "Host"},
      {"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, "Host"},
      {"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", 400, "folded"},
      {"GET v1 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "path"},
      {"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "path"},
      {post + "Content-Length: 5\r\nContent-Length: 6\r\n\r\n", 400, "not well-formed"},
      {post + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400, "more than once"},
      {post + "Content-Length: 5, 5\r\n\r\nhello", 400, "more than once"},
      {post + "Content-Length: -5\r\n\r\n", 400, "not well-formed"},
      {post + "Content-Length: +5\r\n\r\nhello", 400, "not well-formed"},
      {post + "Content-Length: 99999999999999999999\r\n\r\n", 400, "not well-formed"},
      {post + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "not well-formed"},
      {post + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", 400, "not well-formed"},
      {post + "Transfer-Encoding: gzip, chunked\r\n\r\n", 501, "chunked"},
      {post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n", 400, "well-formed"},
      {post + "Transfer-Encoding: xchunked\r\n\r\n", 501, "chunked"},
      {"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 501, "chunked"},
      {post + "Content-Encoding: gzip\r\nContent-Length: 1\r\n\r\n", 415, "Content-Encoding"},
      {post + "Expect: tea\r\nContent-Length: 1\r\n\r\n", 417, "Expect"},
      {post + "Content-Length: 1001\r\n\r\n", 413, "1000 bytes"},
      {post + "Transfer-Encoding: chunked\r\n\r\n3e9\r\n", 413, "1000 bytes"},
      {post + "Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "body is not well-formed"},
      {post + "Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX5\r\n", 400, "not well-formed"},
      {post + "Transfer-Encoding: chunked\r\n\r\n5;" + std::string(1100, 'a'), 400, "1024 bytes"},
      {"GET / HTTP/1.1\r\nHost: x\r\nA: " + std::string(1024, 'a'), 431, "1024 bytes"},
      {"GET /" + std::string(2000, 'a'), 431, "1024 bytes"},
  };
  const HttpOptions options = SmallLimits();
  for (const auto& c : kCases) {
    for (size_t step : {c.bytes.size(), size_t{1}}) {
      HttpReader reader(options);
      FeedInSteps(&reader, c.bytes, step);
      ASSERT_EQ(reader.state(), State::kRefused) << c.bytes << " in steps of " << step;
      EXPECT_EQ(reader.refusal().status, c.status) << c.bytes << reader.refusal().message;
      EXPECT_THAT(reader.refusal().message, HasSubstr(c.message)) << c.bytes;
    }
  }
}

TEST(HttpReaderTest, ManySmallHeadersCountTogether) {
  std::string head = "GET / HTTP/1.1\r\nHost: x\r\n";
  for (int i = 0; i < 300; ++i) absl::StrAppend(&head, "A", i, ": b\r\n");
  head += "\r\n";
  const HttpOptions options = SmallLimits();
  HttpReader reader(options);
  FeedInSteps(&reader, head, 10);
  ASSERT_EQ(reader.state(), State::kRefused);
  EXPECT_EQ(reader.refusal().status, 431);
}

TEST(HttpReaderTest, ExpectsContinueOnlyBeforeABody) {
  const HttpOptions options;
  HttpReader with_body(options);
  with_body.Feed("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n");
  EXPECT_EQ(with_body.state(), State::kBody);
  EXPECT_TRUE(with_body.expects_continue());
  HttpReader without(options);
  without.Feed("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n");
  EXPECT_EQ(without.state(), State::kDone);
  EXPECT_FALSE(without.expects_continue());
}

TEST(HttpRoutesTest, FindsExactAndLongerPaths) {
  HttpRoutes routes;
  const HttpRoute route = [](HttpCall) { return nullptr; };
  routes.Add("GET", "/v1/models", route);
  routes.Add("GET", "/v1/models/*", route);
  routes.Add("POST", "/v1/chat", route);

  EXPECT_NE(routes.Find("GET", "/v1/models").route, nullptr);
  EXPECT_NE(routes.Find("HEAD", "/v1/models").route, nullptr);
  EXPECT_EQ(routes.Find("GET", "/v1/models/org%2FGLM/x").rest, "org/GLM/x");
  EXPECT_EQ(routes.Find("GET", "/v1/models/").allow, "");
  EXPECT_EQ(routes.Find("GET", "/v1/models/%zz").allow, "");
  EXPECT_EQ(routes.Find("GET", "/v1/models/%2").allow, "");
  EXPECT_EQ(routes.Find("GET", "/v1/chat").route, nullptr);
  EXPECT_EQ(routes.Find("GET", "/v1/chat").allow, "POST, OPTIONS");
  EXPECT_EQ(routes.Find("POST", "/v1/models").allow, "GET, HEAD, OPTIONS");
  EXPECT_EQ(routes.Find("GET", "//v1/models").allow, "");
  EXPECT_EQ(routes.Find("GET", "/V1/models").allow, "");
}

}  // namespace
}  // namespace glm::router
