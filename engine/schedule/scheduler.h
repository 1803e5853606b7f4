// The scheduler: decides what each step computes. Host state only: no thread, no device, no clock;
// the same calls in the same order give the same plans.
//
// Who calls: the engine thread. Admit and Cancel come at the head of a step; Plan makes the next
// step's plan; Apply takes a plan's result, in the order of the plans. Up to plans_in_flight_max
// plans may be out at once: step n+1 is planned before step n's tokens are known, with ~slot
// standing for an id that only the device has. A request that turns out to have ended at step n may
// then have one more row in step n+1, which is dropped.
//
// Order: requests are served first come, first served. All running sequences arrived before all
// waiting ones: a newcomer starts only when the oldest waiting one can, and when blocks run out the
// youngest running sequence gives its blocks up, goes back to the head of the queue with the tokens
// it has, and computes them anew. Its tokens do not change, since what is drawn depends on seed and
// position only. The oldest sequence can always go on, so every request ends.
//
// A step has a budget of tokens: first one for each sequence that decodes, then prompt chunks.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

#include "engine/request.h"
#include "engine/schedule/block_pool.h"
#include "engine/schedule/sequence.h"
#include "engine/schedule/step.h"

namespace glm::engine {

struct SchedulerLimits {
  int32_t block_size = 0;           // P, token slots of a block
  int64_t kv_blocks = 0;            // B
  int32_t length_max = 0;           // prompt + generated tokens of one request; at most B * P
  int32_t sequences_max = 0;        // running at once; also the number of slots
  int32_t batched_tokens_max = 0;   // tokens of one step; at least sequences_max
  int32_t plans_in_flight_max = 1;  // plans made whose results are not back
};

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

  int32_t plans_in_flight() const { return static_cast<int32_t>(in_flight_.size()); }
  bool has_live() const { return !live_.empty(); }
  /// Ids of all live requests, oldest first.
  std::vector<RequestId> LiveIds() const;
  EngineLoad Load() const;
  uint64_t preemptions() const { return preemptions_; }
  /// Prompt tokens in all plans so far; those computed anew after a preemption count again.
  uint64_t prompt_tokens_planned() const { return prompt_tokens_planned_; }
  const SchedulerLimits& limits() const { return limits_; }

  /// Aborts unless all state agrees: O(everything), for tests.
  void CheckConsistent() const;

 private:
  using SequencePtr = std::unique_ptr<Sequence>;

  /// What a plan in flight says about one sequence: one entry a sequence of the plan, in order.
  struct Row {
    Sequence* sequence;
    bool samples;  // the next of the plan's logit rows is this sequence's
  };
  struct InFlight {
    uint64_t step;
    std::vector<Row> rows;
  };

  void PlanRunning(bool decodes, StepPlan* plan);
  void PlanWaiting(StepPlan* plan);
  void AddTokens(Sequence* sequence, int32_t count, StepPlan* plan);
  void AddLogitRow(const Sequence& sequence, StepPlan* plan);
  void FillBlockTables(StepPlan* plan) const;

  /// Allocates blocks for the next `count` tokens of a running sequence, preempting younger ones;
  /// returns for how many of them there is room.
  int32_t MakeRoom(Sequence* sequence, int32_t count);
  void PreemptYoungest();

  void AppendToken(Sequence* sequence, int32_t token_id, StepEvents* events);
  void End(Sequence* sequence, RequestEvent* event, FinishReason reason);
  /// Releases a preempted or ended sequence, at once or when the plans in flight are back.
  void Vacate(Sequence* sequence);
  /// Gives back blocks and slot of a sequence that no plan in flight names; deletes it if ended.
  void Release(Sequence* sequence);
  /// Takes the sequence out of the queue that holds it.
  SequencePtr Remove(Sequence* sequence);

  int64_t BlocksFor(int64_t tokens) const;

  const SchedulerLimits limits_;
  BlockPool pool_;
  std::vector<int32_t> slots_free_;

  std::vector<SequencePtr> running_;  // by arrival
  std::deque<SequencePtr> waiting_;   // by arrival, all after the running ones
  std::vector<SequencePtr> ended_;    // still named by a plan in flight
  std::unordered_map<RequestId, Sequence*> live_;

  std::deque<InFlight> in_flight_;  // oldest first
  InFlight building_;               // of the plan being made
  int32_t budget_ = 0;              // tokens left in the plan being made
  bool starved_ = false;            // a running sequence found no block in the plan being made

  uint64_t steps_ = 0;
  uint64_t arrivals_ = 0;
  uint64_t preemptions_ = 0;
  uint64_t prompt_tokens_planned_ = 0;
  int64_t tokens_queued_ = 0;     // known tokens of all waiting sequences
  int64_t blocks_returning_ = 0;  // held by preempted or ended sequences that a plan names
};

}  // namespace glm::engine
