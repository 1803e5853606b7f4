#include "engine/rank/graphs.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

namespace glm::engine {
namespace {

/// Says what was captured and launched.
class RecordingDevice final : public Device {
 public:
  explicit RecordingDevice(bool can_capture) : Device(nullptr), can_capture_(can_capture) {}

  std::string Describe() const override { return "recording"; }
  int64_t BytesFree() const override { return 0; }
  void* Allocate(int64_t) override { return nullptr; }
  void* AllocateHost(int64_t) override { return nullptr; }
  int64_t ScratchBytes(const StepLimits&) const override { return 0; }
  void PlanScratch(const StepLimits&) override {}
  void Seal() override {}
  void CopyToDevice(void*, const void*, int64_t) override {}
  void CopyToHost(void*, const void*, int64_t) override {}
  void Fill(void*, uint8_t, int64_t) override {}
  void Synchronize() override {}
  std::unique_ptr<DeviceEvent> NewEvent() override { return nullptr; }
  bool CanCapture() const override { return can_capture_; }
  void BeginCapture() override { log += "("; }
  std::unique_ptr<DeviceGraph> EndCapture() override {
    log += ")";
    return std::make_unique<Graph>(this, graphs_++);
  }

  std::string log;

 private:
  class Graph final : public DeviceGraph {
   public:
    Graph(RecordingDevice* device, int number) : device_(device), number_(number) {}
    void Launch() override { device_->log += std::to_string(number_); }
    int64_t operations() const override { return 1; }

   private:
    RecordingDevice* device_;
    const int number_;
  };

  const bool can_capture_;
  int graphs_ = 0;
};

StepSizes Sizes(int64_t tokens, int64_t sequences, int64_t blocks_max = 1) {
  StepSizes sizes;
  sizes.tokens = tokens;
  sizes.sequences = sequences;
  sizes.logit_rows = sequences;
  sizes.blocks_max = blocks_max;
  return sizes;
}

/// What happened when these steps ran: letters are steps issued, digits graphs launched.
std::string LogOf(bool can_capture, const std::vector<StepSizes>& steps) {
  RecordingDevice device(can_capture);
  StepGraphs graphs(device);
  for (const StepSizes& sizes : steps) {
    graphs.Run(sizes, [&] { device.log += "i"; });
  }
  return device.log;
}

TEST(StepGraphsTest, TheFirstStepOfASizeIsEagerTheSecondCapturedLaterOnesReplayed) {
  const StepSizes four = Sizes(4, 4);
  EXPECT_EQ(LogOf(true, {four, four, four, four}), "i(i)000");
}

TEST(StepGraphsTest, CapturesAheadWithoutRunning) {
  RecordingDevice device(true);
  StepGraphs graphs(device);
  const auto issue = [&] { device.log += "i"; };
  const StepSizes four = Sizes(4, 4);
  graphs.Run(four, issue);
  graphs.Capture(four, issue);
  graphs.Capture(four, issue);  // there already
  graphs.Run(four, issue);
  graphs.Capture(Sizes(9, 1), issue);  // suits none
  EXPECT_EQ(device.log, "i(i)0");
  EXPECT_EQ(graphs.captured(), 1);
}

TEST(StepGraphsTest, OtherSizesHaveTheirOwnGraphs) {
  const StepSizes four = Sizes(4, 4);
  const StepSizes wide = Sizes(4, 4, 2);
  StepSizes drafting = four;
  drafting.drafts = 1;
  EXPECT_EQ(LogOf(true, {four, four, wide, wide, four, drafting}), "i(i)0i(i)10i");
}

TEST(StepGraphsTest, PromptsAndLargeStepsAreEager) {
  const StepSizes prompt = Sizes(9, 1);
  const StepSizes large = Sizes(StepGraphs::kTokensMax + 1, StepGraphs::kTokensMax + 1);
  EXPECT_EQ(LogOf(true, {prompt, prompt, large, large}), "iiii");
}

TEST(StepGraphsTest, WithoutCaptureAllIsEager) {
  const StepSizes four = Sizes(4, 4);
  EXPECT_EQ(LogOf(false, {four, four, four}), "iii");
}

TEST(StepGraphsTest, NoMoreGraphsThanTheBound) {
  RecordingDevice device(true);
  StepGraphs graphs(device);
  for (int round = 0; round < 2; ++round) {
    for (int64_t blocks = 0; blocks < StepGraphs::kGraphsMax + 5; ++blocks) {
      graphs.Run(Sizes(1, 1, blocks), [] {});
    }
  }
  EXPECT_EQ(graphs.captured(), StepGraphs::kGraphsMax);
  EXPECT_EQ(graphs.replayed(), StepGraphs::kGraphsMax);
}

}  // namespace
}  // namespace glm::engine
