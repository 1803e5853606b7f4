// Writes a StepPlan: from a sequence and how many of its tokens are to be computed, the flat arrays
// that the ranks upload. What is decided is decided elsewhere; this only spells it out.
//
// Who calls: the scheduler, on the engine thread.
//
// Rows of logits, in order of their tokens: first those of prompt logprobs, each with the next
// prompt token as its target; then, when the sequence's last token is among those computed, the row
// that draws the next one, and behind it one for each draft that is judged.
//
// Where drafts_max is above 0, next_ids are given in every step, also when nothing is drafted: the
// draft layer's cache stays whole, so that drafting can begin again at any step. That costs one
// layer without a head.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/schedule/limits.h"
#include "engine/schedule/sequence.h"
#include "engine/schedule/step.h"

namespace glm::engine {

/// Fills in the sequence's edits, contexts and mask from its sampling and stop rules.
void PrepareEdits(int32_t vocabulary, Sequence* sequence);

/// What a plan says about one sequence.
struct PlannedRow {
  Sequence* sequence = nullptr;
  int32_t first_token = 0;  // of the plan's
  int32_t start = 0;        // position of the first token computed
  int32_t tokens = 0;       // computed, drafts included
  int32_t drafts = 0;       // the last so many of them
  int32_t logit_row = 0;    // its first; score_rows, and 1 + drafts if it samples
  int32_t score_rows = 0;
  bool samples = false;
  int32_t draft_row = -1;  // -1: it does not draft after this step
};

class PlanWriter {
 public:
  explicit PlanWriter(const SchedulerLimits& limits) : limits_(limits) {}

  /// Begins a plan in which sequences that draft make `drafts` drafts each.
  void Begin(uint64_t step, int32_t drafts, StepPlan* plan);

  /// Adds the next `tokens` tokens of the sequence, the last `drafts` of them being its first
  /// drafts; then, if `drafts_next`, it drafts. REQUIRES tokens <= tokens_unplanned() + drafts.
  PlannedRow Add(Sequence* sequence, int32_t tokens, int32_t drafts, bool drafts_next);

  /// Fills in the block tables.
  void Finish(const std::vector<PlannedRow>& rows);

 private:
  void AddLogitRows(PlannedRow* row);
  SampleRow RowOf(const Sequence& sequence);
  /// Puts the sequence's edits and mask into the plan, and the row.
  void AddEdits(const Sequence& sequence, SampleRow* row);
  void AddMask(const Sequence& sequence, int32_t drafts, SampleRow* row);
  void AddNextIds(const PlannedRow& row);

  const SchedulerLimits limits_;
  StepPlan* plan_ = nullptr;
  std::vector<int32_t> generated_;  // room for AddMask
};

}  // namespace glm::engine
