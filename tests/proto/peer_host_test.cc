#include "proto/peer_host.h"

#include <gtest/gtest.h>

namespace glm {
namespace {

TEST(PeerHost, LeavesThePortOut) {
  EXPECT_EQ(PeerHost("ipv4:10.0.0.1:4711"), "10.0.0.1");
  EXPECT_EQ(PeerHost("ipv6:%5B::1%5D:4711"), "[::1]");
  EXPECT_EQ(PeerHost("ipv6:[fe80::2]:4711"), "[fe80::2]");
  EXPECT_EQ(PeerHost("unix:/run/worker.sock"), "");
  EXPECT_EQ(PeerHost(""), "");
}

}  // namespace
}  // namespace glm
