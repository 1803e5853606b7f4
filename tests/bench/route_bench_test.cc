#include "bench/route_bench.h"

#include <gtest/gtest.h>

#include <string>

#include "nlohmann/json.hpp"

namespace glm::bench {
namespace {

RouteBenchOptions Small() {
  RouteBenchOptions options;
  options.blocks = 5000;
  options.workers = 8;
  options.depth = 100;
  options.seconds = 0.02;
  options.only = "usual";
  return options;
}

TEST(RouteBenchTest, PrintsOneLineAMeasurement) {
  testing::internal::CaptureStdout();
  ASSERT_TRUE(RunRouteBench(Small()).ok());
  const std::string text = testing::internal::GetCapturedStdout();
  int lines = 0;
  for (size_t at = 0; at < text.size(); at = text.find('\n', at) + 1) {
    const std::string line = text.substr(at, text.find('\n', at) - at);
    const auto record = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    ASSERT_TRUE(record.is_object()) << line;
    EXPECT_GT(record["blocks"], 4000);
    EXPECT_GE(record["p99_us"], record["p50_us"]);
    ++lines;
  }
  EXPECT_EQ(lines, 3);
}

TEST(RouteBenchTest, RefusesWhatIsOutOfItsLimits) {
  RouteBenchOptions options = Small();
  options.depth = 1;
  EXPECT_EQ(options.Validate().message(), "--depth is 1, it must be from 2 to 5000");
  options = Small();
  options.workers = 5000;
  EXPECT_FALSE(options.Validate().ok());
  EXPECT_TRUE(Small().Validate().ok());
}

}  // namespace
}  // namespace glm::bench
