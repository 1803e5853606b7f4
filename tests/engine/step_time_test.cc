// The step-time model on streams of steps whose times are known: noise, outliers, drift, streams
// that show only a part.
#include "engine/schedule/step_time.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace glm::engine {
namespace {

constexpr StepTimes kTruth = {
    .base_us = 8000, .sequence_us = 120, .prompt_token_us = 25, .context_token_us = 0.05};

double SecondsOf(const StepTimes& times, const StepWork& work) {
  return 1e-6 * (times.base_us + times.sequence_us * work.decodes +
                 times.prompt_token_us * work.prompt_tokens +
                 times.context_token_us * static_cast<double>(work.context_tokens));
}

/// A machine with noise: what a step of it takes, told to a model.
class Machine {
 public:
  explicit Machine(uint64_t seed) : random_(seed) {}

  double slowness = 1;
  double noise = 0.03;          // standard deviation, as a share
  double outliers = 0;          // how often a step takes outlier_seconds more
  double outlier_seconds = 10;  // the process stood still
  StepTimes truth = kTruth;

  StepWork Mixed() {
    StepWork work;
    work.decodes = Draw(0, 64);
    if (work.decodes == 0 || Draw(0, 3) == 0) work.prompt_tokens = Draw(1, 2048);
    work.context_tokens = int64_t{work.decodes} * Draw(200, 4000) + work.prompt_tokens;
    return work;
  }
  StepWork Decode(int32_t decodes) { return {.decodes = decodes, .context_tokens = decodes * 900}; }

  void Run(const StepWork& work, StepTimeModel* model) {
    double seconds = slowness * SecondsOf(truth, work);
    seconds *= std::max(0.1, 1 + noise * std::normal_distribution<double>()(random_));
    if (std::uniform_real_distribution<double>()(random_) < outliers) seconds += outlier_seconds;
    now += seconds;
    model->Note(work, seconds);
  }
  void RunMixed(int32_t steps, StepTimeModel* model) {
    for (int32_t i = 0; i < steps; ++i) Run(Mixed(), model);
  }

  double now = 0;

 private:
  int32_t Draw(int32_t low, int32_t high) {
    return std::uniform_int_distribution<int32_t>(low, high)(random_);
  }
  std::mt19937_64 random_;
};

constexpr StepWork kWorks[] = {{.decodes = 1, .context_tokens = 500},
                               {.decodes = 16, .context_tokens = 16'000},
                               {.decodes = 64, .context_tokens = 64'000},
                               {.prompt_tokens = 64, .context_tokens = 64},
                               {.prompt_tokens = 2000, .context_tokens = 2000},
                               {.decodes = 32, .prompt_tokens = 500, .context_tokens = 40'000}};

void ExpectClose(const StepTimeModel& model, const StepTimes& truth, double slowness,
                 double share) {
  for (const StepWork& work : kWorks) {
    const double right = slowness * SecondsOf(truth, work);
    EXPECT_NEAR(model.Expect(work) / right, 1, share)
        << work.decodes << " decode, " << work.prompt_tokens << " prompt tokens";
  }
}

TEST(StepTimeTest, NothingIsKnownBeforeTheFirstSteps) {
  StepTimeModel model;
  Machine machine(1);
  for (int32_t i = 0; i < StepTimeModel::kToldSteps; ++i) {
    EXPECT_EQ(model.times(), StepTimes());
    EXPECT_EQ(model.Expect({.decodes = 1}) > 0, i >= StepTimeModel::kFirstSteps);
    machine.Run(machine.Decode(4), &model);
  }
  EXPECT_NE(model.times(), StepTimes());
}

TEST(StepTimeTest, FindsAllFourTimesUnderNoise) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    StepTimeModel model;
    Machine machine(seed);
    machine.RunMixed(2000, &model);
    const StepTimes times = model.times();
    EXPECT_NEAR(times.base_us / kTruth.base_us, 1, 0.1) << seed;
    EXPECT_NEAR(times.sequence_us / kTruth.sequence_us, 1, 0.15) << seed;
    EXPECT_NEAR(times.prompt_token_us / kTruth.prompt_token_us, 1, 0.05) << seed;
    EXPECT_NEAR(times.context_token_us / kTruth.context_token_us, 1, 0.1) << seed;
    ExpectClose(model, kTruth, 1, 0.06);
  }
}

TEST(StepTimeTest, OutliersDoNotPoisonIt) {
  for (const double seconds : {0.02, 0.1, 1.0, 10.0, 600.0}) {
    StepTimeModel model;
    Machine machine(3);
    machine.outliers = 0.03;
    machine.outlier_seconds = seconds;
    machine.RunMixed(3000, &model);
    ExpectClose(model, kTruth, 1, 0.1);
    // A few in a row, as when a process is stopped and goes on several times.
    machine.outliers = 0;
    machine.RunMixed(StepTimeModel::kRecentSteps, &model);
    machine.outliers = 1;
    machine.RunMixed(StepTimeModel::kShiftSteps - 1, &model);
    ExpectClose(model, kTruth, 1, 0.15);
  }
}

TEST(StepTimeTest, AFirstStepThatTookLongIsForgotten) {
  StepTimeModel model;
  Machine machine(4);
  model.Note(machine.Decode(8), 30);  // code is loaded, graphs are captured
  model.Note(machine.Decode(8), 2);
  machine.RunMixed(200, &model);
  ExpectClose(model, kTruth, 1, 0.2);
}

TEST(StepTimeTest, ASlowdownIsFollowedWithinASecondOfItsSteps) {
  for (const double slowness : {5.0, 2.0, 0.25}) {
    StepTimeModel model;
    Machine machine(5);
    machine.RunMixed(3000, &model);
    machine.slowness = slowness;
    machine.RunMixed(2 * StepTimeModel::kShiftSteps, &model);
    ExpectClose(model, kTruth, slowness, 0.25);
    machine.RunMixed(1000, &model);
    ExpectClose(model, kTruth, slowness, 0.1);
    machine.slowness = 1;
    machine.RunMixed(2 * StepTimeModel::kShiftSteps, &model);
    ExpectClose(model, kTruth, 1, 0.25);
  }
}

TEST(StepTimeTest, ASlowdownSeenInDecodeAloneHoldsForPromptsToo) {
  StepTimeModel model;
  Machine machine(6);
  machine.RunMixed(3000, &model);
  machine.slowness = 5;
  for (int32_t i = 0; i < 10; ++i) machine.Run(machine.Decode(20), &model);
  ExpectClose(model, kTruth, 5, 0.25);
}

TEST(StepTimeTest, ASmallDriftIsFollowedToo) {
  StepTimeModel model;
  Machine machine(7);
  machine.RunMixed(3000, &model);
  machine.slowness = 1.2;  // less than a shift of the level
  machine.RunMixed(4 * StepTimeModel::kMemorySteps, &model);
  ExpectClose(model, kTruth, 1.2, 0.06);
}

TEST(StepTimeTest, WhatWasLearnedOfPromptsOutlastsDecoding) {
  StepTimeModel model;
  Machine machine(8);
  machine.RunMixed(2000, &model);
  for (int32_t i = 0; i < 1'000'000; ++i) {
    machine.Run(machine.Decode(30 + i / 7 % 3), &model);
  }
  ExpectClose(model, kTruth, 1, 0.25);
  EXPECT_NEAR(model.times().prompt_token_us / kTruth.prompt_token_us, 1, 0.1);
  // And it can still be learned anew.
  machine.truth.prompt_token_us = 75;
  machine.RunMixed(300, &model);
  EXPECT_NEAR(model.times().prompt_token_us / 75, 1, 0.15);
}

TEST(StepTimeTest, StreamsThatShowOnlyAPartStayFinite) {
  // One batch size for ever, context that grows with the base: all inputs move together.
  StepTimeModel decodes;
  Machine machine(9);
  for (int32_t i = 0; i < 200'000; ++i) machine.Run(machine.Decode(32), &decodes);
  const StepTimes times = decodes.times();
  for (const double time :
       {times.base_us, times.sequence_us, times.prompt_token_us, times.context_token_us}) {
    EXPECT_TRUE(std::isfinite(time));
    EXPECT_GE(time, 0);
  }
  EXPECT_NEAR(decodes.Expect(machine.Decode(32)) / SecondsOf(kTruth, machine.Decode(32)), 1, 0.03);
  EXPECT_LT(decodes.Expect(machine.Decode(64)), 2.1 * decodes.Expect(machine.Decode(32)));
  // A prompt is guessed from the decodes: of the right order, no more.
  EXPECT_LT(decodes.Expect({.prompt_tokens = 2000}),
            10 * SecondsOf(kTruth, {.prompt_tokens = 2000}));
  EXPECT_GT(decodes.Expect({.prompt_tokens = 2000}),
            0.1 * SecondsOf(kTruth, {.prompt_tokens = 2000}));

  StepTimeModel prompts;
  for (int32_t i = 0; i < 200'000; ++i) {
    machine.Run({.prompt_tokens = 2048, .context_tokens = 2048 + i % 5 * 2048}, &prompts);
  }
  const StepWork prompt{.prompt_tokens = 2048, .context_tokens = 4096};
  EXPECT_NEAR(prompts.Expect(prompt) / SecondsOf(kTruth, prompt), 1, 0.05);
  EXPECT_TRUE(std::isfinite(prompts.Expect(machine.Decode(64))));
  EXPECT_GE(prompts.times().sequence_us, 0);
  EXPECT_GE(prompts.times().base_us, 0);
}

TEST(StepTimeTest, ThePartNotSeenBeforeIsLearnedAtOnce) {
  StepTimeModel model;
  Machine machine(10);
  machine.truth.prompt_token_us = 400;  // 20 times the guess
  machine.noise = 0.02;
  for (int32_t i = 0; i < 5000; ++i) machine.Run(machine.Decode(10 + i % 30), &model);
  for (int32_t i = 0; i < 3; ++i) {
    machine.Run({.decodes = 20, .prompt_tokens = 512, .context_tokens = 20'000}, &model);
  }
  EXPECT_NEAR(model.times().prompt_token_us / 400, 1, 0.15);
}

TEST(StepTimeTest, StepsWithoutWorkOrTimeAreNoNews) {
  StepTimeModel model;
  Machine machine(11);
  machine.RunMixed(500, &model);
  const StepTimes before = model.times();
  model.Note({}, 1);
  model.Note({.decodes = 4, .context_tokens = 100}, 0);
  model.Note({.decodes = 4, .context_tokens = 100}, std::nan(""));
  EXPECT_EQ(model.times(), before);
}

}  // namespace
}  // namespace glm::engine
