// The scheduler: decides what each step computes. Host state only: no thread, no device, no clock;
// the same calls in the same order give the same plans.
//
// Who calls: the engine thread. Admit and Cancel come at the head of a step; Plan makes the next
// step's plan; Apply takes a plan's result, in the order of the plans. Up to plans_in_flight_max
// plans may be out at once: step n+1 is planned before step n's tokens are known, with ~slot
// standing for an id that only the device has. A request that turns out to have ended at step n may
// then have one more row in step n+1, which is dropped.
//
// Order: the lower priority first, then by arrival. A newcomer starts only when all waiting ones
// before it have. When blocks run out, the last running sequence in order gives its blocks up, goes
// back to the queue with the tokens it has, and computes them anew, less what it finds again in the
// prefix cache. So does one that holds a place or blocks that a waiting request of better priority
// could use. Its tokens do not change, since what is drawn depends on seed and position only. The
// first in order can always go on, so every request ends, if no better ones come without end.
//
// Fairness: a step has a budget of tokens. Every sequence that decodes is in every step: first each
// takes its newest token and its drafts, then prompts take the rest, in order, cut into chunks;
// several may be partly computed. (Edits and masks of a step have limits too; where requests ask
// for more of them at once, the first in order are served.) No step has more than
// batched_tokens_max tokens, and while anything decodes no prompt has more than
// long_prefill_token_threshold of them: with one long prompt in the queue, a step computes at most
// so many tokens beyond the decodes' own.
//
// Prefix cache: a full block is published when the result of the plan that filled it is applied,
// and only up to the tokens that were kept: never with a rejected draft. A waiting sequence takes
// over the cached blocks of its tokens, all but the last token at most, which is always computed.
// Blocks before Sequence::published may be shared and are never written; all others are the
// sequence's own. A sequence whose prompt logprobs are not all told reads nothing from the cache.
//
// Drafts (drafts_max > 0; one plan in flight): the result of a step brings drafts of the tokens to
// come, the next plan has them judged, Apply keeps those that the model drew too. A draft is never
// worth a preemption: where there is no room it is dropped.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "engine/request.h"
#include "engine/schedule/block_pool.h"
#include "engine/schedule/draft_length.h"
#include "engine/schedule/limits.h"
#include "engine/schedule/plan_writer.h"
#include "engine/schedule/prefix_cache.h"
#include "engine/schedule/sequence.h"
#include "engine/schedule/step.h"

namespace glm::engine {

class Scheduler {
 public:
  explicit Scheduler(const SchedulerLimits& limits);
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  /// Queues a request. REQUIRES: its id is not live, the prompt is not empty, max_tokens is at
  /// least 1, and prompt + max_tokens is at most length_max (the engine's Submit refuses others).
  void Admit(Request request);

  /// Ends a live request with kCancelled, reported in `events`; its blocks are free at once, or
  /// when the plans in flight that name it are applied. False: no such request is live.
  bool Cancel(RequestId id, StepEvents* events);

  /// Fills `plan` with the next step. False: nothing can be computed before an Admit or an Apply.
  /// `plan` must live unchanged until Apply. REQUIRES plans_in_flight() < plans_in_flight_max.
  bool Plan(StepPlan* plan);

  /// Takes the result of the oldest plan in flight; appends what happened to `events`.
  void Apply(const StepPlan& plan, const StepResult& result, StepEvents* events);

  /// Moves the changes of the prefix cache since the last call to `events`.
  void TakeCacheChanges(StepEvents* events) { cache_.TakeChanges(events); }
  /// What the prefix cache holds. REQUIRES that nothing happened since TakeCacheChanges.
  std::shared_ptr<const CacheSnapshot> SnapshotCache() const { return cache_.Snapshot(); }

  int32_t plans_in_flight() const { return static_cast<int32_t>(in_flight_.size()); }
  bool has_live() const { return !live_.empty(); }
  /// Ids of all live requests: the running ones, then the waiting ones, in order.
  std::vector<RequestId> LiveIds() const;
  EngineLoad Load() const;
  /// Sets what the scheduler counts: prompt tokens, preemptions, cache and drafts. Prompt tokens
  /// that are computed anew after a preemption count again; looking them up again does not.
  void FillStats(EngineStats* stats) const;
  uint64_t preemptions() const { return counts_.preemptions; }
  const SchedulerLimits& limits() const { return limits_; }

  /// Aborts unless all state agrees: O(everything), for tests.
  void CheckConsistent() const;

 private:
  using SequencePtr = std::unique_ptr<Sequence>;
  using Running = std::vector<SequencePtr>;
  using Waiting = std::map<Sequence::Order, SequencePtr>;

  /// What a running sequence is to compute in the plan being made.
  struct Want {
    int32_t tokens = 0;  // without drafts; 0: nothing
    int32_t drafts = 0;
    bool decodes = false;
    bool drafts_next = false;
  };
  /// What is left of a step's limits while it is planned.
  struct Budget {
    int32_t tokens = 0;
    int32_t logit_rows = 0;
    int32_t edits = 0;
    int32_t edit_contexts = 0;
    int32_t masks = 0;
  };
  struct InFlight {
    uint64_t step = 0;
    std::vector<PlannedRow> rows;
    int32_t decodes = 0;
    bool decodes_only = false;
    int32_t drafts_judged = 0;  // at most, of a sequence
    int32_t drafts = 0;         // made, of a sequence
  };
  /// A block that a sequence exchanged for an equal one while plans in flight still read it.
  struct Retired {
    uint64_t step;  // free when this step is applied
    int32_t block;
  };

  // Plan, in this order.
  void MakeWayForPriority();
  void WantDecodes();
  void WantPrompts();
  int32_t TakePromptTokens(const Sequence& sequence);
  bool TakeSampling(const Sequence& sequence, int32_t drafts);
  void GiveRoom();
  void GiveDraftsRoom(Sequence* sequence, Want* want);
  void AdmitWaiting();
  bool StartWaiting();
  void WritePlan(StepPlan* plan);

  /// Allocates blocks for the next `count` tokens of a running sequence, preempting the last ones;
  /// returns for how many of them there is room.
  int32_t MakeRoom(Sequence* sequence, int32_t count);
  /// Allocates blocks for positions below `end` if that takes no preemption.
  bool TryRoom(Sequence* sequence, int64_t end);
  void PreemptLast();

  // Apply.
  void ApplyRow(const PlannedRow& row, const StepPlan& plan, const StepResult& result,
                StepEvents* events);
  FinishReason AppendTokens(Sequence* sequence, const StepResult& result, int32_t logit_row,
                            int32_t count, RequestEvent* event);
  void TellPromptLogprobs(const PlannedRow& row, const StepPlan& plan, const StepResult& result,
                          RequestEvent* event);
  void CountDrafts(const PlannedRow& row, int32_t accepted);
  /// Caches the full blocks among the first `computed` tokens.
  void Publish(Sequence* sequence, int32_t computed);
  void Retire(int32_t block);

  void End(Sequence* sequence, RequestEvent* event, FinishReason reason);
  /// Releases a preempted or ended sequence, at once or when the plans in flight are back.
  void Vacate(Sequence* sequence);
  /// Gives back blocks and slot of a sequence that no plan in flight names; deletes it if ended.
  void Release(Sequence* sequence);
  /// Takes the sequence out of the queue that holds it.
  SequencePtr Remove(Sequence* sequence);

  int64_t BlocksFor(int64_t tokens) const;
  void CheckBlocks() const;
  void CheckSequence(const Sequence& sequence, Sequence::State state) const;

  const SchedulerLimits limits_;
  BlockPool pool_;
  PrefixCache cache_;
  DraftLength draft_length_;
  PlanWriter writer_;
  std::vector<int32_t> slots_free_;

  Running running_;                 // in order
  Waiting waiting_;                 // in order
  std::vector<SequencePtr> ended_;  // still named by a plan in flight
  std::unordered_map<RequestId, Sequence*> live_;

  std::deque<InFlight> in_flight_;  // oldest first
  std::deque<Retired> retired_;     // oldest first

  // Of the plan being made.
  std::vector<Want> wants_;  // beside running_
  int32_t decodes_ = 0;
  int32_t drafts_ = 0;  // K
  Budget left_;
  bool starved_ = false;  // a running sequence found no block

  uint64_t steps_ = 0;
  uint64_t arrivals_ = 0;
  int32_t vacating_ = 0;          // sequences
  int64_t tokens_queued_ = 0;     // known tokens of all waiting sequences
  int64_t blocks_returning_ = 0;  // vacating sequences' and retired ones
  EngineStats counts_;            // those that FillStats tells
};

}  // namespace glm::engine
