// Who gets in at the worker's door: tokens, limits of sessions, silence instead of a hello.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>

#include "tests/support/temp_folder.h"
#include "tests/worker/scripted_engine.h"
#include "worker/service.h"

namespace glm::worker {
namespace {

namespace pb = ::glmserve::worker::v1;

constexpr char kToken[] = "0123456789abcdef";

/// A router that says hello, perhaps, and shows a token, perhaps.
class Caller {
 public:
  Caller(const std::shared_ptr<grpc::Channel>& channel, const std::string& authorization = "")
      : stub_(pb::Worker::NewStub(channel)) {
    if (!authorization.empty()) call_.AddMetadata("authorization", authorization);
    call_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    stream_ = stub_->Session(&call_);
  }
  ~Caller() { call_.TryCancel(); }

  /// Whether a welcome is the answer to its hello.
  bool IsWelcome() {
    pb::RouterFrame hello;
    hello.mutable_hello()->set_protocol_version(kProtocolVersion);
    stream_->Write(hello);
    pb::WorkerFrame frame;
    return stream_->Read(&frame) && frame.has_welcome();
  }
  grpc::StatusCode End() {
    pb::WorkerFrame frame;
    while (stream_->Read(&frame)) {
    }
    return stream_->Finish().error_code();
  }

 private:
  grpc::ClientContext call_;
  std::unique_ptr<pb::Worker::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<pb::RouterFrame, pb::WorkerFrame>> stream_;
};

class DoorTest : public testing::Test {
 protected:
  void Start(bool with_token) {
    std::ofstream(folder_.path() + "/token") << kToken << "\n";
    if (with_token) {
      auto tokens = TokenFile::Open("auth-token-file", folder_.path() + "/token");
      ASSERT_TRUE(tokens.ok()) << tokens.status();
      tokens_ = *std::move(tokens);
    }
    service_ = std::make_unique<Service>(options_, &metrics_, tokens_.get());
    service_->Attach(&engine_);
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    channel_ = grpc::CreateChannel("127.0.0.1:" + std::to_string(port),
                                   grpc::InsecureChannelCredentials());
  }
  void TearDown() override { server_->Shutdown(std::chrono::system_clock::now()); }

  double Refused(const std::string& why) const {
    for (const prometheus::MetricFamily& family : metrics_.Collect()) {
      if (family.name != "glmserve_worker_sessions_refused_total") continue;
      for (const prometheus::ClientMetric& metric : family.metric) {
        if (metric.label[0].value == why) return metric.counter.value;
      }
    }
    return -1;
  }

  const test::TempFolder folder_;
  WorkerOptions options_;
  WorkerMetrics metrics_;
  ScriptedEngine engine_;
  std::unique_ptr<TokenFile> tokens_;
  std::unique_ptr<Service> service_;
  std::unique_ptr<grpc::Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
};

TEST_F(DoorTest, OnlyTheTokenOpens) {
  Start(/*with_token=*/true);
  EXPECT_EQ(Caller(channel_).End(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(Caller(channel_, "Bearer 0123456789abcdeF").End(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(Refused("token"), 2);
  EXPECT_TRUE(Caller(channel_, std::string("Bearer ") + kToken).IsWelcome());
  EXPECT_EQ(Refused("token"), 2);
}

TEST_F(DoorTest, WithoutATokenFileNoneIsAskedFor) {
  Start(/*with_token=*/false);
  EXPECT_TRUE(Caller(channel_).IsWelcome());
  EXPECT_TRUE(Caller(channel_, "Bearer whatever").IsWelcome());
}

TEST_F(DoorTest, AHostHasItsShareOfSessions) {
  options_.sessions_max = 10;
  options_.peer_sessions_max = 2;
  Start(/*with_token=*/false);
  auto first = std::make_unique<Caller>(channel_);
  Caller second(channel_);
  ASSERT_TRUE(first->IsWelcome());
  ASSERT_TRUE(second.IsWelcome());
  Caller third(channel_);
  EXPECT_FALSE(third.IsWelcome());
  EXPECT_EQ(third.End(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(Refused("limit"), 1);
  // What has ended counts no more.
  first.reset();
  while (!Caller(channel_).IsWelcome()) {
  }
}

TEST_F(DoorTest, WhoSaysNoHelloIsCutOff) {
  options_.hello_timeout_ms = 50;
  Start(/*with_token=*/false);
  Caller greeted(channel_);
  ASSERT_TRUE(greeted.IsWelcome());
  EXPECT_EQ(Caller(channel_).End(), grpc::StatusCode::DEADLINE_EXCEEDED);
  // The one that said hello in time is past the same limit by now, and lives.
  pb::WorkerFrame frame;
  service_->CloseAll();
  EXPECT_EQ(greeted.End(), grpc::StatusCode::UNAVAILABLE);
}

}  // namespace
}  // namespace glm::worker
