// What a worker announces; its streams are tested against the router's end in
// tests/router/registry_test.cc.
#include "worker/registration.h"

#include <gtest/gtest.h>

namespace glm::worker {
namespace {

TEST(AnnouncementOf, IsWhatWasToldOrWhereItListens) {
  EXPECT_EQ(AnnouncementOf("worker-3.glm:443", "0.0.0.0:50051", 50051), "worker-3.glm:443");
  EXPECT_EQ(AnnouncementOf("", "0.0.0.0:50051", 50051), ":50051");
  EXPECT_EQ(AnnouncementOf("", "[::]:0", 4711), ":4711");
  EXPECT_EQ(AnnouncementOf("", "10.0.0.1:0", 4711), "10.0.0.1:4711");
  EXPECT_EQ(AnnouncementOf("", "unix:/run/worker.sock", 0), "unix:/run/worker.sock");
}

TEST(Registration, EndsWhileNobodyIsThere) {
  Registration::Options options;
  options.router = "127.0.0.1:1";
  options.announcement = "a:1";
  Registration registration(options, grpc::InsecureChannelCredentials(), nullptr);
  registration.Leave();
}

}  // namespace
}  // namespace glm::worker
