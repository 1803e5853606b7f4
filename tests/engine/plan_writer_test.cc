#include "engine/schedule/plan_writer.h"

#include <gtest/gtest.h>

#include <cmath>

namespace glm::engine {
namespace {

using Ids = std::vector<int32_t>;

SchedulerLimits Limits(int32_t drafts_max = 0) {
  SchedulerLimits limits;
  limits.block_size = 4;
  limits.vocabulary = 70;
  limits.drafts_max = drafts_max;
  return limits;
}

Sequence MakeSequence(const Ids& tokens, int32_t prompt_tokens) {
  Sequence sequence;
  sequence.tokens = tokens;
  sequence.prompt_tokens = prompt_tokens;
  sequence.slot = 3;
  sequence.blocks = {5, 6, 7};
  return sequence;
}

TEST(PlanWriterTest, ARowSaysEverythingAboutItsDraw) {
  Sequence sequence = MakeSequence({1, 2, 3, 4}, 4);
  sequence.generated_before = 1;
  sequence.sampling.temperature = 0.5f;
  sequence.sampling.top_p = 0.9f;
  sequence.sampling.min_p = 0.1f;
  sequence.sampling.top_k = 7;
  sequence.sampling.repetition_penalty = 1.5f;
  sequence.sampling.frequency_penalty = 0.25f;
  sequence.sampling.presence_penalty = -0.5f;
  sequence.sampling.seed = 99;
  sequence.sampling.choice = 2;
  sequence.sampling.logprobs = 4;
  StepPlan plan;
  PlanWriter writer(Limits());
  writer.Begin(8, 0, &plan);
  const PlannedRow planned = writer.Add(&sequence, 4, 0, false);
  writer.Finish({planned});
  EXPECT_TRUE(planned.samples);
  EXPECT_EQ(plan.step, 8u);
  EXPECT_EQ(plan.block_tables, (Ids{5})) << "as far as this step goes";
  EXPECT_TRUE(plan.next_ids.empty());
  ASSERT_EQ(plan.sample_rows.size(), 1u);
  const SampleRow& row = plan.sample_rows[0];
  EXPECT_EQ(row.temperature, 0.5f);
  EXPECT_EQ(row.top_p, 0.9f);
  EXPECT_EQ(row.min_p, 0.1f);
  EXPECT_EQ(row.top_k, 7);
  EXPECT_EQ(row.repetition_penalty, 1.5f);
  EXPECT_EQ(row.frequency_penalty, 0.25f);
  EXPECT_EQ(row.presence_penalty, -0.5f);
  EXPECT_EQ(row.position, 4u);
  EXPECT_EQ(row.seed, 99u);
  EXPECT_EQ(row.choice, 2u);
  EXPECT_EQ(row.sequence, 0);
  EXPECT_EQ(row.prompt_tokens, 3) << "what was generated before is not the prompt";
  EXPECT_EQ(row.slot, 3);
  EXPECT_EQ(row.target_id, -1);
  EXPECT_EQ(row.logprobs, 4);
  EXPECT_EQ(row.mask, -1);
  EXPECT_EQ(row.edits_count, 0);
  EXPECT_TRUE(plan.logprobs);
}

TEST(PlanWriterTest, EditsOfARequestAndUntilWhenTheyHold) {
  Sequence sequence = MakeSequence({1, 2, 3, 4}, 4);
  sequence.sampling.logit_bias = {{10, 2.0f}};
  sequence.sampling.bad_words = {{20}, {21, 22, 23}};
  sequence.stop.stop_ids = {30, 31};
  sequence.stop.min_tokens = 2;
  PrepareEdits(70, &sequence);
  Sequence other = MakeSequence({9}, 1);
  other.sampling.bad_words = {{40, 41}};
  PrepareEdits(70, &other);

  StepPlan plan;
  PlanWriter writer(Limits());
  writer.Begin(1, 0, &plan);
  writer.Add(&other, 1, 0, false);
  writer.Add(&sequence, 4, 0, false);
  ASSERT_EQ(plan.edits.size(), 6u);
  EXPECT_EQ(plan.sample_rows[0].edits_count, 1);
  EXPECT_EQ(plan.sample_rows[1].edits_begin, 1);
  EXPECT_EQ(plan.sample_rows[1].edits_count, 5);
  EXPECT_EQ(plan.edit_contexts, (Ids{40, 21, 22}));
  EXPECT_EQ(plan.edits[1].add, 2.0f);
  EXPECT_EQ(plan.edits[2].id, 20);
  EXPECT_EQ(plan.edits[2].context_count, 0);
  EXPECT_TRUE(std::isinf(plan.edits[3].add));
  EXPECT_EQ(plan.edits[3].id, 23);
  EXPECT_EQ(plan.edits[3].context_begin, 1);
  EXPECT_EQ(plan.edits[3].context_count, 2);
  EXPECT_EQ(plan.edits[4].id, 30);
  EXPECT_EQ(plan.edits[4].until_position, 6) << "no stop id among the first two tokens";

  // With two tokens there, the bans are no longer sent.
  sequence.tokens.insert(sequence.tokens.end(), {5, 6});
  sequence.planned = 5;
  writer.Begin(2, 0, &plan);
  writer.Add(&sequence, 1, 0, false);
  EXPECT_EQ(plan.edits.size(), 3u);
}

/// Only the id that is one more than the last may follow.
class CountingMask final : public TokenMask {
 public:
  void Restrict(std::span<const int32_t> generated, std::span<uint32_t> words) const override {
    const int32_t next = generated.empty() ? 0 : generated.back() + 1;
    for (size_t i = 0; i < words.size(); ++i) {
      words[i] &= static_cast<int32_t>(i) == next / 32 ? 1u << (next % 32) : 0;
    }
  }
};

TEST(PlanWriterTest, MasksOfAllowedIdsAreSharedAndThoseOfATokenMaskAreEachRows) {
  Sequence listed = MakeSequence({1, 2, 3}, 2);
  listed.planned = 2;
  listed.drafts = {4};
  listed.sampling.allowed_ids = {0, 33, 69};
  PrepareEdits(70, &listed);
  Sequence masked = MakeSequence({1, 2, 40}, 2);
  masked.planned = 2;
  masked.drafts = {41};
  masked.token_mask = std::make_shared<CountingMask>();
  PrepareEdits(70, &masked);
  StepPlan plan;
  PlanWriter writer(Limits(1));
  writer.Begin(1, 1, &plan);
  writer.Add(&listed, 2, 1, false);
  writer.Add(&masked, 2, 1, false);
  ASSERT_EQ(plan.sample_rows.size(), 4u);
  EXPECT_EQ(plan.sample_rows[0].mask, 0);
  EXPECT_EQ(plan.sample_rows[1].mask, 0);
  EXPECT_EQ(plan.sample_rows[2].mask, 1);
  EXPECT_EQ(plan.sample_rows[3].mask, 2);
  EXPECT_EQ(plan.masks, (std::vector<uint32_t>{1, 2, 1u << 5,             // listed
                                               0, 1u << (41 % 32), 0,     // after 40
                                               0, 1u << (42 % 32), 0}));  // after 40, 41
}

TEST(PlanWriterTest, DraftsAreJudgedByARowEachAndMadeBehindThem) {
  Sequence sequence = MakeSequence({1, 2, 3, 4, 5}, 4);
  sequence.planned = 4;
  sequence.drafts = {6, 7};
  Sequence prompt = MakeSequence({11, 12, 13}, 3);
  prompt.blocks = {8};
  StepPlan plan;
  PlanWriter writer(Limits(3));
  writer.Begin(1, 3, &plan);
  const PlannedRow first = writer.Add(&sequence, 3, 2, true);
  const PlannedRow second = writer.Add(&prompt, 2, 0, false);
  writer.Finish({first, second});
  EXPECT_EQ(plan.token_ids, (Ids{5, 6, 7, 11, 12}));
  EXPECT_EQ(plan.positions, (Ids{4, 5, 6, 0, 1}));
  EXPECT_EQ(plan.logit_tokens, (Ids{0, 1, 2}));
  EXPECT_EQ(plan.next_ids, (Ids{~0, ~1, ~2, 12, 13})) << "the next prompt token across chunks";
  for (int32_t j = 0; j < 3; ++j) {
    EXPECT_EQ(plan.sample_rows[j].position, static_cast<uint32_t>(5 + j));
    EXPECT_EQ(plan.sample_rows[j].slot, -1);
  }
  ASSERT_EQ(plan.draft_rows.size(), 1u);
  EXPECT_EQ(plan.draft_rows[0].sequence, 0);
  EXPECT_EQ(plan.draft_rows[0].first_logit_row, 0);
  EXPECT_EQ(plan.draft_rows[0].drafts, 2);
  EXPECT_EQ(plan.drafts, 3);
  // 7 tokens, and 2 positions that the draft layer runs ahead.
  EXPECT_EQ(plan.blocks_max, 3);
  EXPECT_EQ(plan.block_tables, (Ids{5, 6, 7, 8, 0, 0}));
}

TEST(PlanWriterTest, PromptLogprobsAreRowsWithTargets) {
  Sequence sequence = MakeSequence({1, 2, 3, 4, 5}, 5);
  sequence.generated_before = 1;
  sequence.sampling.prompt_logprobs = 2;
  StepPlan plan;
  PlanWriter writer(Limits());
  writer.Begin(1, 0, &plan);
  const PlannedRow chunk = writer.Add(&sequence, 2, 0, false);
  EXPECT_EQ(chunk.score_rows, 2);
  EXPECT_FALSE(chunk.samples);
  sequence.planned = 2;
  sequence.score_next += 2;
  const PlannedRow rest = writer.Add(&sequence, 3, 0, false);
  EXPECT_EQ(rest.score_rows, 1) << "the last prompt token is at position 3";
  EXPECT_TRUE(rest.samples);
  EXPECT_EQ(plan.logit_tokens, (Ids{0, 1, 2, 4}));
  EXPECT_EQ(plan.sample_rows[0].target_id, 2);
  EXPECT_EQ(plan.sample_rows[1].target_id, 3);
  EXPECT_EQ(plan.sample_rows[2].target_id, 4);
  EXPECT_EQ(plan.sample_rows[2].position, 3u);
  EXPECT_EQ(plan.sample_rows[2].logprobs, 2);
  EXPECT_EQ(plan.sample_rows[2].slot, -1);
  EXPECT_EQ(plan.sample_rows[3].target_id, -1);
  EXPECT_EQ(plan.sample_rows[3].logprobs, -1);
}

}  // namespace
}  // namespace glm::engine
