#include "bench/allreduce_bench.h"

#include <gtest/gtest.h>

namespace glm::bench {
namespace {

AllReduceBenchOptions Tiny() {
  AllReduceBenchOptions options;
  options.device = "cpu";
  options.rows = {1, 5};
  options.hidden = 64;
  options.vocabulary = 128;
  options.rounds = 2;
  return options;
}

TEST(AllReduceBenchTest, TellsOfEveryExchangeOnce) {
  testing::internal::CaptureStdout();
  const absl::Status status = RunAllReduceBench(Tiny());
  const std::string out = testing::internal::GetCapturedStdout();
  ASSERT_TRUE(status.ok()) << status;
  for (const char* name :
       {"all_reduce_sum", "all_reduce_add_rms_norm_quantize", "all_gather_logits"}) {
    for (const char* rows : {"1", "5"}) {
      const std::string line = std::string("\"name\": \"") + name +
                               "\", \"ranks\": 2, \"gpu_exchange\": \"auto\", \"rows\": " + rows +
                               ", \"hidden\": 64, \"us\": ";
      const size_t at = out.find(line);
      ASSERT_NE(at, std::string::npos) << line << " in " << out;
      EXPECT_EQ(out.find(line, at + 1), std::string::npos) << "only one rank tells";
      EXPECT_GT(std::stod(out.substr(at + line.size())), 0);
    }
  }
}

TEST(AllReduceBenchTest, RefusesWhatItCannotRun) {
  AllReduceBenchOptions options = Tiny();
  options.ranks.tensor_parallel_size = 3;
  EXPECT_EQ(options.Validate().message(), "tensor_parallel_size is 3, accepted: 1, 2, 4, 8");
  options = Tiny();
  options.ranks.ranks_per_device = 2;
  EXPECT_FALSE(options.Validate().ok()) << "ranks on the CPU share nothing";
  options = Tiny();
  options.ranks.gpu_exchange = "none";
  EXPECT_FALSE(options.Validate().ok());
  options = Tiny();
  options.rows = {0};
  EXPECT_FALSE(options.Validate().ok());
  options = Tiny();
  options.hidden = 6152;
  EXPECT_FALSE(options.Validate().ok());
}

}  // namespace
}  // namespace glm::bench
