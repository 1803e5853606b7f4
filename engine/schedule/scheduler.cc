#include "engine/schedule/scheduler.h"

#include <algorithm>
#include <span>
#include <utility>

#include "proto/base/log.h"

namespace glm::engine {

Scheduler::Scheduler(const SchedulerLimits& limits)
    : limits_(limits),
      pool_(limits.kv_blocks),
      cache_(&pool_, limits.block_size, limits.prefix_hash_key),
      draft_length_(limits.drafts_max, limits.adaptive_drafts),
      writer_(limits) {
  CHECK_GE(limits_.block_size, 1);
  CHECK_GE(limits_.length_max, 1);
  CHECK_LE(limits_.length_max, limits_.kv_blocks * limits_.block_size);
  CHECK_GE(limits_.sequences_max, 1);
  CHECK_GE(limits_.plans_in_flight_max, 1);
  CHECK(limits_.drafts_max == 0 || limits_.plans_in_flight_max == 1);
  CHECK_GE(limits_.batched_tokens_max, limits_.sequences_max * (1 + limits_.drafts_max));
  CHECK_GE(limits_.logit_rows_max, limits_.sequences_max * (1 + limits_.drafts_max));
  for (int32_t slot = limits_.sequences_max - 1; slot >= 0; --slot) slots_free_.push_back(slot);
}

void Scheduler::Admit(Request request) {
  CHECK(!request.prompt_ids.empty());
  CHECK_GE(request.stop.max_tokens, 1);
  CHECK_LE(static_cast<int64_t>(request.prompt_ids.size()) + request.stop.max_tokens,
           limits_.length_max);
  auto sequence = std::make_unique<Sequence>();
  sequence->id = request.id;
  sequence->sampling = std::move(request.sampling);
  sequence->stop = std::move(request.stop);
  sequence->priority = request.priority;
  sequence->arrival = ++arrivals_;
  sequence->cache_salt = std::move(request.cache_salt);
  sequence->token_mask = std::move(request.token_mask);
  sequence->tokens = std::move(request.prompt_ids);
  sequence->prompt_tokens = sequence->tokens_known();
  sequence->generated_before = request.generated_before;
  PrepareEdits(limits_.vocabulary, sequence.get());
  const bool is_new = live_.emplace(sequence->id, sequence.get()).second;
  CHECK(is_new) << "request " << sequence->id << " is already live";
  tokens_queued_ += sequence->tokens_known();
  const Sequence::Order order = sequence->order();
  waiting_.emplace(order, std::move(sequence));
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
  left_ = {.tokens = limits_.batched_tokens_max,
           .logit_rows = limits_.logit_rows_max,
           .edits = limits_.edits_max,
           .edit_contexts = limits_.edit_contexts_max,
           .masks = limits_.masks_max};
  starved_ = false;

  MakeWayForPriority();
  wants_.assign(running_.size(), Want{});
  WantDecodes();
  WantPrompts();
  GiveRoom();
  AdmitWaiting();
  if (std::all_of(wants_.begin(), wants_.end(), [](const Want& w) { return w.tokens == 0; })) {
    return false;
  }
  WritePlan(plan);
  return true;
}

void Scheduler::MakeWayForPriority() {
  while (!waiting_.empty() && !running_.empty()) {
    const Sequence& first = *waiting_.begin()->second;
    if (first.vacating || running_.back()->priority <= first.priority) return;
    const int64_t blocks = BlocksFor(first.tokens_known() + 1);
    if (!slots_free_.empty() && blocks <= cache_.blocks_available()) return;
    // What was given up before is on its way.
    if (vacating_ > 0 || blocks_returning_ > 0) return;
    int64_t reach = cache_.blocks_available();
    for (const SequencePtr& sequence : running_) {
      if (sequence->priority <= first.priority) continue;
      reach += static_cast<int64_t>(sequence->blocks.size());
    }
    if (blocks > reach) return;
    PreemptLast();
  }
}

void Scheduler::WantDecodes() {
  decodes_ = 0;
  for (size_t i = 0; i < running_.size(); ++i) {
    const Sequence& sequence = *running_[i];
    if (sequence.fully_planned() || sequence.tokens_unplanned() != 1) continue;
    if (sequence.token_mask != nullptr && sequence.outputs_in_flight > 0) continue;
    const int32_t left = sequence.stop.max_tokens - sequence.tokens_generated();
    const int32_t drafts =
        std::max(0, std::min(static_cast<int32_t>(sequence.drafts.size()), left - 1));
    if (!TakeSampling(sequence, drafts)) continue;
    wants_[i] = {.tokens = 1, .drafts = drafts, .decodes = true};
    left_.tokens -= 1 + drafts;
    ++decodes_;
  }
  drafts_ = limits_.drafts_max > 0 ? draft_length_.Choose(decodes_) : 0;
}

void Scheduler::WantPrompts() {
  for (size_t i = 0; i < running_.size() && left_.tokens > 0; ++i) {
    const Sequence& sequence = *running_[i];
    if (sequence.fully_planned() || sequence.tokens_unplanned() <= 1) continue;
    wants_[i].tokens = TakePromptTokens(sequence);
  }
}

/// How many tokens of its prompt, or of what it computes anew, the budgets allow; takes them off.
int32_t Scheduler::TakePromptTokens(const Sequence& sequence) {
  const int32_t unplanned = sequence.tokens_unplanned();
  int32_t tokens = std::min(unplanned, left_.tokens);
  if (limits_.long_prefill_token_threshold > 0 && decodes_ > 0) {
    tokens = std::min(tokens, limits_.long_prefill_token_threshold);
  }
  for (int32_t excess = 1; tokens > 0 && excess > 0; tokens -= std::max(0, excess)) {
    excess = sequence.score_rows(tokens) - left_.logit_rows;
  }
  if (tokens <= 0) return 0;
  left_.logit_rows -= sequence.score_rows(tokens);
  // Where there is no room to draw the next token, the last one is left for another step.
  if (tokens == unplanned && !TakeSampling(sequence, 0)) {
    --tokens;
    // A row of prompt logprobs that the last token had would be one too many.
    CHECK_EQ(sequence.score_rows(tokens), sequence.score_rows(tokens + 1));
  }
  left_.tokens -= tokens;
  return tokens;
}

/// Takes what a sequence needs that draws its next token, and has `drafts` drafts judged, off the
/// budgets; false: something of it is not left.
bool Scheduler::TakeSampling(const Sequence& sequence, int32_t drafts) {
  const auto edits = static_cast<int32_t>(sequence.edits.size());
  const auto contexts = static_cast<int32_t>(sequence.edit_contexts.size());
  int32_t masks = sequence.allowed.empty() ? 0 : 1;
  if (sequence.token_mask != nullptr) masks = 1 + drafts;
  if (left_.logit_rows < 1 + drafts || left_.edits < edits || left_.edit_contexts < contexts ||
      left_.masks < masks) {
    return false;
  }
  left_.logit_rows -= 1 + drafts;
  left_.edits -= edits;
  left_.edit_contexts -= contexts;
  left_.masks -= masks;
  return true;
}

void Scheduler::GiveRoom() {
  // MakeRoom may shorten running_ and wants_, but only behind the sequence that it is called for.
  for (size_t i = 0; i < running_.size(); ++i) {
    if (wants_[i].tokens == 0) continue;
    wants_[i].tokens = MakeRoom(running_[i].get(), wants_[i].tokens);
  }
  for (size_t i = 0; i < running_.size(); ++i) GiveDraftsRoom(running_[i].get(), &wants_[i]);
}

/// Room for the drafts that are judged, and for the positions that the draft layer runs ahead.
void Scheduler::GiveDraftsRoom(Sequence* sequence, Want* want) {
  const int64_t end = sequence->planned + want->tokens;
  if (want->tokens == 0 || end < sequence->tokens_total()) want->drafts = 0;
  while (want->drafts > 0 && !TryRoom(sequence, end + want->drafts)) --want->drafts;
  if (drafts_ == 0 || want->tokens == 0 || end < sequence->tokens_total()) return;
  // Drafts are of use when two tokens are to come after the one drawn now.
  const int32_t left = sequence->stop.max_tokens - sequence->tokens_generated();
  const int64_t ahead = end + want->drafts + drafts_ - 1;
  want->drafts_next = left >= 3 && ahead <= limits_.length_max && TryRoom(sequence, ahead);
}

void Scheduler::AdmitWaiting() {
  while (left_.tokens > 0 && !starved_ && !waiting_.empty() && !slots_free_.empty()) {
    if (!StartWaiting()) return;
  }
}

/// Starts the first of the waiting sequences; false: it cannot start now.
bool Scheduler::StartWaiting() {
  Sequence* sequence = waiting_.begin()->second.get();
  if (sequence->vacating) return false;
  std::vector<int32_t> cached;
  sequence->score_next = sequence->score_told;
  if (limits_.prefix_caching && sequence->score_next >= sequence->score_end()) {
    cache_.Name(sequence->cache_salt, sequence->tokens, &sequence->keys);
    // The last token is always computed: the next one is drawn from it.
    const size_t most = (sequence->tokens_known() - 1) / limits_.block_size;
    cached =
        cache_.Match(sequence->cache_salt, sequence->tokens, std::span(sequence->keys).first(most));
  }
  // All its tokens and the next one must find room, else it would be preempted at once.
  const auto idle = std::count_if(cached.begin(), cached.end(),
                                  [&](int32_t block) { return pool_.references(block) == 0; });
  const int64_t known = BlocksFor(sequence->tokens_known());
  const auto found = static_cast<int64_t>(cached.size());
  if (BlocksFor(sequence->tokens_known() + 1) - found > cache_.blocks_available() - idle) {
    return false;
  }
  sequence->planned = static_cast<int32_t>(found) * limits_.block_size;
  const int32_t tokens = TakePromptTokens(*sequence);
  if (tokens == 0) {
    sequence->planned = 0;
    return false;
  }
  for (const int32_t block : cached) pool_.Share(block);
  sequence->blocks = std::move(cached);
  sequence->published = static_cast<int32_t>(found);
  for (int64_t i = found; i < known; ++i) sequence->blocks.push_back(cache_.Allocate());
  if (!sequence->ran && limits_.prefix_caching) {
    sequence->cached_tokens = std::min(sequence->planned, sequence->prompt_tokens);
    counts_.prompt_tokens_cached += sequence->cached_tokens;
    counts_.prompt_tokens_queried += sequence->prompt_tokens;
  }
  sequence->ran = true;
  sequence->slot = slots_free_.back();
  slots_free_.pop_back();

  Want want{.tokens = tokens};
  GiveDraftsRoom(sequence, &want);
  SequencePtr owner = Remove(sequence);
  sequence->state = Sequence::State::kRunning;
  const auto place = std::upper_bound(
      running_.begin(), running_.end(), sequence->order(),
      [](const Sequence::Order& order, const SequencePtr& s) { return order < s->order(); });
  wants_.insert(wants_.begin() + (place - running_.begin()), want);
  running_.insert(place, std::move(owner));
  return true;
}

void Scheduler::WritePlan(StepPlan* plan) {
  InFlight made;
  made.step = ++steps_;
  made.decodes = decodes_;
  made.decodes_only = true;
  made.rows.reserve(running_.size());
  writer_.Begin(steps_, drafts_, plan);
  plan->work = {};
  for (const bool decodes : {true, false}) {
    for (size_t i = 0; i < running_.size(); ++i) {
      const Want& want = wants_[i];
      if (want.tokens == 0 || want.decodes != decodes) continue;
      Sequence* sequence = running_[i].get();
      const PlannedRow row =
          writer_.Add(sequence, want.tokens + want.drafts, want.drafts, want.drafts_next);
      const int32_t end = row.start + row.tokens;
      plan->work.decodes += decodes ? 1 : 0;
      plan->work.prompt_tokens += decodes ? 0 : row.tokens;
      plan->work.context_tokens += end;
      counts_.prompt_tokens += std::max(0, std::min(end, sequence->prompt_tokens) - row.start);
      sequence->score_next += row.score_rows;
      sequence->outputs_in_flight += row.samples ? 1 : 0;
      sequence->planned = end;
      sequence->drafts.clear();
      ++sequence->plans_in_flight;
      made.decodes_only = made.decodes_only && decodes;
      made.drafts_judged = std::max(made.drafts_judged, row.drafts);
      made.rows.push_back(row);
    }
  }
  writer_.Finish(made.rows);
  made.drafts = plan->drafts;
  CHECK_LE(made.rows.size(), static_cast<size_t>(limits_.sequences_max));
  CHECK_LE(plan->token_ids.size(), static_cast<size_t>(limits_.batched_tokens_max));
  CHECK_LE(plan->logit_tokens.size(), static_cast<size_t>(limits_.logit_rows_max));
  CHECK_LE(plan->edits.size(), static_cast<size_t>(limits_.edits_max));
  in_flight_.push_back(std::move(made));
}

int32_t Scheduler::MakeRoom(Sequence* sequence, int32_t count) {
  while (true) {
    const int64_t blocks =
        static_cast<int64_t>(sequence->blocks.size()) + cache_.blocks_available();
    const int64_t room = blocks * limits_.block_size - sequence->planned;
    const auto fit = static_cast<int32_t>(std::min<int64_t>(count, room));
    if (fit > 0) {
      CHECK(TryRoom(sequence, sequence->planned + fit));
      return fit;
    }
    if (blocks_returning_ > 0 || running_.back().get() == sequence) {
      starved_ = true;
      return 0;
    }
    PreemptLast();
    wants_.pop_back();
  }
}

bool Scheduler::TryRoom(Sequence* sequence, int64_t end) {
  const int64_t more = BlocksFor(end) - static_cast<int64_t>(sequence->blocks.size());
  if (more > cache_.blocks_available()) return false;
  for (int64_t i = 0; i < more; ++i) sequence->blocks.push_back(cache_.Allocate());
  return true;
}

void Scheduler::PreemptLast() {
  SequencePtr owner = std::move(running_.back());
  running_.pop_back();
  Sequence* sequence = owner.get();
  sequence->state = Sequence::State::kWaiting;
  sequence->planned = 0;
  sequence->drafts.clear();
  tokens_queued_ += sequence->tokens_known();
  ++counts_.preemptions;
  const Sequence::Order order = sequence->order();
  waiting_.emplace(order, std::move(owner));
  Vacate(sequence);
}

}  // namespace glm::engine
