// The scheduler's other half: what a step's result means for its sequences, their end, and what
// can be read of the state.
#include <algorithm>
#include <span>
#include <utility>

#include "engine/schedule/scheduler.h"
#include "proto/base/log.h"

namespace glm::engine {
namespace {

TokenLogprobs LogprobsOf(const StepLogprobs& logprobs, int32_t row, int32_t alternatives) {
  const int64_t begin = int64_t{row} * (1 + kLogprobsMax);
  TokenLogprobs token;
  token.id = logprobs.ids.at(begin);
  token.logprob = logprobs.values.at(begin);
  token.rank = logprobs.ranks.at(row);
  token.top.reserve(alternatives);
  for (int64_t i = begin + 1; i <= begin + alternatives; ++i) {
    token.top.push_back({logprobs.ids.at(i), logprobs.values.at(i)});
  }
  return token;
}

}  // namespace

void Scheduler::Apply(const StepPlan& plan, const StepResult& result, StepEvents* events) {
  CHECK(!in_flight_.empty());
  const InFlight applied = std::move(in_flight_.front());
  in_flight_.pop_front();
  CHECK_EQ(plan.step, applied.step);
  CHECK_EQ(result.step, applied.step);
  CHECK_EQ(plan.kv_lengths.size(), applied.rows.size());
  CHECK_EQ(result.ids.size(), plan.logit_tokens.size());
  CHECK_EQ(result.drafts.size(), plan.draft_rows.size() * plan.drafts);
  events->step = applied.step;
  if (applied.decodes_only && limits_.drafts_max > 0) {
    draft_length_.NoteStep(applied.decodes, applied.drafts_judged, applied.drafts, result.seconds);
  }
  for (const PlannedRow& row : applied.rows) ApplyRow(row, plan, result, events);
  for (; !retired_.empty() && retired_.front().step <= applied.step; retired_.pop_front()) {
    pool_.Release(retired_.front().block);
    --blocks_returning_;
  }
}

void Scheduler::ApplyRow(const PlannedRow& row, const StepPlan& plan, const StepResult& result,
                         StepEvents* events) {
  Sequence* sequence = row.sequence;
  CHECK_GE(sequence->plans_in_flight, 1);
  --sequence->plans_in_flight;
  sequence->outputs_in_flight -= row.samples ? 1 : 0;
  const bool vacating = sequence->vacating;
  // The drafts that the rows before them drew too, up to the first that one did not.
  const int32_t first_draft = row.first_token + row.tokens - row.drafts;
  const int32_t first_row = row.logit_row + row.score_rows;
  int32_t accepted = 0;
  while (accepted < row.drafts &&
         plan.token_ids[first_draft + accepted] == result.ids[first_row + accepted]) {
    ++accepted;
  }

  RequestEvent event;
  FinishReason reason = FinishReason::kNone;
  // An ended sequence was planned once more before its end was known; that token is dropped.
  if (sequence->state != Sequence::State::kEnded) {
    TellPromptLogprobs(row, plan, result, &event);
    if (row.samples) {
      if (row.drafts > 0) CountDrafts(row, accepted);
      reason = AppendTokens(sequence, result, first_row, 1 + accepted, &event);
    }
    if (sequence->state == Sequence::State::kRunning) {
      sequence->planned -= row.drafts - accepted;
      if (row.draft_row >= 0 && reason == FinishReason::kNone) {
        const auto drafts = result.drafts.begin() + int64_t{row.draft_row} * plan.drafts;
        sequence->drafts.assign(drafts, drafts + plan.drafts);
      }
    }
  }
  // Of tokens that were dropped nothing is cached, though they were computed.
  Publish(sequence,
          std::min(row.start + row.tokens - row.drafts + accepted, sequence->tokens_known()));
  if (reason != FinishReason::kNone) {
    End(sequence, &event, reason);
    events->requests.push_back(std::move(event));
  } else if (!event.token_ids.empty() || !event.prompt_logprobs.empty()) {
    event.id = sequence->id;
    event.prompt_tokens = sequence->prompt_tokens;
    event.cached_tokens = sequence->cached_tokens;
    events->requests.push_back(std::move(event));
  }
  // Unless it was vacating before, End may have deleted it.
  if (vacating && sequence->plans_in_flight == 0) Release(sequence);
}

FinishReason Scheduler::AppendTokens(Sequence* sequence, const StepResult& result,
                                     int32_t logit_row, int32_t count, RequestEvent* event) {
  const StopRule& stop = sequence->stop;
  for (int32_t row = logit_row; row < logit_row + count; ++row) {
    const int32_t id = result.ids[row];
    CHECK_GE(id, 0);
    sequence->tokens.push_back(id);
    if (sequence->state == Sequence::State::kWaiting) ++tokens_queued_;
    event->token_ids.push_back(id);
    if (sequence->sampling.logprobs >= 0) {
      event->logprobs.push_back(LogprobsOf(result.logprobs, row, sequence->sampling.logprobs));
    }
    const bool may_stop = sequence->tokens_known() - sequence->answer_begins() > stop.min_tokens;
    if (may_stop &&
        std::find(stop.stop_ids.begin(), stop.stop_ids.end(), id) != stop.stop_ids.end()) {
      event->stop_id = id;
      return FinishReason::kStop;
    }
    if (sequence->tokens_generated() >= stop.max_tokens) return FinishReason::kLength;
  }
  return FinishReason::kNone;
}

void Scheduler::TellPromptLogprobs(const PlannedRow& row, const StepPlan& plan,
                                   const StepResult& result, RequestEvent* event) {
  Sequence* sequence = row.sequence;
  for (int32_t r = row.logit_row; r < row.logit_row + row.score_rows; ++r) {
    CHECK_EQ(static_cast<int32_t>(plan.sample_rows[r].position), sequence->score_told);
    ++sequence->score_told;
    event->prompt_logprobs.push_back(
        LogprobsOf(result.logprobs, r, sequence->sampling.prompt_logprobs));
  }
}

void Scheduler::CountDrafts(const PlannedRow& row, int32_t accepted) {
  draft_length_.NoteDrafts(row.drafts, accepted);
  ++counts_.draft_rounds;
  counts_.draft_tokens += row.drafts;
  for (int32_t j = 0; j < accepted; ++j) ++counts_.draft_accepted.at(j);
}

void Scheduler::Publish(Sequence* sequence, int32_t computed) {
  if (!limits_.prefix_caching || !sequence->publishes) return;
  while ((sequence->published + 1) * limits_.block_size <= computed) {
    const int32_t i = sequence->published;
    const std::span<const int32_t> tokens(sequence->tokens);
    const auto ids = tokens.subspan(size_t(i) * limits_.block_size, limits_.block_size);
    cache_.Name(sequence->cache_salt, tokens.first(size_t(i + 1) * limits_.block_size),
                &sequence->keys);
    const int32_t block = sequence->blocks[i];
    const int32_t parent = i > 0 ? sequence->blocks[i - 1] : -1;
    const int32_t cached =
        cache_.Publish(sequence->keys[i], sequence->cache_salt, ids, block, parent);
    if (cached < 0) {
      sequence->publishes = false;
      return;
    }
    if (cached != block) {
      // Another sequence has computed the same: go on with its block, so that every cached block
      // in use has all those before it in use.
      pool_.Share(cached);
      sequence->blocks[i] = cached;
      Retire(block);
    }
    ++sequence->published;
  }
}

void Scheduler::Retire(int32_t block) {
  if (in_flight_.empty()) {
    pool_.Release(block);
    return;
  }
  retired_.push_back({.step = steps_, .block = block});
  ++blocks_returning_;
}

// ---- The end of a sequence, or of its stay
// -------------------------------------------------------

void Scheduler::End(Sequence* sequence, RequestEvent* event, FinishReason reason) {
  event->id = sequence->id;
  event->finish = reason;
  event->prompt_tokens = sequence->prompt_tokens;
  event->cached_tokens = sequence->cached_tokens;
  CHECK_EQ(live_.erase(sequence->id), 1u);
  ended_.push_back(Remove(sequence));
  sequence->state = Sequence::State::kEnded;
  Vacate(sequence);
}

void Scheduler::Vacate(Sequence* sequence) {
  if (sequence->vacating) return;
  if (sequence->plans_in_flight == 0) {
    Release(sequence);
    return;
  }
  sequence->vacating = true;
  ++vacating_;
  blocks_returning_ += static_cast<int64_t>(sequence->blocks.size());
}

void Scheduler::Release(Sequence* sequence) {
  CHECK_EQ(sequence->plans_in_flight, 0);
  CHECK(sequence->state != Sequence::State::kRunning);
  if (sequence->vacating) {
    blocks_returning_ -= static_cast<int64_t>(sequence->blocks.size());
    CHECK_GE(blocks_returning_, 0);
    sequence->vacating = false;
    --vacating_;
  }
  // The last first: the prefix cache evicts in this order.
  for (auto block = sequence->blocks.rbegin(); block != sequence->blocks.rend(); ++block) {
    pool_.Release(*block);
  }
  sequence->blocks.clear();
  sequence->published = 0;
  if (sequence->slot >= 0) slots_free_.push_back(sequence->slot);
  sequence->slot = -1;
  if (sequence->state != Sequence::State::kEnded) return;
  const auto owner = std::find_if(ended_.begin(), ended_.end(),
                                  [&](const SequencePtr& p) { return p.get() == sequence; });
  CHECK(owner != ended_.end());
  ended_.erase(owner);
}

Scheduler::SequencePtr Scheduler::Remove(Sequence* sequence) {
  SequencePtr owner;
  if (sequence->state == Sequence::State::kRunning) {
    const auto it = std::find_if(running_.begin(), running_.end(),
                                 [&](const SequencePtr& p) { return p.get() == sequence; });
    CHECK(it != running_.end());
    owner = std::move(*it);
    running_.erase(it);
  } else {
    CHECK(sequence->state == Sequence::State::kWaiting);
    const auto it = waiting_.find(sequence->order());
    CHECK(it != waiting_.end());
    owner = std::move(it->second);
    waiting_.erase(it);
    tokens_queued_ -= sequence->tokens_known();
  }
  return owner;
}

// ---- State
// ---------------------------------------------------------------------------------------

std::vector<RequestId> Scheduler::LiveIds() const {
  std::vector<RequestId> ids;
  for (const SequencePtr& sequence : running_) ids.push_back(sequence->id);
  for (const auto& [order, sequence] : waiting_) ids.push_back(sequence->id);
  return ids;
}

EngineLoad Scheduler::Load() const {
  EngineLoad load;
  load.requests_running = static_cast<int32_t>(running_.size());
  load.requests_waiting = static_cast<int32_t>(waiting_.size());
  load.tokens_waiting = tokens_queued_;
  for (const SequencePtr& sequence : running_) {
    load.context_tokens += sequence->planned;
    const int32_t unplanned = sequence->tokens_unplanned();
    if (unplanned > 1 || sequence->planned < sequence->prompt_tokens) {
      load.tokens_waiting += unplanned;
    }
  }
  load.kv_blocks_used = pool_.blocks_used();
  load.kv_blocks_total = pool_.blocks_total();
  return load;
}

void Scheduler::FillStats(EngineStats* stats) const {
  stats->prompt_tokens = counts_.prompt_tokens;
  stats->preemptions = counts_.preemptions;
  stats->prompt_tokens_cached = counts_.prompt_tokens_cached;
  stats->prompt_tokens_queried = counts_.prompt_tokens_queried;
  stats->cache_blocks_evicted = cache_.evictions();
  stats->draft_rounds = counts_.draft_rounds;
  stats->draft_tokens = counts_.draft_tokens;
  stats->draft_accepted = counts_.draft_accepted;
  stats->drafts_now = limits_.drafts_max > 0 ? draft_length_.now() : 0;
}

int64_t Scheduler::BlocksFor(int64_t tokens) const {
  return (tokens + limits_.block_size - 1) / limits_.block_size;
}

void Scheduler::CheckConsistent() const {
  CheckBlocks();
  std::vector<bool> slots(limits_.sequences_max, false);
  for (const int32_t slot : slots_free_) slots[slot] = true;
  int64_t returning = static_cast<int64_t>(retired_.size());
  int32_t vacating = 0;
  int64_t queued = 0;
  const auto check = [&](const Sequence& sequence, Sequence::State state) {
    CheckSequence(sequence, state);
    if (sequence.slot >= 0) {
      CHECK(!slots[sequence.slot]) << "slot " << sequence.slot << " is held twice";
      slots[sequence.slot] = true;
    }
    if (!sequence.vacating) return;
    ++vacating;
    returning += static_cast<int64_t>(sequence.blocks.size());
  };
  const auto before = [](const SequencePtr& a, const SequencePtr& b) {
    return a->order() < b->order();
  };
  CHECK(std::is_sorted(running_.begin(), running_.end(), before)) << "out of order";
  for (const SequencePtr& sequence : running_) check(*sequence, Sequence::State::kRunning);
  for (const auto& [order, sequence] : waiting_) {
    CHECK(order == sequence->order());
    check(*sequence, Sequence::State::kWaiting);
    queued += sequence->tokens_known();
  }
  for (const SequencePtr& sequence : ended_) check(*sequence, Sequence::State::kEnded);
  for (const bool accounted : slots) CHECK(accounted) << "a slot is lost";
  CHECK_EQ(returning, blocks_returning_);
  CHECK_EQ(vacating, vacating_);
  CHECK_EQ(queued, tokens_queued_);
  CHECK_EQ(live_.size(), running_.size() + waiting_.size());
}

void Scheduler::CheckSequence(const Sequence& sequence, Sequence::State state) const {
  CHECK(sequence.state == state);
  CHECK_EQ(sequence.slot >= 0, state == Sequence::State::kRunning || sequence.vacating);
  if (sequence.slot < 0) CHECK(sequence.blocks.empty() && sequence.planned == 0);
  if (sequence.vacating) CHECK_GE(sequence.plans_in_flight, 1);
  CHECK_LE(sequence.plans_in_flight, plans_in_flight());
  CHECK_LE(sequence.outputs_in_flight, sequence.plans_in_flight);
  const auto blocks = static_cast<int64_t>(sequence.blocks.size());
  CHECK_LE(sequence.published, blocks);
  CHECK_LE(sequence.published * int64_t{limits_.block_size}, sequence.tokens_known());
  if (state == Sequence::State::kEnded) return;
  CHECK_EQ(live_.at(sequence.id), &sequence);
  CHECK(sequence.tokens_unplanned() >= 1 || sequence.plans_in_flight > 0);
  CHECK_LE(sequence.planned, blocks * limits_.block_size);
  CHECK_LE(blocks, BlocksFor(limits_.length_max));
}

/// References add up; what can still be written has one owner.
void Scheduler::CheckBlocks() const {
  pool_.CheckConsistent();
  cache_.CheckConsistent();
  std::vector<int32_t> references(pool_.blocks_total(), 0);
  for (const Retired& retired : retired_) ++references[retired.block];
  const auto count = [&](const Sequence& sequence) {
    for (size_t i = 0; i < sequence.blocks.size(); ++i) {
      const int32_t block = sequence.blocks[i];
      ++references[block];
      const bool cached = i < static_cast<size_t>(sequence.published);
      CHECK_EQ(pool_.kept(block), cached) << "KV block " << block;
      if (!cached) CHECK_EQ(pool_.references(block), 1) << "KV block " << block << " is shared";
      if (cached) continue;
      const int64_t end = static_cast<int64_t>(i + 1) * limits_.block_size;
      const bool whole = end <= sequence.planned && sequence.plans_in_flight == 0;
      CHECK(!whole || !sequence.publishes || !limits_.prefix_caching) << "KV block " << block;
    }
  };
  for (const SequencePtr& sequence : running_) count(*sequence);
  for (const auto& [order, sequence] : waiting_) count(*sequence);
  for (const SequencePtr& sequence : ended_) count(*sequence);
  for (int64_t block = 0; block < pool_.blocks_total(); ++block) {
    CHECK_EQ(references[block], pool_.references(static_cast<int32_t>(block)));
  }
}

}  // namespace glm::engine
