#include "proto/option_checks.h"

#include <gtest/gtest.h>

namespace glm {
namespace {

TEST(OptionChecks, TheFirstFailureIsSaid) {
  OptionChecks checks;
  checks.Range("loops", 4, 1, 4);
  EXPECT_TRUE(checks.status().ok());
  checks.Range("loops", 5, 1, 4);
  checks.Range("other", 0, 1, 4);
  EXPECT_EQ(checks.status().message(), "--loops=5 must be from 1 to 4");
}

TEST(OptionChecks, NeedsTheOther) {
  OptionChecks checks;
  checks.Needs("a", "", "b", "");
  checks.Needs("a", "x", "b", "y");
  EXPECT_TRUE(checks.status().ok());
  checks.Needs("a", "x", "b", "");
  EXPECT_EQ(checks.status().message(), "--a='x' needs --b too");
}

TEST(IsAddress, TakesHostsAndSockets) {
  for (const char* good : {"host:1", "127.0.0.1:65535", "[::1]:50051", "unix:/run/w", "a.b-c:7"}) {
    EXPECT_TRUE(IsAddress(good, 1)) << good;
  }
  for (const char* bad : {"", "host", ":1", "host:", "host:0", "host:65536", "host:1x", "::1:50051",
                          "unix:", "a b:1", "http://a:1", "a,b:1"}) {
    EXPECT_FALSE(IsAddress(bad, 1)) << bad;
  }
  EXPECT_TRUE(IsAddress("host:0", 0));
}

}  // namespace
}  // namespace glm
