#include "engine/schedule/plan_writer.h"

#include <algorithm>
#include <limits>

#include "proto/base/log.h"

namespace glm::engine {
namespace {

constexpr float kBan = -std::numeric_limits<float>::infinity();

size_t MaskWords(int32_t vocabulary) { return (static_cast<size_t>(vocabulary) + 31) / 32; }

}  // namespace

void PrepareEdits(int32_t vocabulary, Sequence* sequence) {
  const SamplingParams& sampling = sequence->sampling;
  for (const LogitBias& bias : sampling.logit_bias) {
    sequence->edits.push_back({.id = bias.id, .add = bias.add});
  }
  for (const std::vector<int32_t>& word : sampling.bad_words) {
    LogitEdit edit{.id = word.back(), .add = kBan};
    edit.context_begin = static_cast<int32_t>(sequence->edit_contexts.size());
    edit.context_count = static_cast<int32_t>(word.size()) - 1;
    sequence->edits.push_back(edit);
    sequence->edit_contexts.insert(sequence->edit_contexts.end(), word.begin(), word.end() - 1);
  }
  sequence->edits_lasting = static_cast<int32_t>(sequence->edits.size());
  if (sequence->stop.min_tokens > 0) {
    const int32_t until = sequence->answer_begins() + sequence->stop.min_tokens;
    for (const int32_t id : sequence->stop.stop_ids) {
      sequence->edits.push_back({.id = id, .add = kBan, .until_position = until});
    }
  }
  if (sampling.allowed_ids.empty()) return;
  sequence->allowed.assign(MaskWords(vocabulary), 0);
  for (const int32_t id : sampling.allowed_ids) sequence->allowed[id / 32] |= 1u << (id % 32);
}

void PlanWriter::Begin(uint64_t step, int32_t drafts, StepPlan* plan) {
  plan_ = plan;
  plan->step = step;
  plan->token_ids.clear();
  plan->positions.clear();
  plan->token_sequences.clear();
  plan->query_starts.assign(1, 0);
  plan->kv_lengths.clear();
  plan->logit_tokens.clear();
  plan->sample_rows.clear();
  plan->edits.clear();
  plan->edit_contexts.clear();
  plan->masks.clear();
  plan->logprobs = false;
  plan->next_ids.clear();
  plan->draft_rows.clear();
  plan->drafts = drafts;
}

PlannedRow PlanWriter::Add(Sequence* sequence, int32_t tokens, int32_t drafts, bool drafts_next) {
  PlannedRow row{.sequence = sequence, .start = sequence->planned, .tokens = tokens};
  row.first_token = static_cast<int32_t>(plan_->token_ids.size());
  row.drafts = drafts;
  row.logit_row = static_cast<int32_t>(plan_->logit_tokens.size());
  row.samples = row.start + tokens - drafts == sequence->tokens_total();
  row.score_rows = sequence->score_rows(tokens);
  CHECK(row.samples || (drafts == 0 && !drafts_next));

  const auto index = static_cast<int32_t>(plan_->kv_lengths.size());
  const int32_t end = row.start + tokens;
  for (int32_t position = row.start; position < end; ++position) {
    int32_t id = ~sequence->slot;
    if (position < sequence->tokens_known()) {
      id = sequence->tokens[position];
    } else if (drafts > 0) {
      id = sequence->drafts[position - sequence->tokens_known()];
    } else {
      // Only the newest id can be unplanned and unknown, and that is what the slot holds.
      CHECK_EQ(position, sequence->tokens_total() - 1);
    }
    plan_->token_ids.push_back(id);
    plan_->positions.push_back(position);
    plan_->token_sequences.push_back(index);
  }
  plan_->query_starts.push_back(static_cast<int32_t>(plan_->token_ids.size()));
  plan_->kv_lengths.push_back(end);

  AddLogitRows(&row);
  if (limits_.drafts_max > 0) AddNextIds(row);
  if (drafts_next) {
    row.draft_row = static_cast<int32_t>(plan_->draft_rows.size());
    plan_->draft_rows.push_back(
        {.sequence = index, .first_logit_row = row.logit_row + row.score_rows, .drafts = drafts});
  }
  return row;
}

void PlanWriter::AddLogitRows(PlannedRow* row) {
  const Sequence& sequence = *row->sequence;
  // The token at position p is the plan's token first_token + p.
  const int32_t first_token = row->first_token - row->start;
  for (int32_t i = 0; i < row->score_rows; ++i) {
    const int32_t position = std::max(row->start + 1, sequence.score_next) + i;
    SampleRow out;
    out.position = static_cast<uint32_t>(position);
    out.sequence = static_cast<int32_t>(plan_->kv_lengths.size()) - 1;
    out.prompt_tokens = sequence.answer_begins();
    out.target_id = sequence.tokens[position];
    out.logprobs = sequence.sampling.prompt_logprobs;
    plan_->logit_tokens.push_back(first_token + position - 1);
    plan_->sample_rows.push_back(out);
    plan_->logprobs = true;
  }
  if (!row->samples) return;
  SampleRow out = RowOf(sequence);
  AddEdits(sequence, &out);
  // Which of several rows draws the newest id is not known; nothing is planned before it is.
  if (row->drafts == 0) out.slot = sequence.slot;
  for (int32_t j = 0; j <= row->drafts; ++j) {
    out.position = static_cast<uint32_t>(sequence.tokens_total() + j);
    if (j == 0 || sequence.token_mask != nullptr) AddMask(sequence, j, &out);
    plan_->logit_tokens.push_back(first_token + static_cast<int32_t>(out.position) - 1);
    plan_->sample_rows.push_back(out);
  }
  plan_->logprobs |= out.logprobs >= 0;
}

SampleRow PlanWriter::RowOf(const Sequence& sequence) {
  const SamplingParams& sampling = sequence.sampling;
  SampleRow row;
  row.temperature = sampling.temperature;
  row.top_p = sampling.top_p;
  row.min_p = sampling.min_p;
  row.top_k = sampling.top_k;
  row.repetition_penalty = sampling.repetition_penalty;
  row.frequency_penalty = sampling.frequency_penalty;
  row.presence_penalty = sampling.presence_penalty;
  row.seed = sampling.seed;
  row.choice = sampling.choice;
  row.sequence = static_cast<int32_t>(plan_->kv_lengths.size()) - 1;
  row.prompt_tokens = sequence.answer_begins();
  row.logprobs = sampling.logprobs;
  return row;
}

void PlanWriter::AddEdits(const Sequence& sequence, SampleRow* row) {
  // Bans until min_tokens are left out once they have ended for the first of the rows.
  const bool banning =
      !sequence.edits.empty() && sequence.tokens_total() < sequence.edits.back().until_position;
  const size_t count = banning ? sequence.edits.size() : sequence.edits_lasting;
  if (count == 0) return;
  row->edits_begin = static_cast<int32_t>(plan_->edits.size());
  row->edits_count = static_cast<int32_t>(count);
  const auto contexts = static_cast<int32_t>(plan_->edit_contexts.size());
  for (size_t i = 0; i < count; ++i) {
    plan_->edits.push_back(sequence.edits[i]);
    plan_->edits.back().context_begin += contexts;
  }
  plan_->edit_contexts.insert(plan_->edit_contexts.end(), sequence.edit_contexts.begin(),
                              sequence.edit_contexts.end());
}

void PlanWriter::AddMask(const Sequence& sequence, int32_t drafts, SampleRow* row) {
  if (sequence.allowed.empty() && sequence.token_mask == nullptr) return;
  const size_t words = MaskWords(limits_.vocabulary);
  const size_t begin = plan_->masks.size();
  row->mask = static_cast<int32_t>(begin / words);
  if (sequence.allowed.empty()) {
    plan_->masks.resize(begin + words, ~0u);
    if (limits_.vocabulary % 32 != 0) plan_->masks.back() >>= 32 - limits_.vocabulary % 32;
  } else {
    plan_->masks.insert(plan_->masks.end(), sequence.allowed.begin(), sequence.allowed.end());
  }
  if (sequence.token_mask == nullptr) return;
  generated_.assign(sequence.tokens.begin() + sequence.answer_begins(), sequence.tokens.end());
  generated_.insert(generated_.end(), sequence.drafts.begin(), sequence.drafts.begin() + drafts);
  sequence.token_mask->Restrict(generated_, std::span(plan_->masks).subspan(begin));
}

void PlanWriter::AddNextIds(const PlannedRow& row) {
  const Sequence& sequence = *row.sequence;
  const int32_t sampled = row.start + row.tokens - row.drafts - 1;  // position of the first
  for (int32_t position = row.start; position < row.start + row.tokens; ++position) {
    if (row.samples && position >= sampled) {
      plan_->next_ids.push_back(~(row.logit_row + row.score_rows + position - sampled));
    } else {
      plan_->next_ids.push_back(sequence.tokens[position + 1]);
    }
  }
}

void PlanWriter::Finish(const std::vector<PlannedRow>& rows) {
  // Positions that are written, those of drafts to come included.
  const auto blocks_of = [&](const PlannedRow& row) {
    const int32_t ahead = row.draft_row >= 0 ? plan_->drafts - 1 : 0;
    const int32_t blocks =
        (row.start + row.tokens + ahead + limits_.block_size - 1) / limits_.block_size;
    CHECK_LE(static_cast<size_t>(blocks), row.sequence->blocks.size());
    return blocks;
  };
  int32_t blocks_max = 0;
  for (const PlannedRow& row : rows) blocks_max = std::max(blocks_max, blocks_of(row));
  plan_->blocks_max = blocks_max;
  plan_->block_tables.assign(rows.size() * blocks_max, 0);
  auto out = plan_->block_tables.begin();
  for (const PlannedRow& row : rows) {
    std::copy_n(row.sequence->blocks.begin(), blocks_of(row), out);
    out += blocks_max;
  }
  if (plan_->draft_rows.empty()) plan_->drafts = 0;
}

}  // namespace glm::engine
