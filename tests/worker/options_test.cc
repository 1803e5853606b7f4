#include "worker/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

namespace glm::worker {
namespace {

using ::testing::HasSubstr;

TEST(WorkerOptions, NameFlagValueAndLimit) {
  const auto message = [](const std::function<void(WorkerOptions*)>& spoil) {
    WorkerOptions options;
    options.engine.model = "/models/tiny";
    spoil(&options);
    return std::string(options.Validate().message());
  };
  EXPECT_EQ(message([](WorkerOptions*) {}), "");
  EXPECT_THAT(message([](WorkerOptions* o) { o->listen = "host"; }),
              HasSubstr("--listen='host' must be host:port"));
  EXPECT_THAT(message([](WorkerOptions* o) { o->sessions_max = 0; }),
              HasSubstr("--sessions-max=0 must be from 1 to 4096"));
  EXPECT_THAT(message([](WorkerOptions* o) { o->peer_sessions_max = 5000; }),
              HasSubstr("--peer-sessions-max=5000 must be from 1 to 4096"));
  EXPECT_THAT(message([](WorkerOptions* o) { o->hello_timeout_ms = 0; }),
              HasSubstr("--hello-timeout-ms=0"));
  EXPECT_THAT(message([](WorkerOptions* o) { o->heartbeat_ms = 9; }),
              HasSubstr("--heartbeat-ms=9 must be from 10 to 60000"));
  EXPECT_THAT(message([](WorkerOptions* o) { o->heartbeat_ms = 60'001; }),
              HasSubstr("--heartbeat-ms=60001"));
  EXPECT_THAT(message([](WorkerOptions* o) { o->tls.cert = "c"; }),
              HasSubstr("--tls-cert='c' needs --tls-key too"));
  EXPECT_THAT(message([](WorkerOptions* o) { o->grpc_memory_bytes_max = 1; }),
              HasSubstr("--grpc-memory-bytes-max=1"));
}

TEST(CheckFrameHolds, TheLongestRequestFits) {
  EXPECT_TRUE(CheckFrameHolds(WorkerOptions().frame_bytes_max, 1 << 20).ok())
      << "a million tokens by default";
  EXPECT_TRUE(CheckFrameHolds(5'000 + (1 << 20), 1'000).ok());
  EXPECT_EQ(CheckFrameHolds(5'000 + (1 << 20) - 1, 1'000).message(),
            "--frame-bytes-max=1053575 must be at least 1053576: a request may have 1000 tokens "
            "(--max-model-len)");
}

}  // namespace
}  // namespace glm::worker
