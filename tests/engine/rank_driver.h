// Sequences driven through ranks by hand-made plans: what a scheduler does at its simplest, every
// sequence in every step, with drafts or without.
//
// Who calls: tests of drafting on the rank.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "engine/model/glm.h"
#include "engine/rank/rank_group.h"

namespace glm::test {

struct DriverOptions {
  int32_t ranks = 1;
  int32_t drafts = 0;    // K
  int32_t chunk = 1000;  // tokens of a prompt in one step
  DType dtype = DType::kF32;
  int32_t sequences_max = 8;
  const char* device = "cpu";
  int64_t overlap_tokens_min = engine::GlmOptions{}.overlap_tokens_min;
};

class RankDriver {
 public:
  static constexpr int32_t kBlockSize = 16;
  static constexpr int32_t kBlocksMax = 24;

  RankDriver(const std::string& folder, const DriverOptions& options) : options_(options) {
    const auto config = engine::ModelConfig::Read(folder);
    EXPECT_TRUE(config.ok()) << config.status();
    engine::RankOptions rank;
    rank.folder = folder;
    rank.device = options.device;
    // Ranks on a GPU share the first one.
    if (rank.device == "cuda") rank.ranks_per_device = options.ranks;
    rank.overlap_tokens_min = options.overlap_tokens_min;
    rank.dtype = rank.kv_dtype = options.dtype;
    rank.kv_blocks = int64_t{options.sequences_max} * kBlocksMax;
    rank.block_size = kBlockSize;
    StepLimits limits;
    limits.tokens_max = 2048;
    limits.sequences_max = options.sequences_max;
    limits.logit_rows_max = int64_t{options.sequences_max} * (1 + options.drafts);
    rank.batch.step = engine::Glm::CompleteLimits(config->OfRank(options.ranks), limits);
    rank.batch.blocks_max = kBlocksMax;
    rank.batch.slots = options.sequences_max;
    rank.batch.vocabulary_used = config->vocabulary_used;
    rank.batch.drafts_max = options.drafts;
    auto group = engine::RankGroup::Start(rank, *config, options.ranks);
    EXPECT_TRUE(group.ok()) << group.status();
    ranks_ = *std::move(group);
  }

  /// Adds a sequence that is to generate `count` tokens as `row` says.
  void Add(std::vector<int32_t> prompt, int32_t count, SampleRow row) {
    Sequence sequence;
    sequence.prompt = static_cast<int32_t>(prompt.size());
    sequence.ids = std::move(prompt);
    sequence.end = sequence.prompt + count;
    sequence.row = row;
    sequences_.push_back(std::move(sequence));
  }

  /// Runs until all are done; returns the generated tokens of each.
  std::vector<std::vector<int32_t>> Run() {
    while (Step()) {
    }
    std::vector<std::vector<int32_t>> generated;
    for (const Sequence& sequence : sequences_) {
      generated.emplace_back(sequence.ids.begin() + sequence.prompt, sequence.ids.end());
    }
    return generated;
  }

  int64_t steps() const { return steps_; }
  /// How often the k-th draft was judged, and was right.
  const std::vector<int64_t>& judged() const { return judged_; }
  const std::vector<int64_t>& accepted() const { return accepted_; }
  /// Prompt and what was generated.
  const std::vector<int32_t>& ids(size_t sequence) const { return sequences_[sequence].ids; }
  bool done(size_t sequence) const {
    return static_cast<int32_t>(ids(sequence).size()) >= sequences_[sequence].end;
  }
  /// The newest drafts of a sequence.
  const std::vector<int32_t>& drafts(size_t sequence) const { return sequences_[sequence].drafts; }

  /// One step of all sequences that are not done; false: there is none.
  bool Step() {
    engine::StepPlan plan;
    plan.step = static_cast<uint64_t>(++steps_);
    plan.query_starts = {0};
    plan.blocks_max = kBlocksMax;
    std::vector<size_t> members;
    for (size_t s = 0; s < sequences_.size(); ++s) {
      if (static_cast<int32_t>(sequences_[s].ids.size()) >= sequences_[s].end) continue;
      members.push_back(s);
      AddTo(&plan, s);
    }
    if (members.empty()) return false;
    ranks_->Submit(&plan);
    const engine::StepResult result = ranks_->Wait();
    EXPECT_EQ(result.ids.size(), plan.logit_tokens.size());
    EXPECT_EQ(result.drafts.size(), plan.draft_rows.size() * plan.drafts);
    for (size_t i = 0; i < members.size(); ++i) Take(result, &sequences_[members[i]]);
    return true;
  }

 private:
  struct Sequence {
    std::vector<int32_t> ids;  // prompt and what was generated
    std::vector<int32_t> drafts;
    int32_t prompt = 0;
    int32_t end = 0;
    int32_t computed = 0;
    SampleRow row;
    // Of the newest plan.
    int32_t tokens = 0;
    int32_t drafts_planned = 0;
    int32_t logit_row = -1;
    int32_t draft_row = -1;
  };

  void AddTo(engine::StepPlan* plan, size_t index) {
    Sequence& sequence = sequences_[index];
    const auto known = static_cast<int32_t>(sequence.ids.size());
    const auto member = static_cast<int32_t>(plan->kv_lengths.size());
    sequence.tokens = std::min(known - sequence.computed, options_.chunk);
    const bool samples = sequence.computed + sequence.tokens == known;
    sequence.drafts_planned = 0;
    std::vector<int32_t> ids(sequence.ids.begin() + sequence.computed,
                             sequence.ids.begin() + sequence.computed + sequence.tokens);
    if (samples) {
      sequence.drafts_planned =
          std::min<int32_t>(static_cast<int32_t>(sequence.drafts.size()), sequence.end - known - 1);
      ids.insert(ids.end(), sequence.drafts.begin(),
                 sequence.drafts.begin() + sequence.drafts_planned);
    }
    const auto count = static_cast<int32_t>(ids.size());
    const auto first = static_cast<int32_t>(plan->token_ids.size());
    sequence.logit_row = samples ? static_cast<int32_t>(plan->logit_tokens.size()) : -1;
    for (int32_t i = 0; i < count; ++i) {
      plan->token_ids.push_back(ids[i]);
      plan->positions.push_back(sequence.computed + i);
      plan->token_sequences.push_back(member);
    }
    for (int32_t i = 0; i < count && samples; ++i) {
      if (i < count - 1 - sequence.drafts_planned) continue;
      plan->logit_tokens.push_back(first + i);
      SampleRow row = sequence.row;
      row.position = static_cast<uint32_t>(sequence.computed + i + 1);
      row.sequence = member;
      row.prompt_tokens = sequence.prompt;
      plan->sample_rows.push_back(row);
    }
    AddDrafting(plan, &sequence, member, count);
    plan->query_starts.push_back(first + count);
    plan->kv_lengths.push_back(sequence.computed + count);
    for (int32_t b = 0; b < kBlocksMax; ++b) {
      plan->block_tables.push_back(static_cast<int32_t>(index) * kBlocksMax + b);
    }
  }

  void AddDrafting(engine::StepPlan* plan, Sequence* sequence, int32_t member, int32_t count) {
    sequence->draft_row = -1;
    if (options_.drafts == 0) return;
    for (int32_t i = 0; i < count; ++i) {
      const int32_t next = sequence->computed + i + 1;
      const int32_t row = sequence->logit_row + i - (count - 1 - sequence->drafts_planned);
      const bool drawn = sequence->logit_row >= 0 && i >= count - 1 - sequence->drafts_planned;
      plan->next_ids.push_back(drawn ? ~row : sequence->ids[next]);
    }
    if (sequence->logit_row < 0) return;
    sequence->draft_row = static_cast<int32_t>(plan->draft_rows.size());
    plan->draft_rows.push_back({member, sequence->logit_row, sequence->drafts_planned});
    plan->drafts = options_.drafts;
  }

  void Take(const engine::StepResult& result, Sequence* sequence) {
    sequence->computed += sequence->tokens;
    if (sequence->logit_row < 0) return;
    judged_.resize(options_.drafts);
    accepted_.resize(options_.drafts);
    for (int32_t i = 0; i <= sequence->drafts_planned; ++i) {
      const int32_t id = result.ids[sequence->logit_row + i];
      sequence->ids.push_back(id);
      if (i == sequence->drafts_planned) break;
      ++judged_[i];
      if (sequence->drafts[i] != id) break;
      ++accepted_[i];
      ++sequence->computed;
    }
    if (sequence->draft_row < 0) return;
    const auto begin = result.drafts.begin() + int64_t{sequence->draft_row} * options_.drafts;
    sequence->drafts.assign(begin, begin + options_.drafts);
  }

  const DriverOptions options_;
  std::unique_ptr<engine::RankGroup> ranks_;
  std::vector<Sequence> sequences_;
  int64_t steps_ = 0;
  std::vector<int64_t> judged_;
  std::vector<int64_t> accepted_;
};

}  // namespace glm::test
