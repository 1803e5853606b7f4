#include "router/front/http.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "router/metrics.h"
#include "router/thread_loop.h"
#include "tests/router/http_client.h"

namespace glm::router {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

constexpr std::chrono::seconds kWait(HttpClient::kWaitSeconds);

/// An answer that is under way: what the test writes to, and a sign when it is destroyed.
struct OpenStream {
  ThreadLoop* loop = nullptr;
  HttpReply* reply = nullptr;
  std::future<void> destroyed;
};

class StreamAnswer final : public HttpAnswer {
 public:
  explicit StreamAnswer(std::promise<void> destroyed) : destroyed_(std::move(destroyed)) {}
  ~StreamAnswer() override { destroyed_.set_value(); }

 private:
  std::promise<void> destroyed_;
};

class HttpTest : public testing::Test {
 protected:
  void StartServer(HttpOptions options = {}) {
    options.host = "127.0.0.1";
    options.port = 0;
    HttpRoutes routes;
    routes.Add("GET", "/hello", [](HttpCall call) -> std::unique_ptr<HttpAnswer> {
      call.reply->Send(200, "text/plain", "hello");
      return nullptr;
    });
    routes.Add("POST", "/echo", [](HttpCall call) -> std::unique_ptr<HttpAnswer> {
      call.reply->Send(200, "text/plain", call.request.body);
      return nullptr;
    });
    routes.Add("GET", "/item/*", [](HttpCall call) -> std::unique_ptr<HttpAnswer> {
      call.reply->Send(200, "text/plain", call.rest, {{"X-Extra", "1"}});
      return nullptr;
    });
    routes.Add("POST", "/stream", [this](HttpCall call) -> std::unique_ptr<HttpAnswer> {
      call.reply->StartStream("text/event-stream");
      return Open(call);
    });
    routes.Add("POST", "/later", [this](HttpCall call) { return Open(call); });
    server_ = std::make_unique<HttpServer>(
        options, std::move(routes),
        [](int status, absl::string_view message) {
          return absl::StrCat("{\"status\":", status, ",\"message\":\"", message, "\"}");
        },
        &loops_, &metrics_);
    ASSERT_TRUE(server_->Start().ok());
  }

  /// Runs on the connection's loop.
  std::unique_ptr<HttpAnswer> Open(const HttpCall& call) {
    std::promise<void> destroyed;
    OpenStream opened{call.loop, call.reply, destroyed.get_future()};
    auto answer = std::make_unique<StreamAnswer>(std::move(destroyed));
    opened_.set_value(std::move(opened));
    return answer;
  }

  /// The answer that the route of /stream or /later has just made.
  OpenStream TakeOpened() {
    std::future<OpenStream> future = opened_.get_future();
    CHECK(future.wait_for(kWait) == std::future_status::ready) << "no request arrived";
    OpenStream opened = future.get();
    opened_ = {};
    return opened;
  }

  static void ExpectDestroyed(OpenStream& opened) {
    EXPECT_EQ(opened.destroyed.wait_for(kWait), std::future_status::ready);
  }

  LoopPool loops_{2};
  RouterMetrics metrics_;
  std::promise<OpenStream> opened_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpTest, AnswersOneRequestAfterAnotherOnOneConnection) {
  StartServer();
  HttpClient client(server_->port());
  for (int i = 0; i < 3; ++i) {
    const HttpAnswered answered = client.Get("/hello");
    EXPECT_EQ(answered.status, 200);
    EXPECT_EQ(answered.body, "hello");
    EXPECT_EQ(answered.headers.at("content-type"), "text/plain");
    EXPECT_EQ(answered.headers.count("connection"), 0u);
    EXPECT_EQ(answered.headers.count("date"), 1u);
  }
  const HttpAnswered last = client.Get("/hello", "Connection: close\r\n");
  EXPECT_EQ(last.headers.at("connection"), "close");
  EXPECT_TRUE(client.ReadsEnd());
}

TEST_F(HttpTest, AnswersPipelinedRequestsInOrder) {
  StartServer();
  HttpClient client(server_->port());
  std::string requests;
  for (int i = 0; i < 200; ++i) {
    absl::StrAppend(&requests, "GET /item/", i, " HTTP/1.1\r\nHost: x\r\n\r\n");
  }
  ASSERT_TRUE(client.Send(requests));
  for (int i = 0; i < 200; ++i) EXPECT_EQ(client.Read().body, std::to_string(i));
}

TEST_F(HttpTest, AnswersAPipelinedRequestOnlyAfterTheStreamBeforeIt) {
  StartServer();
  HttpClient client(server_->port());
  client.SendPost("/stream", "");
  ASSERT_TRUE(client.Send("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"));
  OpenStream opened = TakeOpened();
  opened.loop->Run([&] {
    opened.reply->Write("one");
    opened.reply->Write("two");
  });
  opened.loop->Run([&] { opened.reply->EndStream(); });
  const HttpAnswered stream = client.Read();
  EXPECT_EQ(stream.body, "onetwo");
  EXPECT_TRUE(stream.whole);
  EXPECT_EQ(client.Read().body, "hello");
  ExpectDestroyed(opened);
}

TEST_F(HttpTest, ReadsABodyThatComesByteByByte) {
  StartServer();
  HttpClient client(server_->port());
  const std::string request =
      "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
      "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
  for (char c : request) ASSERT_TRUE(client.Send(std::string(1, c)));
  EXPECT_EQ(client.Read().body, "abcde");
}

TEST_F(HttpTest, ReadsALongBody) {
  StartServer();
  HttpClient client(server_->port());
  const std::string body(3 << 20, 'x');
  EXPECT_TRUE(client.Post("/echo", body).body == body);
}

TEST_F(HttpTest, SendsContinueWhenAskedTo) {
  StartServer();
  HttpClient client(server_->port());
  ASSERT_TRUE(
      client.Send("POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
                  "Content-Length: 4\r\n\r\n"));
  EXPECT_EQ(client.Read().status, 100);
  ASSERT_TRUE(client.Send("body"));
  EXPECT_EQ(client.Read().body, "body");
}

TEST_F(HttpTest, RefusesWhatIsOverItsLimitAndCloses) {
  HttpOptions options;
  options.body_bytes_max = 1 << 20;
  options.header_bytes_max = 4096;
  StartServer(options);
  {
    HttpClient client(server_->port());
    client.SendPost("/echo", std::string(2 << 20, 'x'));
    const HttpAnswered answered = client.Read();
    EXPECT_EQ(answered.status, 413);
    EXPECT_THAT(answered.body, HasSubstr("1048576 bytes"));
    EXPECT_EQ(answered.headers.at("connection"), "close");
  }
  {
    HttpClient client(server_->port());
    EXPECT_EQ(client.Get("/hello", "A: " + std::string(5000, 'a') + "\r\n").status, 431);
    EXPECT_TRUE(client.ReadsEnd());
  }
  HttpClient client(server_->port());
  EXPECT_EQ(client.Get("/hello").status, 200);
}

TEST_F(HttpTest, RefusesGarbage) {
  StartServer();
  for (const std::string& bytes :
       {std::string("\x16\x03\x01\x00\x00", 5), std::string("SSH-2.0-x\r\n\r\n"),
        std::string("GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n")}) {
    HttpClient client(server_->port());
    ASSERT_TRUE(client.Send(bytes));
    EXPECT_EQ(client.Read().status, 400) << bytes;
    EXPECT_TRUE(client.ReadsEnd());
  }
}

TEST_F(HttpTest, OutlivesClientsThatLeaveAnywhere) {
  StartServer();
  const std::string request = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody";
  for (size_t length = 0; length <= request.size(); ++length) {
    HttpClient client(server_->port());
    ASSERT_TRUE(client.Send(request.substr(0, length)));
  }
  HttpClient client(server_->port());
  EXPECT_EQ(client.Get("/hello").status, 200);
}

TEST_F(HttpTest, NamesPathsAndMethodsItDoesNotHave) {
  StartServer();
  HttpClient client(server_->port());
  const HttpAnswered missing = client.Get("/nothing");
  EXPECT_EQ(missing.status, 404);
  EXPECT_THAT(missing.body, HasSubstr("/nothing"));
  const HttpAnswered wrong = client.Post("/hello", "x");
  EXPECT_EQ(wrong.status, 405);
  EXPECT_EQ(wrong.headers.at("allow"), "GET, HEAD, OPTIONS");
  EXPECT_EQ(client.Get("/item/a%2Fb").body, "a/b");
}

TEST_F(HttpTest, AnswersHeadAndOptions) {
  StartServer();
  HttpClient client(server_->port());
  ASSERT_TRUE(client.Send("HEAD /hello HTTP/1.1\r\nHost: x\r\n\r\n"));
  const HttpAnswered head = client.Read(/*head_only=*/true);
  EXPECT_EQ(head.status, 200);
  EXPECT_EQ(head.headers.at("content-length"), "5");
  ASSERT_TRUE(client.Send("OPTIONS /hello HTTP/1.1\r\nHost: x\r\n\r\n"));
  const HttpAnswered options = client.Read();
  EXPECT_EQ(options.status, 204);
  EXPECT_EQ(options.headers.at("allow"), "GET, HEAD, OPTIONS");
  EXPECT_EQ(options.headers.count("access-control-allow-origin"), 0u);
  ASSERT_TRUE(client.Send("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n"));
  EXPECT_EQ(client.Read().status, 204);
}

TEST_F(HttpTest, NamesTheOriginThatMayCall) {
  HttpOptions options;
  options.cors_origin = "https://chat.example";
  StartServer(options);
  HttpClient client(server_->port());
  EXPECT_EQ(client.Get("/hello").headers.at("access-control-allow-origin"), "https://chat.example");
  ASSERT_TRUE(client.Send("OPTIONS /hello HTTP/1.1\r\nHost: x\r\n\r\n"));
  EXPECT_THAT(client.Read().headers.at("access-control-allow-headers"), HasSubstr("Authorization"));
}

TEST_F(HttpTest, KeepsSaneRequestIdsAndMakesOthers) {
  StartServer();
  HttpClient client(server_->port());
  EXPECT_EQ(client.Get("/hello", "X-Request-Id: abc-1.2:3\r\n").headers.at("x-request-id"),
            "abc-1.2:3");
  const std::string made = client.Get("/hello").headers.at("x-request-id");
  EXPECT_THAT(made, testing::StartsWith("req-"));
  EXPECT_NE(client.Get("/hello").headers.at("x-request-id"), made);
  EXPECT_THAT(client.Get("/nothing", "X-Request-Id: <b>\r\n").headers.at("x-request-id"),
              testing::StartsWith("req-"));
}

TEST_F(HttpTest, DestroysTheAnswerOfAClientThatLeaves) {
  StartServer();
  for (const std::string path : {"/stream", "/later"}) {
    auto client = std::make_unique<HttpClient>(server_->port());
    client->SendPost(path, "");
    OpenStream opened = TakeOpened();
    if (path == "/stream") {
      std::string chunk;
      opened.loop->Run([&] { opened.reply->Write("one"); });
      client->ReadHead();
      ASSERT_TRUE(client->ReadChunk(&chunk));
      EXPECT_EQ(chunk, "one");
    }
    client.reset();
    ExpectDestroyed(opened);
  }
}

TEST_F(HttpTest, GivesUpAClientThatDoesNotRead) {
  HttpOptions options;
  options.output_bytes_max = 1 << 20;
  StartServer(options);
  HttpClient client(server_->port(), /*receive_buffer_bytes=*/4096);
  client.SendPost("/stream", "");
  OpenStream opened = TakeOpened();
  const std::string piece(64 << 10, 'x');
  // The kernel's own buffers take some megabytes before ours fills.
  bool destroyed = false;
  for (int i = 0; i < 4096 && !destroyed; ++i) {
    opened.loop->Run([&] {
      destroyed = opened.destroyed.wait_for(milliseconds(0)) == std::future_status::ready;
      if (!destroyed) opened.reply->Write(piece);
    });
  }
  EXPECT_TRUE(destroyed);
}

TEST_F(HttpTest, GivesUpAClientThatTakesNothingForTooLong) {
  HttpOptions options;
  options.write_timeout_s = 1;
  options.output_bytes_max = 64 << 20;
  StartServer(options);
  HttpClient client(server_->port(), /*receive_buffer_bytes=*/4096);
  client.SendPost("/stream", "");
  OpenStream opened = TakeOpened();
  opened.loop->Run([&] { opened.reply->Write(std::string(32 << 20, 'x')); });
  ExpectDestroyed(opened);
}

TEST_F(HttpTest, RefusesARequestThatTakesTooLongAndClosesIdleConnections) {
  HttpOptions options;
  options.read_timeout_s = 1;
  options.idle_timeout_s = 1;
  StartServer(options);
  HttpClient idle(server_->port());
  HttpClient slow_head(server_->port());
  HttpClient slow_body(server_->port());
  ASSERT_TRUE(slow_head.Send("GET /hello HT"));
  ASSERT_TRUE(slow_body.Send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbo"));
  EXPECT_EQ(slow_head.Read().status, 408);
  EXPECT_EQ(slow_body.Read().status, 408);
  EXPECT_TRUE(slow_head.ReadsEnd());
  EXPECT_TRUE(idle.ReadsEnd());
}

TEST_F(HttpTest, TurnsAwayConnectionsOverTheLimit) {
  HttpOptions options;
  options.connections_max = 1;
  StartServer(options);
  auto first = std::make_unique<HttpClient>(server_->port());
  EXPECT_EQ(first->Get("/hello").status, 200);
  {
    HttpClient second(server_->port());
    EXPECT_EQ(second.Read().status, 503);
    EXPECT_TRUE(second.ReadsEnd());
  }
  EXPECT_EQ(first->Get("/hello").status, 200);
  first->Send("GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  EXPECT_EQ(first->Read().status, 200);
  EXPECT_TRUE(first->ReadsEnd());
  first.reset();
  // The place is free again as soon as the server has seen the close.
  for (;;) {
    HttpClient third(server_->port());
    third.Send("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n");
    const int status = third.Read().status;
    if (status == 200) break;
    ASSERT_TRUE(status == 503 || status == 0) << status;
  }
}

TEST_F(HttpTest, EndsAStreamToHttp10ByClosing) {
  StartServer();
  HttpClient client(server_->port());
  ASSERT_TRUE(client.Send("POST /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"));
  OpenStream opened = TakeOpened();
  opened.loop->Run([&] {
    opened.reply->Write("one");
    opened.reply->Write("two");
    opened.reply->EndStream();
  });
  const HttpAnswered answered = client.Read();
  EXPECT_EQ(answered.headers.count("transfer-encoding"), 0u);
  EXPECT_EQ(answered.headers.at("connection"), "close");
  EXPECT_EQ(answered.body, "onetwo");
}

TEST_F(HttpTest, DrainLetsRequestsFinishAndClosesTheRest) {
  StartServer();
  HttpClient idle(server_->port());
  EXPECT_EQ(idle.Get("/hello").status, 200);
  HttpClient streaming(server_->port());
  streaming.SendPost("/stream", "");
  OpenStream stream = TakeOpened();
  HttpClient waiting(server_->port());
  waiting.SendPost("/later", "");
  OpenStream later = TakeOpened();

  std::thread drain([&] { server_->Drain(kWait); });
  EXPECT_TRUE(idle.ReadsEnd());
  stream.loop->Run([&] {
    stream.reply->Write("last");
    stream.reply->EndStream();
  });
  later.loop->Run([&] { later.reply->Send(200, "text/plain", "done"); });
  EXPECT_EQ(streaming.Read().body, "last");
  const HttpAnswered answered = waiting.Read();
  EXPECT_EQ(answered.body, "done");
  EXPECT_EQ(answered.headers.at("connection"), "close");
  EXPECT_TRUE(streaming.ReadsEnd());
  streaming.Close();
  waiting.Close();
  drain.join();
  ExpectDestroyed(stream);
  ExpectDestroyed(later);
}

TEST_F(HttpTest, DrainCutsWhatDoesNotFinishInTime) {
  StartServer();
  HttpClient client(server_->port());
  client.SendPost("/stream", "");
  OpenStream opened = TakeOpened();
  server_->Drain(milliseconds(10));
  EXPECT_EQ(opened.destroyed.wait_for(milliseconds(0)), std::future_status::ready);
  EXPECT_FALSE(client.Read().whole);
}

TEST_F(HttpTest, NamesTheAddressItCannotListenOn) {
  StartServer();
  HttpOptions taken;
  taken.host = "127.0.0.1";
  taken.port = server_->port();
  const auto error_body = [](int, absl::string_view) { return std::string(); };
  HttpServer second(taken, {}, error_body, &loops_, &metrics_);
  const absl::Status status = second.Start();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(status.ToString(), HasSubstr(absl::StrCat("127.0.0.1:", taken.port)));
  HttpOptions unknown;
  unknown.host = "no such host";
  HttpServer third(unknown, {}, error_body, &loops_, &metrics_);
  EXPECT_EQ(third.Start().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(HttpTest, ManyClientsAtOnce) {
  StartServer();
  std::vector<std::thread> clients;
  for (int i = 0; i < 8; ++i) {
    clients.emplace_back([this, i] {
      for (int turn = 0; turn < 20; ++turn) {
        HttpClient client(server_->port());
        const std::string body = absl::StrCat(i, " ", turn);
        EXPECT_EQ(client.Post("/echo", body).body, body);
        EXPECT_EQ(client.Post("/echo", body).body, body);
      }
    });
  }
  for (std::thread& client : clients) client.join();
}

}  // namespace
}  // namespace glm::router
