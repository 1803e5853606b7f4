#include "engine/rank/batch.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

namespace glm::engine {
namespace {

/// Host memory that counts copies, and says of captures what it is told.
class HostDevice final : public Device {
 public:
  explicit HostDevice(bool can_capture) : Device(nullptr), can_capture_(can_capture) {}

  std::string Describe() const override { return "host"; }
  int64_t BytesFree() const override { return int64_t{1} << 30; }
  void* Allocate(int64_t bytes) override {
    allocated_bytes += bytes;
    memory_.emplace_back(bytes, char{0x55});
    return memory_.back().data();
  }
  void* AllocateHost(int64_t bytes) override {
    memory_.emplace_back(bytes, char{0x55});
    return memory_.back().data();
  }
  int64_t ScratchBytes(const StepLimits&) const override { return 0; }
  void PlanScratch(const StepLimits&) override {}
  void Seal() override {}
  void CopyToDevice(void* to, const void* from, int64_t bytes) override {
    ++copies;
    std::memcpy(to, from, bytes);
  }
  void CopyToHost(void* to, const void* from, int64_t bytes) override {
    std::memcpy(to, from, bytes);
  }
  void Fill(void* to, uint8_t byte, int64_t bytes) override { std::memset(to, byte, bytes); }
  void Synchronize() override {}
  std::unique_ptr<DeviceEvent> NewEvent() override { return nullptr; }
  bool CanCapture() const override { return can_capture_; }
  void BeginCapture() override {}
  std::unique_ptr<DeviceGraph> EndCapture() override { return nullptr; }

  int copies = 0;
  int64_t allocated_bytes = 0;

 private:
  const bool can_capture_;
  std::vector<std::vector<char>> memory_;
};

BatchLimits SmallLimits() {
  BatchLimits limits;
  limits.step.tokens_max = 100;
  limits.step.sequences_max = 10;
  limits.step.logit_rows_max = 10;
  limits.step.vocabulary = 7;
  limits.blocks_max = 9;
  limits.slots = 10;
  limits.steps_in_flight_max = 2;
  return limits;
}

/// Two sequences: 4 tokens of a prompt that go on, and a decode.
StepPlan TwoSequences() {
  StepPlan plan;
  plan.step = 8;
  plan.token_ids = {11, 12, 13, 14, ~3};
  plan.positions = {0, 1, 2, 3, 20};
  plan.token_sequences = {0, 0, 0, 0, 1};
  plan.query_starts = {0, 4, 5};
  plan.kv_lengths = {4, 21};
  plan.blocks_max = 5;
  plan.block_tables = {7, 0, 0, 0, 0, 1, 2, 3, 4, 5};
  plan.logit_tokens = {4};
  SampleRow row{};
  row.temperature = 0.5f;
  row.top_p = 0.9f;
  row.top_k = 4;
  row.position = 21;
  row.seed = 99;
  row.slot = 3;
  plan.sample_rows = {row};
  return plan;
}

std::vector<int32_t> Ints(const Tensor& tensor) {
  const auto* values = tensor.Data<int32_t>();
  return {values, values + tensor.elements()};
}

TEST(BatchTest, BucketsAreFewAndPadByLessThanHalf) {
  const std::pair<int64_t, int64_t> cases[] = {{1, 1},   {2, 2},   {3, 3},   {4, 4},   {5, 6},
                                               {6, 6},   {7, 8},   {9, 12},  {13, 16}, {17, 24},
                                               {25, 32}, {33, 48}, {64, 64}, {65, 96}, {97, 100}};
  for (const auto& [count, bucket] : cases) {
    EXPECT_EQ(Batch::Bucket(count, 100), bucket) << count;
  }
  for (int64_t count = 1; count <= 4096; ++count) {
    const int64_t bucket = Batch::Bucket(count, 4096);
    EXPECT_GE(bucket, count);
    EXPECT_LT(bucket, 1.5 * count + 0.5);
    EXPECT_EQ(Batch::Bucket(bucket, 4096), bucket);
    EXPECT_LE(bucket, Batch::Bucket(std::min<int64_t>(count + 1, 4096), 4096));
  }
}

TEST(BatchTest, ExactSizesWithoutCapture) {
  HostDevice device(/*can_capture=*/false);
  Batch batch(device, SmallLimits());
  const StepPlan plan = TwoSequences();
  batch.Upload(plan, 0);
  EXPECT_EQ(device.copies, 1);
  const BatchView& view = batch.view();
  EXPECT_EQ(Ints(view.token_ids), plan.token_ids);
  EXPECT_EQ(Ints(view.positions), plan.positions);
  EXPECT_EQ(Ints(view.token_sequences), plan.token_sequences);
  EXPECT_EQ(Ints(view.query_starts), plan.query_starts);
  EXPECT_EQ(Ints(view.kv_lengths), plan.kv_lengths);
  EXPECT_EQ(Ints(view.block_tables), plan.block_tables);
  CheckShape(view.block_tables, DType::kI32, {2, 5}, "block_tables");
  EXPECT_EQ(Ints(view.logit_tokens), plan.logit_tokens);
  EXPECT_EQ(Ints(view.counts), (std::vector<int32_t>{5, 2, 1}));
  EXPECT_EQ(Ints(view.last_ids), std::vector<int32_t>(10, 0));
  EXPECT_EQ(std::memcmp(batch.sample_rows(), plan.sample_rows.data(), sizeof(SampleRow)), 0);
  CheckShape(batch.logits(), DType::kF32, {1, 7}, "logits");
  CheckShape(batch.ids(), DType::kI32, {1}, "ids");
}

TEST(BatchTest, BucketsWithCapture) {
  HostDevice device(/*can_capture=*/true);
  Batch batch(device, SmallLimits());
  StepPlan plan = TwoSequences();
  batch.Upload(plan, 0);
  const BatchView& view = batch.view();
  EXPECT_EQ(batch.SizesOf(plan),
            (StepSizes{.tokens = 6, .sequences = 2, .logit_rows = 1, .blocks_max = 6}));
  EXPECT_EQ(Ints(view.token_ids), (std::vector<int32_t>{11, 12, 13, 14, ~3, 0}));
  EXPECT_EQ(Ints(view.token_sequences), (std::vector<int32_t>{0, 0, 0, 0, 1, 0}));
  EXPECT_EQ(Ints(view.block_tables), (std::vector<int32_t>{7, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 0}));
  EXPECT_EQ(Ints(view.counts), (std::vector<int32_t>{5, 2, 1}));

  // Five decodes: S and R are padded too.
  plan = StepPlan{};
  for (int32_t s = 0; s < 5; ++s) {
    plan.token_ids.push_back(~s);
    plan.positions.push_back(0);
    plan.token_sequences.push_back(s);
    plan.query_starts.assign(1, 0);
    plan.kv_lengths.push_back(1);
    plan.block_tables.push_back(s);
    plan.logit_tokens.push_back(s);
    plan.sample_rows.push_back(SampleRow{});
  }
  plan.query_starts = {0, 1, 2, 3, 4, 5};
  plan.blocks_max = 1;
  batch.Upload(plan, 1);
  EXPECT_EQ(Ints(view.query_starts), (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 5}));
  EXPECT_EQ(Ints(view.kv_lengths), (std::vector<int32_t>{1, 1, 1, 1, 1, 0}));
  EXPECT_EQ(Ints(view.logit_tokens), (std::vector<int32_t>{0, 1, 2, 3, 4, 0}));
  EXPECT_EQ(Ints(view.counts), (std::vector<int32_t>{5, 5, 5}));
  EXPECT_EQ(batch.sample_rows()[5].slot, -1);
  EXPECT_EQ(batch.sample_rows()[5].temperature, 0.0f);
}

TEST(BatchTest, SameSizesLieAtTheSamePlaces) {
  HostDevice device(/*can_capture=*/true);
  Batch batch(device, SmallLimits());
  StepPlan plan = TwoSequences();
  batch.Upload(plan, 0);
  const BatchView first = batch.view();
  const SampleRow* rows = batch.sample_rows();
  // One token more falls into the same bucket.
  plan.token_ids.insert(plan.token_ids.begin(), 10);
  plan.positions = {0, 1, 2, 3, 4, 20};
  plan.token_sequences = {0, 0, 0, 0, 0, 1};
  plan.query_starts = {0, 5, 6};
  plan.logit_tokens = {5};
  batch.Upload(plan, 1);
  const BatchView& second = batch.view();
  EXPECT_EQ(second.token_ids.data, first.token_ids.data);
  EXPECT_EQ(second.token_ids.shape, first.token_ids.shape);
  EXPECT_EQ(second.block_tables.data, first.block_tables.data);
  EXPECT_EQ(second.counts.data, first.counts.data);
  EXPECT_EQ(second.last_ids.data, first.last_ids.data);
  EXPECT_EQ(batch.sample_rows(), rows);
}

TEST(BatchTest, StepWithoutLogitsHasOneRowThatIsNotValid) {
  HostDevice device(/*can_capture=*/false);
  Batch batch(device, SmallLimits());
  StepPlan plan = TwoSequences();
  plan.logit_tokens.clear();
  plan.sample_rows.clear();
  batch.Upload(plan, 0);
  EXPECT_EQ(Ints(batch.view().counts), (std::vector<int32_t>{5, 2, 0}));
  EXPECT_EQ(batch.logits().shape[0], 1);
  EXPECT_EQ(batch.sample_rows()[0].slot, -1);
}

TEST(BatchTest, DownloadGoesToTheStepsOwnBuffer) {
  HostDevice device(/*can_capture=*/false);
  Batch batch(device, SmallLimits());
  batch.Upload(TwoSequences(), 0);
  batch.ids().Data<int32_t>()[0] = 5;
  batch.Download(0);
  batch.Upload(TwoSequences(), 1);
  batch.ids().Data<int32_t>()[0] = 6;
  batch.Download(1);
  EXPECT_EQ(batch.ids_host(0)[0], 5);
  EXPECT_EQ(batch.ids_host(1)[0], 6);
}

TEST(BatchTest, TheLargestStepFitsAndTakesThePlannedMemory) {
  HostDevice device(/*can_capture=*/true);
  const BatchLimits limits = SmallLimits();
  Batch batch(device, limits);
  EXPECT_EQ(device.allocated_bytes, Batch::DeviceBytes(limits));
  StepPlan plan;
  plan.query_starts = {0};
  plan.blocks_max = 9;
  for (int32_t s = 0; s < 10; ++s) {
    for (int32_t i = 0; i < 10; ++i) {
      plan.token_ids.push_back(i);
      plan.positions.push_back(i);
      plan.token_sequences.push_back(s);
    }
    plan.query_starts.push_back((s + 1) * 10);
    plan.kv_lengths.push_back(10);
    plan.logit_tokens.push_back((s + 1) * 10 - 1);
    plan.sample_rows.push_back(SampleRow{});
  }
  plan.block_tables.assign(90, 3);
  batch.Upload(plan, 0);
  EXPECT_EQ(Ints(batch.view().counts), (std::vector<int32_t>{100, 10, 10}));
}

TEST(BatchDeathTest, RefusesAPlanThatDoesNotAgreeWithItself) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  HostDevice device(/*can_capture=*/false);
  Batch batch(device, SmallLimits());
  StepPlan plan = TwoSequences();
  plan.positions.pop_back();
  EXPECT_DEATH(batch.Upload(plan, 0), "positions");
  plan = TwoSequences();
  plan.block_tables.pop_back();
  EXPECT_DEATH(batch.Upload(plan, 0), "block_tables");
  plan = TwoSequences();
  plan.blocks_max = 10;
  EXPECT_DEATH(batch.Upload(plan, 0), "blocks_max");
}

}  // namespace
}  // namespace glm::engine
