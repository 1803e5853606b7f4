#include "engine/schedule/scheduler.h"

#include <algorithm>
#include <utility>

#include "proto/base/log.h"

namespace glm::engine {

Scheduler::Scheduler(const SchedulerLimits& limits) : limits_(limits), pool_(limits.kv_blocks) {
  CHECK_GE(limits_.block_size, 1);
  CHECK_GE(limits_.length_max, 1);
  CHECK_LE(limits_.length_max, limits_.kv_blocks * limits_.block_size);
  CHECK_GE(limits_.sequences_max, 1);
  CHECK_GE(limits_.batched_tokens_max, limits_.sequences_max);
  CHECK_GE(limits_.plans_in_flight_max, 1);
  for (int32_t slot = limits_.sequences_max - 1; slot >= 0; --slot) slots_free_.push_back(slot);
}

void Scheduler::Admit(Request request) {
  CHECK(!request.prompt_ids.empty());
  CHECK_GE(request.stop.max_tokens, 1);
  CHECK_LE(static_cast<int64_t>(request.prompt_ids.size()) + request.stop.max_tokens,
           limits_.length_max);
  auto sequence = std::make_unique<Sequence>();
  sequence->id = request.id;
  sequence->sampling = request.sampling;
  sequence->stop = std::move(request.stop);
  sequence->arrival = ++arrivals_;
  sequence->tokens = std::move(request.prompt_ids);
  sequence->prompt_tokens = sequence->tokens_known();
  const bool is_new = live_.emplace(sequence->id, sequence.get()).second;
  CHECK(is_new) << "request " << sequence->id << " is already live";
  tokens_queued_ += sequence->tokens_known();
  waiting_.push_back(std::move(sequence));
}

bool Scheduler::Cancel(RequestId id, StepEvents* events) {
  const auto found = live_.find(id);
  if (found == live_.end()) return false;
  RequestEvent event;
  End(found->second, &event, FinishReason::kCancelled);
  events->requests.push_back(std::move(event));
  return true;
}

// ---- Plan
// ----------------------------------------------------------------------------------------

bool Scheduler::Plan(StepPlan* plan) {
  CHECK_LT(plans_in_flight(), limits_.plans_in_flight_max);
  plan->step = building_.step = steps_ + 1;
  plan->token_ids.clear();
  plan->positions.clear();
  plan->token_sequences.clear();
  plan->query_starts.assign(1, 0);
  plan->kv_lengths.clear();
  plan->logit_tokens.clear();
  plan->sample_rows.clear();
  building_.rows.clear();
  budget_ = limits_.batched_tokens_max;
  starved_ = false;

  PlanRunning(/*decodes=*/true, plan);
  PlanRunning(/*decodes=*/false, plan);
  PlanWaiting(plan);
  if (building_.rows.empty()) return false;

  CHECK_LE(building_.rows.size(), static_cast<size_t>(limits_.sequences_max));
  CHECK_LE(plan->token_ids.size(), static_cast<size_t>(limits_.batched_tokens_max));
  FillBlockTables(plan);
  ++steps_;
  in_flight_.push_back(std::move(building_));
  building_ = InFlight{};
  return true;
}

void Scheduler::PlanRunning(bool decodes, StepPlan* plan) {
  // MakeRoom may shorten running_, but only behind the sequence that it is called for.
  for (size_t i = 0; i < running_.size() && budget_ > 0; ++i) {
    Sequence* sequence = running_[i].get();
    if (sequence->fully_planned() || (sequence->tokens_unplanned() == 1) != decodes) continue;
    // A sequence that decoded in this plan has one unplanned token again: its new one.
    if (sequence->planned_step == building_.step) continue;
    const int32_t count = MakeRoom(sequence, std::min(sequence->tokens_unplanned(), budget_));
    if (count > 0) AddTokens(sequence, count, plan);
  }
}

void Scheduler::PlanWaiting(StepPlan* plan) {
  while (budget_ > 0 && !starved_ && !waiting_.empty() && !slots_free_.empty()) {
    Sequence* sequence = waiting_.front().get();
    if (sequence->vacating) return;
    // All its tokens and the next one must find room, else it would be preempted at once.
    if (BlocksFor(sequence->tokens_known() + 1) > pool_.blocks_free()) return;
    CHECK(running_.empty() || running_.back()->arrival < sequence->arrival);
    tokens_queued_ -= sequence->tokens_known();
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
    sequence->state = Sequence::State::kRunning;
    sequence->slot = slots_free_.back();
    slots_free_.pop_back();
    const int32_t count = std::min(sequence->tokens_unplanned(), budget_);
    CHECK_EQ(MakeRoom(sequence, count), count);
    AddTokens(sequence, count, plan);
  }
}

void Scheduler::AddTokens(Sequence* sequence, int32_t count, StepPlan* plan) {
  const auto row = static_cast<int32_t>(building_.rows.size());
  const int32_t end = sequence->planned + count;
  for (int32_t position = sequence->planned; position < end; ++position) {
    const bool known = position < sequence->tokens_known();
    // Only the newest id can be unplanned and unknown, and that is what the slot holds.
    CHECK(known || position == sequence->tokens_total() - 1);
    plan->token_ids.push_back(known ? sequence->tokens[position] : ~sequence->slot);
    plan->positions.push_back(position);
    plan->token_sequences.push_back(row);
  }
  prompt_tokens_planned_ += std::max(0, std::min(end, sequence->prompt_tokens) - sequence->planned);
  plan->query_starts.push_back(static_cast<int32_t>(plan->token_ids.size()));
  plan->kv_lengths.push_back(end);
  budget_ -= count;

  const bool samples = end == sequence->tokens_total();
  if (samples) AddLogitRow(*sequence, plan);
  sequence->outputs_in_flight += samples ? 1 : 0;
  sequence->planned = end;
  sequence->planned_step = building_.step;
  ++sequence->plans_in_flight;
  building_.rows.push_back({sequence, samples});
}

void Scheduler::AddLogitRow(const Sequence& sequence, StepPlan* plan) {
  plan->logit_tokens.push_back(static_cast<int32_t>(plan->token_ids.size()) - 1);
  SampleRow row{};
  row.temperature = sequence.sampling.temperature;
  row.top_p = sequence.sampling.top_p;
  row.top_k = sequence.sampling.top_k;
  row.position = static_cast<uint32_t>(sequence.tokens_total());
  row.seed = sequence.sampling.seed;
  row.slot = sequence.slot;
  plan->sample_rows.push_back(row);
}

void Scheduler::FillBlockTables(StepPlan* plan) const {
  size_t blocks_max = 0;
  for (const Row& row : building_.rows) {
    blocks_max = std::max(blocks_max, row.sequence->blocks.size());
  }
  plan->blocks_max = static_cast<int32_t>(blocks_max);
  plan->block_tables.assign(building_.rows.size() * blocks_max, 0);
  auto out = plan->block_tables.begin();
  for (const Row& row : building_.rows) {
    std::copy(row.sequence->blocks.begin(), row.sequence->blocks.end(), out);
    out += static_cast<int64_t>(blocks_max);
  }
}

int32_t Scheduler::MakeRoom(Sequence* sequence, int32_t count) {
  while (true) {
    const int64_t blocks = static_cast<int64_t>(sequence->blocks.size());
    const int64_t room = (blocks + pool_.blocks_free()) * limits_.block_size - sequence->planned;
    const auto fit = static_cast<int32_t>(std::min<int64_t>(count, room));
    if (fit > 0) {
      const int64_t wanted = BlocksFor(sequence->planned + fit);
      for (int64_t i = blocks; i < wanted; ++i) sequence->blocks.push_back(pool_.Allocate());
      return fit;
    }
    const Sequence* youngest = running_.back().get();
    if (blocks_returning_ > 0 || youngest == sequence) {
      starved_ = true;
      return 0;
    }
    PreemptYoungest();
  }
}

void Scheduler::PreemptYoungest() {
  SequencePtr owner = std::move(running_.back());
  running_.pop_back();
  Sequence* sequence = owner.get();
  // Decodes ask for room oldest first, and a prompt that is not yet whole is the youngest's.
  CHECK_LT(sequence->planned_step, building_.step);
  CHECK(waiting_.empty() || sequence->arrival < waiting_.front()->arrival);
  sequence->state = Sequence::State::kWaiting;
  sequence->planned = 0;
  tokens_queued_ += sequence->tokens_known();
  ++preemptions_;
  waiting_.push_front(std::move(owner));
  Vacate(sequence);
}

// ---- Apply
// ---------------------------------------------------------------------------------------

void Scheduler::Apply(const StepPlan& plan, const StepResult& result, StepEvents* events) {
  CHECK(!in_flight_.empty());
  const InFlight applied = std::move(in_flight_.front());
  in_flight_.pop_front();
  CHECK_EQ(plan.step, applied.step);
  CHECK_EQ(result.step, applied.step);
  CHECK_EQ(plan.kv_lengths.size(), applied.rows.size());
  CHECK_EQ(result.ids.size(), plan.logit_tokens.size());
  events->step = applied.step;

  size_t logit_row = 0;
  for (const Row& row : applied.rows) {
    Sequence* sequence = row.sequence;
    CHECK_GE(sequence->plans_in_flight, 1);
    --sequence->plans_in_flight;
    const bool vacating = sequence->vacating;
    if (row.samples) {
      const int32_t token_id = result.ids[logit_row++];
      --sequence->outputs_in_flight;
      // An ended sequence was planned once more before its end was known; that token is dropped.
      if (sequence->state != Sequence::State::kEnded) AppendToken(sequence, token_id, events);
    }
    // Unless it was vacating before, AppendToken may have deleted it.
    if (vacating && sequence->plans_in_flight == 0) Release(sequence);
  }
  CHECK_EQ(logit_row, result.ids.size());
}

void Scheduler::AppendToken(Sequence* sequence, int32_t token_id, StepEvents* events) {
  CHECK_GE(token_id, 0);
  sequence->tokens.push_back(token_id);
  if (sequence->state == Sequence::State::kWaiting) ++tokens_queued_;
  RequestEvent event;
  event.token_ids.push_back(token_id);

  const StopRule& stop = sequence->stop;
  const bool stops =
      sequence->tokens_generated() >= stop.min_tokens &&
      std::find(stop.stop_ids.begin(), stop.stop_ids.end(), token_id) != stop.stop_ids.end();
  if (stops) {
    event.stop_id = token_id;
    End(sequence, &event, FinishReason::kStop);
  } else if (sequence->tokens_generated() >= stop.max_tokens) {
    End(sequence, &event, FinishReason::kLength);
  } else {
    event.id = sequence->id;
    event.prompt_tokens = sequence->prompt_tokens;
    event.cached_tokens = sequence->cached_tokens;
  }
  events->requests.push_back(std::move(event));
}

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
  blocks_returning_ += static_cast<int64_t>(sequence->blocks.size());
}

void Scheduler::Release(Sequence* sequence) {
  CHECK_EQ(sequence->plans_in_flight, 0);
  CHECK(sequence->state != Sequence::State::kRunning);
  if (sequence->vacating) {
    blocks_returning_ -= static_cast<int64_t>(sequence->blocks.size());
    CHECK_GE(blocks_returning_, 0);
    sequence->vacating = false;
  }
  for (const int32_t block : sequence->blocks) pool_.Release(block);
  sequence->blocks.clear();
  if (sequence->slot >= 0) slots_free_.push_back(sequence->slot);
  sequence->slot = -1;
  if (sequence->state != Sequence::State::kEnded) return;
  const auto owner = std::find_if(ended_.begin(), ended_.end(),
                                  [&](const SequencePtr& p) { return p.get() == sequence; });
  CHECK(owner != ended_.end());
  ended_.erase(owner);
}

Scheduler::SequencePtr Scheduler::Remove(Sequence* sequence) {
  const auto is_it = [&](const SequencePtr& p) { return p.get() == sequence; };
  SequencePtr owner;
  if (sequence->state == Sequence::State::kRunning) {
    const auto it = std::find_if(running_.begin(), running_.end(), is_it);
    CHECK(it != running_.end());
    owner = std::move(*it);
    running_.erase(it);
  } else {
    CHECK(sequence->state == Sequence::State::kWaiting);
    const auto it = std::find_if(waiting_.begin(), waiting_.end(), is_it);
    CHECK(it != waiting_.end());
    owner = std::move(*it);
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
  for (const SequencePtr& sequence : waiting_) ids.push_back(sequence->id);
  return ids;
}

EngineLoad Scheduler::Load() const {
  EngineLoad load;
  load.requests_running = static_cast<int32_t>(running_.size());
  load.requests_waiting = static_cast<int32_t>(waiting_.size());
  load.tokens_waiting = tokens_queued_;
  for (const SequencePtr& sequence : running_) {
    const int32_t unplanned = sequence->tokens_unplanned();
    if (unplanned > 1 || sequence->planned < sequence->prompt_tokens) {
      load.tokens_waiting += unplanned;
    }
  }
  load.kv_blocks_used = pool_.blocks_used();
  load.kv_blocks_total = pool_.blocks_total();
  return load;
}

int64_t Scheduler::BlocksFor(int64_t tokens) const {
  return (tokens + limits_.block_size - 1) / limits_.block_size;
}

void Scheduler::CheckConsistent() const {
  pool_.CheckConsistent();
  std::vector<int32_t> references(pool_.blocks_total(), 0);
  std::vector<bool> slots(limits_.sequences_max, false);
  for (const int32_t slot : slots_free_) slots[slot] = true;
  int64_t returning = 0;
  int64_t queued = 0;
  uint64_t arrival = 0;
  const auto check = [&](const Sequence& sequence, Sequence::State state) {
    CHECK(sequence.state == state);
    for (const int32_t block : sequence.blocks) ++references[block];
    CHECK_EQ(sequence.slot >= 0, state == Sequence::State::kRunning || sequence.vacating);
    if (sequence.slot >= 0) {
      CHECK(!slots[sequence.slot]) << "slot " << sequence.slot << " is held twice";
      slots[sequence.slot] = true;
    } else {
      CHECK(sequence.blocks.empty() && sequence.planned == 0);
    }
    if (sequence.vacating) {
      CHECK_GE(sequence.plans_in_flight, 1);
      returning += static_cast<int64_t>(sequence.blocks.size());
    }
    CHECK_LE(sequence.plans_in_flight, plans_in_flight());
    CHECK_LE(sequence.outputs_in_flight, sequence.plans_in_flight);
    if (state == Sequence::State::kEnded) return;
    CHECK_EQ(live_.at(sequence.id), &sequence);
    CHECK_LT(arrival, sequence.arrival) << "out of order: request " << sequence.id;
    arrival = sequence.arrival;
    CHECK_GE(sequence.tokens_unplanned(), 1);
    CHECK_LE(sequence.planned, static_cast<int64_t>(sequence.blocks.size()) * limits_.block_size);
  };
  for (const SequencePtr& sequence : running_) check(*sequence, Sequence::State::kRunning);
  for (const SequencePtr& sequence : waiting_) {
    check(*sequence, Sequence::State::kWaiting);
    queued += sequence->tokens_known();
  }
  for (const SequencePtr& sequence : ended_) check(*sequence, Sequence::State::kEnded);
  for (int64_t block = 0; block < pool_.blocks_total(); ++block) {
    CHECK_EQ(references[block], pool_.references(static_cast<int32_t>(block)));
    CHECK_LE(references[block], 1) << "KV block " << block << " is in two sequences";
  }
  for (const bool accounted : slots) CHECK(accounted) << "a slot is lost";
  CHECK_EQ(returning, blocks_returning_);
  CHECK_EQ(queued, tokens_queued_);
  CHECK_EQ(live_.size(), running_.size() + waiting_.size());
}

}  // namespace glm::engine
