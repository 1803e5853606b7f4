#include "engine/rank/rank_meeting.h"

#include <gtest/gtest.h>

#include <array>
#include <thread>
#include <vector>

#include "engine/rank/start_gate.h"

namespace glm::engine {
namespace {

TEST(StartGateTest, AllGoOnOrNoneDoes) {
  constexpr int kRanks = 4;
  StartGate gate(kRanks);
  std::array<std::array<bool, 3>, kRanks> passed{};
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < kRanks; ++rank) {
    ranks.emplace_back([&, rank] {
      passed[rank][0] = gate.Pass(true);
      passed[rank][1] = gate.Pass(rank != 2);
      passed[rank][2] = gate.Pass(true);
    });
  }
  for (std::thread& rank : ranks) rank.join();
  for (const auto& parts : passed) {
    EXPECT_TRUE(parts[0]);
    EXPECT_FALSE(parts[1]) << "one failed";
    EXPECT_FALSE(parts[2]) << "what failed once stays so";
  }
}

TEST(RankMeetingTest, TheReasonIsThatOfTheRankThatFailedByItself) {
  const absl::Status other = absl::AbortedError("another rank failed to start");
  const absl::Status own = absl::FailedPreconditionError("GPU 3 does not exist");
  EXPECT_TRUE(FirstReason({absl::OkStatus(), absl::OkStatus()}).ok());
  EXPECT_EQ(FirstReason({other, other, own, other}), own);
  EXPECT_EQ(FirstReason({absl::OkStatus(), own, other}), own);
  EXPECT_EQ(FirstReason({other, absl::OkStatus()}), other);
}

TEST(RankMeetingTest, ExchangesHaveTheirFlagsNames) {
  EXPECT_EQ(GpuExchangeOf("auto"), GpuExchange::kAuto);
  EXPECT_EQ(GpuExchangeOf("peer"), GpuExchange::kPeer);
  EXPECT_EQ(GpuExchangeOf("nccl"), GpuExchange::kNccl);
}

TEST(RankMeetingTest, RanksWithoutAGpuAreRefusedByName) {
  RankOptions options;
  options.device = "cuda";
  options.device_index = 61;
  const auto device = CreateRankDevice(options, 1);
  ASSERT_EQ(device.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(device.status().message().find("device_index 62"), std::string::npos);
  const auto meeting = CreateRankMeeting(options, 2);
  ASSERT_EQ(meeting.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(meeting.status().message().find("tensor_parallel_size is 2 and device_index 61"),
            std::string::npos);
}

}  // namespace
}  // namespace glm::engine
