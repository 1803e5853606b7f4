// The two ends' limits against each other, over real sockets.
#include "proto/wire_limits.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/proto/echo_server.h"

namespace glm {
namespace {

using test::EchoServer;
using test::EchoStream;
using ::testing::HasSubstr;

std::shared_ptr<grpc::Channel> Dial(const EchoServer& server, const ChannelLimits& limits = {}) {
  return grpc::CreateCustomChannel(server.address(), grpc::InsecureChannelCredentials(),
                                   MakeChannelArguments(limits));
}

// Both ends at the shortest interval that a flag may say; some pings pass while nothing is sent.
constexpr std::chrono::milliseconds kIdle{5500};

TEST(WireLimits, AnIdleSessionOutlivesItsPings) {
  const EchoServer server(grpc::InsecureServerCredentials(), {});
  EchoStream stream(Dial(server, {.ping_ms = kPingIntervalLeastMs}));
  ASSERT_TRUE(stream.Echo());
  std::this_thread::sleep_for(kIdle);
  EXPECT_TRUE(stream.Echo());
}

TEST(WireLimits, WithoutThePermissionTheSameSessionIsCut) {
  const EchoServer server(grpc::InsecureServerCredentials(), {.ping_permitted_ms = 300'000});
  EchoStream stream(Dial(server, {.ping_ms = kPingIntervalLeastMs}));
  ASSERT_TRUE(stream.Echo());
  std::this_thread::sleep_for(kIdle);
  EXPECT_FALSE(stream.Echo());
  const grpc::Status status = stream.Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("Too many pings"));
}

TEST(WireLimits, ALargeMessageEndsItsStreamAlone) {
  const EchoServer server(grpc::InsecureServerCredentials(), {.message_bytes_max = 10'000});
  const auto channel = Dial(server);
  EchoStream small(channel);
  EchoStream large(channel);
  ASSERT_TRUE(small.Echo(9000));
  EXPECT_FALSE(large.Echo(11'000));
  EXPECT_EQ(large.Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(small.Echo(9000));
}

TEST(WireLimits, TheAnswersSizeIsBoundToo) {
  const EchoServer server(grpc::InsecureServerCredentials(), {});
  EchoStream stream(Dial(server, {.message_bytes_max = 1}));
  EXPECT_FALSE(stream.Echo());
  EXPECT_EQ(stream.Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST(WireLimits, StreamsPastTheLimitWaitForOneToEnd) {
  const EchoServer server(grpc::InsecureServerCredentials(), {.streams_max = 2});
  const auto channel = Dial(server);
  auto first = std::make_unique<EchoStream>(channel);
  EchoStream second(channel);
  ASSERT_TRUE(first->Echo());
  ASSERT_TRUE(second.Echo());
  std::future<bool> echoed =
      std::async(std::launch::async, [&] { return EchoStream(channel).Echo(); });
  EXPECT_EQ(echoed.wait_for(std::chrono::milliseconds(300)), std::future_status::timeout);
  first.reset();
  EXPECT_TRUE(echoed.get());
}

TEST(WireLimits, LargeMetadataIsRefused) {
  const EchoServer server(grpc::InsecureServerCredentials(), {});
  const auto stub = test::wire::Worker::NewStub(Dial(server));
  const auto status_of = [&](size_t bytes) {
    grpc::ClientContext call;
    call.AddMetadata("x-large", std::string(bytes, 'x'));
    const auto stream = stub->Session(&call);
    stream->WritesDone();
    test::wire::WorkerFrame frame;
    while (stream->Read(&frame)) {
    }
    return stream->Finish().error_code();
  };
  EXPECT_EQ(status_of(kMetadataBytesMax / 2), grpc::StatusCode::OK);
  EXPECT_NE(status_of(kMetadataBytesMax * 2), grpc::StatusCode::OK);
}

TEST(WireLimitsDeathTest, NoChannelPingsMoreOftenThanIsPermitted) {
  EXPECT_DEATH(MakeChannelArguments({.ping_ms = kPingIntervalLeastMs - 1}), "CHECK failed");
}

}  // namespace
}  // namespace glm
