#include "worker/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace glm::worker {
namespace {

TEST(WorkerOptionsTest, HeartbeatMsHasBounds) {
  WorkerOptions options;
  options.engine.model = "folder";
  ASSERT_TRUE(options.Validate().ok()) << options.Validate();
  for (const int32_t bad : {0, 9, -1, 60'001}) {
    options.heartbeat_ms = bad;
    const absl::Status status = options.Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                testing::AllOf(testing::HasSubstr("--heartbeat-ms is " + std::to_string(bad)),
                               testing::HasSubstr("from 10 to 60000")));
  }
}

}  // namespace
}  // namespace glm::worker
