#include "bench/step_bench.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "bench/timed_device.h"
#include "engine/model/glm.h"

namespace glm::bench {
namespace {

StepBenchOptions Tiny(const char* model) {
  StepBenchOptions options;
  options.model = std::string(GLM_SOURCE_DIR) + "/tests/golden/" + model;
  options.block_size = 16;
  options.batch = {1, 3};
  options.context = 20;
  options.prompt = {30};
  options.max_num_batched_tokens = 64;
  options.steps = 3;
  return options;
}

int CountOf(const std::string& text, const std::string& part) {
  int count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

TEST(StepBenchTest, TellsOfEveryBatchAndPrompt) {
  for (const char* model : {"glm4_moe/air", "glm4_moe_lite/flash"}) {
    testing::internal::CaptureStdout();
    const absl::Status status = RunStepBench(Tiny(model));
    const std::string out = testing::internal::GetCapturedStdout();
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(CountOf(out, "\"phase\": \"decode\", \"sequences\": 1, \"context\": 20"), 1) << out;
    EXPECT_EQ(CountOf(out, "\"phase\": \"decode\", \"sequences\": 3, \"context\": 20"), 1) << out;
    EXPECT_EQ(CountOf(out, "\"phase\": \"prefill\", \"sequences\": 1, \"tokens\": 30"), 1) << out;
    EXPECT_EQ(CountOf(out, "\"op\": \"sample\", \"calls\": 1,"), 3) << out;
  }
}

TEST(StepBenchTest, RanksRunTogetherOrOneAlone) {
  for (const char* exchange : {"auto", "none"}) {
    StepBenchOptions options = Tiny("glm4_moe/air");
    options.model = std::string(GLM_SOURCE_DIR) + "/deploy/demo-model";
    options.layers = 2;
    options.ranks.tensor_parallel_size = 2;
    options.ranks.gpu_exchange = exchange;
    testing::internal::CaptureStdout();
    const absl::Status status = RunStepBench(options);
    const std::string out = testing::internal::GetCapturedStdout();
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(CountOf(out, "\"tensor_parallel_size\": 2"), 3) << out;
    EXPECT_EQ(CountOf(out, "\"op\": \"all_reduce_add_rms_norm\""), 3) << out;
  }
  EXPECT_FALSE(StepBenchOptions{}.gpu_exchange_overlap);
  for (const bool overlap : {true, false}) {
    StepBenchOptions options = Tiny("glm4_moe/air");
    options.model = std::string(GLM_SOURCE_DIR) + "/deploy/demo-model";
    options.layers = 2;
    options.ranks.tensor_parallel_size = 2;
    options.gpu_exchange_overlap = overlap;
    options.batch = {};
    options.prompt = {static_cast<int32_t>(engine::GlmOptions::kOverlapTokensMin)};
    options.max_num_batched_tokens = options.prompt[0];
    testing::internal::CaptureStdout();
    const absl::Status status = RunStepBench(options);
    const std::string out = testing::internal::GetCapturedStdout();
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(CountOf(out, overlap ? "\"gpu_exchange_overlap\": true"
                                   : "\"gpu_exchange_overlap\": false"),
              1)
        << out;
    // Then the sums are part of the products' time, but for those of the last layer, whose rows are
    // few.
    EXPECT_EQ(CountOf(out, absl::StrCat("\"op\": \"all_reduce_add_rms_norm\", \"calls\": ",
                                        overlap ? 2 : 4, ",")),
              1)
        << out;
  }
  StepBenchOptions options = Tiny("glm4_moe/air");
  options.ranks.tensor_parallel_size = 8;
  EXPECT_FALSE(RunStepBench(options).ok()) << "8 ranks do not divide it";
}

TEST(StepBenchTest, DraftsCountByTheForcedAcceptance) {
  StepBenchOptions options = Tiny("glm4_moe/mtp_own");
  options.prompt = {};
  options.batch = {2};
  options.drafts = 2;
  options.acceptance = 0.5;
  options.op_times = false;
  testing::internal::CaptureStdout();
  const absl::Status status = RunStepBench(options);
  const std::string out = testing::internal::GetCapturedStdout();
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(CountOf(out, "\"drafts\": 2, \"acceptance\": 0.50"), 1) << out;
  const auto number = [&](const std::string& name) {
    return std::stod(out.substr(out.find("\"" + name + "\": ") + name.size() + 4));
  };
  // Two sequences of 1 + 0.5 + 0.25 tokens a step.
  EXPECT_NEAR(number("tokens_per_s") * number("ms") / 1e3, 3.5, 0.2);
}

TEST(StepBenchTest, RefusesWhatItCannotRun) {
  StepBenchOptions options = Tiny("glm4_moe/air");
  options.drafts = 1;
  ASSERT_TRUE(options.Validate().ok());
  EXPECT_FALSE(RunStepBench(options).ok()) << "it has no draft layer";
  options.acceptance = 1.5;
  EXPECT_FALSE(options.Validate().ok());
  options = Tiny("glm4_moe/air");
  options.prompt = {65};
  EXPECT_FALSE(options.Validate().ok());
  options = Tiny("glm4_moe/air");
  options.quantization = "int4";
  EXPECT_FALSE(options.Validate().ok());
  options = Tiny("no_such_model");
  ASSERT_TRUE(options.Validate().ok());
  EXPECT_FALSE(RunStepBench(options).ok());
}

TEST(TimedDeviceTest, CountsOpsByNameAndSize) {
  TimedDevice device(CreateCpuDevice(1));
  StepLimits limits;
  limits.tokens_max = 2;
  limits.hidden = 8;
  device.PlanScratch(limits);
  const Tensor counts = device.NewTensor(DType::kI32, {3});
  static_cast<int32_t*>(counts.data)[0] = 2;
  BatchView batch;
  batch.counts = counts;
  const Tensor in = device.NewTensor(DType::kF32, {2, 8});
  const Tensor weight = device.NewTensor(DType::kF32, {4, 8});
  const Tensor out = device.NewTensor(DType::kF32, {2, 4});
  device.Fill(in.data, 0, in.bytes());
  device.Fill(weight.data, 0, weight.bytes());
  const auto run = [&] {
    device.ops().linear(device, {.batch = batch,
                                 .in = {.values = in},
                                 .weight = {.values = weight},
                                 .bias = {},
                                 .out = out});
  };
  run();
  device.StartTiming();
  run();
  run();
  const auto times = device.TakeTimes();
  ASSERT_EQ(times.size(), 1u);
  EXPECT_EQ(times.begin()->first, "linear 4x8 F32");
  EXPECT_EQ(times.begin()->second.calls, 2);
  EXPECT_GE(times.begin()->second.seconds, 0);
  EXPECT_TRUE(device.TakeTimes().empty());
}

}  // namespace
}  // namespace glm::bench
