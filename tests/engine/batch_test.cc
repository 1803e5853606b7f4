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
    host_bytes += bytes;
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
  int64_t host_bytes = 0;

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
  limits.vocabulary_used = 70;  // three words of a mask
  limits.drafts_max = 3;
  limits.edits_max = 20;
  limits.edit_contexts_max = 30;
  limits.masks_max = 5;
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

/// The same with all that a plan may have.
StepPlan FullPlan() {
  StepPlan plan = TwoSequences();
  plan.logit_tokens = {3, 4};
  plan.sample_rows.push_back(plan.sample_rows[0]);
  plan.sample_rows[0].edits_count = 2;
  plan.sample_rows[1].mask = 1;
  plan.sample_rows[1].logprobs = 2;
  plan.edits = {{.id = 3, .add = 1.5f}, {.id = 6, .context_begin = 1, .context_count = 4}, {}};
  plan.edit_contexts = {9, 8, 7, 6, 5};
  plan.masks = {1, 2, 3, 4, 5, 6};
  plan.logprobs = true;
  plan.next_ids = {12, 13, 14, ~0, ~1};
  plan.draft_rows = {{.sequence = 1, .first_logit_row = 1, .drafts = 0}};
  plan.drafts = 2;
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

TEST(BatchTest, BucketsOfManyTokensAreFine) {
  EXPECT_EQ(Batch::TokenBucket(5, 8192), 6);
  EXPECT_EQ(Batch::TokenBucket(1000, 8192), 1024);
  EXPECT_EQ(Batch::TokenBucket(1025, 8192), 1152);
  EXPECT_EQ(Batch::TokenBucket(8000, 8192), 8064);
  EXPECT_EQ(Batch::TokenBucket(8100, 8150), 8150);
}

TEST(BatchTest, TablesOfLongSequencesHaveFewWidths) {
  EXPECT_EQ(Batch::TableBucket(1, 3000), 256);
  EXPECT_EQ(Batch::TableBucket(256, 3000), 256);
  EXPECT_EQ(Batch::TableBucket(257, 3000), 1024);
  EXPECT_EQ(Batch::TableBucket(1025, 3000), 3000);
  EXPECT_EQ(Batch::TableBucket(5, 9), 9);
}

/// A plan of sequences of so many tokens, behind so many cached ones.
StepPlan PlanOf(const std::vector<std::pair<int32_t, int32_t>>& sequences) {
  StepPlan plan;
  plan.query_starts = {0};
  plan.blocks_max = 1;
  for (size_t s = 0; s < sequences.size(); ++s) {
    const auto [tokens, cached] = sequences[s];
    for (int32_t t = 0; t < tokens; ++t) {
      plan.token_ids.push_back(1);
      plan.positions.push_back(cached + t);
      plan.token_sequences.push_back(static_cast<int32_t>(s));
    }
    plan.query_starts.push_back(static_cast<int32_t>(plan.token_ids.size()));
    plan.kv_lengths.push_back(cached + tokens);
    plan.block_tables.push_back(0);
  }
  return plan;
}

TEST(BatchTest, SaysWhereWholePromptsBegin) {
  BatchLimits limits = SmallLimits();
  limits.step.tokens_max = 8192;
  for (const bool can_capture : {false, true}) {
    HostDevice device(can_capture);
    Batch batch(device, limits);
    const auto begin = [&](const std::vector<std::pair<int32_t, int32_t>>& sequences) {
      return batch.SizesOf(PlanOf(sequences)).prompts_begin;
    };
    EXPECT_EQ(begin({{2000, 0}}), 0);
    EXPECT_EQ(begin({{1, 50}, {1, 60}, {700, 0}, {700, 0}}), 2);
    EXPECT_EQ(begin({{700, 0}, {1, 50}, {700, 0}}), -1) << "too few behind the last decode";
    EXPECT_EQ(begin({{1, 50}, {2000, 64}}), -1) << "a part of the prompt is cached";
    EXPECT_EQ(begin({{2000, 0}, {kWholePromptMin - 1, 0}}), -1) << "the last prompt is short";
    EXPECT_EQ(begin({{1, 9}, {1, 9}, {1, 9}, {1, 9}, {1, 9}, {2000, 0}}), can_capture ? 6 : 5);
    EXPECT_EQ(begin({{4, 0}}), -1);
    batch.Upload(PlanOf({{1, 50}, {2000, 0}}), 0);
    EXPECT_EQ(batch.view().prompts_begin, 1);
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
  const SampleArgs args = batch.sample_args({});
  EXPECT_TRUE(args.masks.empty());
  EXPECT_TRUE(args.logprobs.values.empty());
  EXPECT_EQ(args.vocabulary_used, 70);
  CheckShape(batch.logits(), DType::kF32, {1, 7}, "logits");
  CheckShape(batch.ids(), DType::kI32, {1}, "ids");
}

TEST(BatchTest, FewLogitRowsAreABatchOfTheirOwn) {
  HostDevice device(/*can_capture=*/false);
  Batch batch(device, SmallLimits());
  StepPlan plan = TwoSequences();
  batch.Upload(plan, 0);
  ASSERT_NE(batch.logit_row_view(), nullptr);
  const BatchView rows = *batch.logit_row_view();
  EXPECT_EQ(Ints(rows.token_ids), std::vector<int32_t>{~3});
  EXPECT_EQ(Ints(rows.positions), std::vector<int32_t>{20});
  EXPECT_EQ(Ints(rows.token_sequences), std::vector<int32_t>{1});
  EXPECT_EQ(Ints(rows.query_starts), (std::vector<int32_t>{0, 0, 1}));
  EXPECT_EQ(Ints(rows.kv_lengths), (std::vector<int32_t>{0, 21}));
  EXPECT_EQ(Ints(rows.logit_tokens), std::vector<int32_t>{0});
  EXPECT_EQ(Ints(rows.counts), (std::vector<int32_t>{1, 2, 1}));
  EXPECT_EQ(rows.block_tables.data, batch.view().block_tables.data);

  plan.logit_tokens = {3, 4};  // of five
  plan.sample_rows.push_back(plan.sample_rows[0]);
  batch.Upload(plan, 0);
  EXPECT_EQ(batch.logit_row_view(), nullptr);

  // A draft layer wants the hidden states of all.
  plan = TwoSequences();
  plan.next_ids = {12, 13, 14, 15, ~0};
  batch.Upload(plan, 0);
  EXPECT_EQ(batch.logit_row_view(), nullptr);
}

TEST(BatchTest, BucketsWithCapture) {
  HostDevice device(/*can_capture=*/true);
  Batch batch(device, SmallLimits());
  StepPlan plan = TwoSequences();
  batch.Upload(plan, 0);
  const BatchView& view = batch.view();
  EXPECT_EQ(
      batch.SizesOf(plan),
      (StepSizes{
          .tokens = 6, .sequences = 2, .logit_rows = 1, .blocks_max = 9, .rows_apart = true}));
  EXPECT_EQ(Ints(view.token_ids), (std::vector<int32_t>{11, 12, 13, 14, ~3, 0}));
  EXPECT_EQ(Ints(view.token_sequences), (std::vector<int32_t>{0, 0, 0, 0, 1, 0}));
  EXPECT_EQ(Ints(view.block_tables),
            (std::vector<int32_t>{7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 0, 0, 0, 0}));
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

/// Two ranks: each draws from its own columns, unless some row needs all.
TEST(BatchTest, SaysWhichStepsNeedWholeLogits) {
  BatchLimits limits = SmallLimits();
  limits.step.vocabulary = 8;
  limits.step.vocabulary_slices = 2;
  for (const bool can_capture : {false, true}) {
    HostDevice device(can_capture);
    Batch batch(device, limits);
    BatchLimits alone_limits = limits;
    alone_limits.step.vocabulary_slices = 1;
    const Batch alone(device, alone_limits);
    StepPlan plan = TwoSequences();
    const auto whole = [&](const SampleRow& row) {
      // Behind a row that does not.
      plan.sample_rows = {SampleRow{.temperature = 1}, row};
      plan.logit_tokens = {3, 4};
      EXPECT_FALSE(alone.SizesOf(plan).whole_logits);
      return batch.SizesOf(plan).whole_logits;
    };
    EXPECT_FALSE(whole({}));
    EXPECT_FALSE(whole({.temperature = 0.7f}));
    EXPECT_FALSE(whole({.temperature = 0, .top_p = 0.5f, .min_p = 0.1f, .top_k = 4}));
    EXPECT_FALSE(whole({.temperature = 1,
                        .repetition_penalty = 2,
                        .frequency_penalty = 1,
                        .presence_penalty = 1,
                        .mask = 0,
                        .edits_count = 3}));
    EXPECT_TRUE(whole({.temperature = 0.7f, .top_p = 0.99f}));
    EXPECT_TRUE(whole({.temperature = 0.7f, .min_p = 0.01f}));
    EXPECT_TRUE(whole({.temperature = 0.7f, .top_k = 1}));
    EXPECT_TRUE(whole({.target_id = 0}));
    EXPECT_TRUE(whole({.logprobs = 0}));

    plan = TwoSequences();  // has limits
    batch.Upload(plan, 0);
    EXPECT_TRUE(batch.sizes().whole_logits);
    CheckShape(batch.logits(), DType::kF32, {1, 8}, "logits");
    const void* memory = batch.logits().data;
    plan = FullPlan();
    for (SampleRow& row : plan.sample_rows) row.logprobs = -1;
    for (SampleRow& row : plan.sample_rows) row.temperature = 0;
    plan.logprobs = false;
    batch.Upload(plan, 0);
    EXPECT_FALSE(batch.sizes().whole_logits);
    CheckShape(batch.logits(), DType::kF32, {2, 4}, "logits");
    CheckShape(batch.draft_logits(), DType::kF32, {1, 4}, "draft_logits");
    EXPECT_TRUE(batch.logits().contiguous());
    EXPECT_EQ(batch.logits().data, memory);
  }
}

TEST(BatchTest, DownloadGoesToTheStepsOwnBuffer) {
  HostDevice device(/*can_capture=*/false);
  Batch batch(device, SmallLimits());
  batch.Upload(TwoSequences(), 0);
  const StepSizes sizes = batch.sizes();
  batch.ids().Data<int32_t>()[0] = 5;
  batch.Download(0);
  batch.Upload(FullPlan(), 1);
  batch.ids().Data<int32_t>()[0] = 6;
  batch.Download(1);
  StepResult result;
  batch.Read(0, sizes, 1, 0, &result);
  EXPECT_EQ(result.ids, (std::vector<int32_t>{5}));
  EXPECT_TRUE(result.drafts.empty());
  EXPECT_TRUE(result.logprobs.values.empty());
  batch.Read(1, batch.sizes(), 2, 1, &result);
  EXPECT_EQ(result.ids[0], 6);
}

TEST(BatchTest, EditsMasksAndTheDraftLayersArrays) {
  for (const bool can_capture : {false, true}) {
    HostDevice device(can_capture);
    Batch batch(device, SmallLimits());
    StepPlan plan = FullPlan();
    plan.edits.resize(5);  // five fall into the bucket of six
    plan.masks.resize(9, 7u);
    batch.Upload(plan, 1);
    EXPECT_EQ(batch.sizes().edits, can_capture ? 6 : 5);
    const SampleArgs args = batch.sample_args({});
    EXPECT_EQ(std::memcmp(args.edits, plan.edits.data(), 5 * sizeof(LogitEdit)), 0);
    EXPECT_EQ(std::vector<int32_t>(args.edit_contexts, args.edit_contexts + 5), plan.edit_contexts);
    CheckShape(args.masks, DType::kI32, {3, 3}, "masks");
    EXPECT_EQ(std::memcmp(args.masks.data, plan.masks.data(), 9 * 4), 0);
    CheckShape(args.logprobs.values, DType::kF32, {2, 1 + kLogprobsMax}, "values");
    CheckShape(args.logprobs.ids, DType::kI32, {2, 1 + kLogprobsMax}, "ids");
    CheckShape(args.logprobs.ranks, DType::kI32, {2}, "ranks");

    const BatchView& next = batch.next_view();
    std::vector<int32_t> next_ids = Ints(next.token_ids);
    EXPECT_EQ(next_ids.size(), can_capture ? 6u : 5u);
    next_ids.resize(5);
    EXPECT_EQ(next_ids, plan.next_ids);
    EXPECT_EQ(next.positions.data, batch.view().positions.data);
    EXPECT_EQ(next.last_ids.data, batch.ids().data);
    EXPECT_EQ(Ints(next.counts), (std::vector<int32_t>{5, 2, 1}));
    EXPECT_EQ(Ints(batch.view().counts), (std::vector<int32_t>{5, 2, 2}));
    EXPECT_EQ(Ints(batch.draft_count()), (std::vector<int32_t>{1}));
    EXPECT_EQ(std::memcmp(batch.draft_rows(), plan.draft_rows.data(), sizeof(DraftRow)), 0);
    CheckShape(batch.draft_ids(1), DType::kI32, {1}, "draft_ids");
    CheckShape(batch.draft_logits(), DType::kF32, {1, 7}, "draft_logits");
  }
}

TEST(BatchTest, ReadGivesWhatTheStepLeft) {
  HostDevice device(/*can_capture=*/true);
  Batch batch(device, SmallLimits());
  StepPlan plan = FullPlan();
  plan.drafts = 3;
  for (int32_t s = 0; s < 4; ++s) plan.draft_rows.push_back(plan.draft_rows[0]);
  batch.Upload(plan, 0);
  ASSERT_EQ(batch.sizes().draft_rows, 6);
  const SampleArgs args = batch.sample_args({});
  for (int32_t r = 0; r < 2; ++r) {
    args.out_ids.Data<int32_t>()[r] = 40 + r;
    args.logprobs.ranks.Data<int32_t>()[r] = 50 + r;
    for (int32_t i = 0; i <= kLogprobsMax; ++i) {
      args.logprobs.values.Row<float>(r)[i] = static_cast<float>(-r - i);
      args.logprobs.ids.Row<int32_t>(r)[i] = 100 * r + i;
    }
  }
  for (int32_t k = 0; k < 3; ++k) {
    for (int32_t d = 0; d < 5; ++d) batch.draft_ids(k).Data<int32_t>()[d] = 10 * d + k;
  }
  batch.Download(0);
  StepResult result;
  batch.Read(0, batch.sizes(), 2, 5, &result);
  EXPECT_EQ(result.ids, (std::vector<int32_t>{40, 41}));
  EXPECT_EQ(result.drafts,
            (std::vector<int32_t>{0, 1, 2, 10, 11, 12, 20, 21, 22, 30, 31, 32, 40, 41, 42}));
  ASSERT_EQ(result.logprobs.values.size(), 2u * (1 + kLogprobsMax));
  EXPECT_EQ(result.logprobs.values[1 + kLogprobsMax + 3], -4.0f);
  EXPECT_EQ(result.logprobs.ids[1 + kLogprobsMax + 3], 103);
  EXPECT_EQ(result.logprobs.ranks, (std::vector<int32_t>{50, 51}));
}

TEST(BatchTest, TheLargestStepFitsAndTakesThePlannedMemory) {
  HostDevice device(/*can_capture=*/true);
  const BatchLimits limits = SmallLimits();
  Batch batch(device, limits);
  EXPECT_EQ(device.allocated_bytes, Batch::DeviceBytes(limits));
  EXPECT_EQ(device.host_bytes, Batch::HostBytes(limits));
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
  plan.edits.resize(20);
  plan.edit_contexts.resize(30);
  plan.masks.resize(5 * 3);
  plan.logprobs = true;
  plan.next_ids = plan.token_ids;
  plan.draft_rows.resize(10);
  plan.drafts = 3;
  batch.Upload(plan, 0);
  batch.Download(0);
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
  plan = FullPlan();
  plan.next_ids.pop_back();
  EXPECT_DEATH(batch.Upload(plan, 0), "next_ids");
  plan = FullPlan();
  plan.edits.resize(21);
  EXPECT_DEATH(batch.Upload(plan, 0), "edits");
  plan = FullPlan();
  plan.masks.pop_back();
  EXPECT_DEATH(batch.Upload(plan, 0), "masks");
  plan = FullPlan();
  plan.drafts = 4;
  EXPECT_DEATH(batch.Upload(plan, 0), "drafts");
  plan = FullPlan();
  plan.next_ids.clear();
  EXPECT_DEATH(batch.Upload(plan, 0), "drafts without the draft layer");
}

}  // namespace
}  // namespace glm::engine
