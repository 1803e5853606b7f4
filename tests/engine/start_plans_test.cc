#include "engine/rank/start_plans.h"

#include <gtest/gtest.h>

#include "engine/rank/graphs.h"
#include "kernels/device.h"

namespace glm::engine {
namespace {

BatchLimits LimitsOf(int64_t sequences, int64_t drafts) {
  BatchLimits limits;
  limits.step.tokens_max = 4096;
  limits.step.sequences_max = sequences;
  limits.step.logit_rows_max = sequences * (1 + drafts);
  limits.step.vocabulary = 10;
  limits.blocks_max = 4;
  limits.slots = sequences;
  limits.vocabulary_used = 10;
  limits.drafts_max = drafts;
  return limits;
}

TEST(StartPlansTest, EveryBucketOnceTheLargestFirst) {
  EXPECT_EQ(StartBatches(LimitsOf(20, 0)), (std::vector<int32_t>{20, 16, 12, 8, 6, 4, 3, 2, 1}));
  EXPECT_EQ(StartBatches(LimitsOf(1, 0)), (std::vector<int32_t>{1}));
  // No more tokens than a graph takes: larger steps run eagerly.
  EXPECT_EQ(StartBatches(LimitsOf(1024, 0)).front(), StepGraphs::kTokensMax);
  EXPECT_EQ(StartBatches(LimitsOf(1024, 3)).front(), StepGraphs::kTokensMax / 4);
}

/// What a batch checks of a plan, it checks of these.
TEST(StartPlansTest, PlansAreFitToRunAndHaveTheSizesOfDecodeSteps) {
  for (const int64_t drafts : {0, 2}) {
    const BatchLimits limits = LimitsOf(8, drafts);
    const auto device = CreateCpuDevice(1);
    Batch batch(*device, limits);
    for (const int32_t sequences : StartBatches(limits)) {
      const StepPlan plan = StartPlan(limits, sequences);
      batch.Upload(plan, 0);
      const StepSizes sizes = batch.sizes();
      EXPECT_EQ(sizes.sequences, sequences);
      EXPECT_EQ(sizes.tokens, sequences * (1 + drafts));
      EXPECT_EQ(sizes.logit_rows, sizes.tokens);
      EXPECT_EQ(sizes.drafts, drafts);
      EXPECT_EQ(sizes.draft_rows, drafts > 0 ? sequences : 0);
      EXPECT_EQ(sizes.draft_layer, drafts > 0);
      for (const SampleRow& row : plan.sample_rows) EXPECT_EQ(row.slot, -1);
    }
  }
}

}  // namespace
}  // namespace glm::engine
