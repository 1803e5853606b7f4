// Batch: the device buffers of a step, sized once for the largest, and the upload of a plan.
//
// Who calls: a rank, on its thread. All arrays of a step lie behind each other in one pinned host
// buffer and go to the device in one copy; where each begins depends on the padded sizes alone, so
// a captured step of the same sizes finds everything at the same place. What comes back does so in
// one copy too. Device memory exists once: copies and ops are ordered. Host memory exists once for
// each step that may be in flight.
//
// Padding: on a device that can capture, T, S, R, D, the width of the block tables and the sizes of
// edits and masks are rounded up to buckets (1, 2, 3, 4, 6, 8, 12, 16, ...), so that few different
// steps exist (tables are at least 256 blocks wide and then grow fourfold, so that a sequence's
// length hardly makes other steps); on others they are exact. T goes in steps of 128 from 1024 on:
// such steps are not captured, and padding costs as much as tokens there. R is at least 1. Padding
// is zeros, apart from query_starts (T_valid) and sample slots (-1).
//
// Of most tokens of a prompt nobody wants logits, and of these the last layer need not compute more
// than K and V. Where logit rows are few beside the tokens, and no draft layer wants all hidden
// states, the logit rows come as a batch of their own too.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/schedule/step.h"
#include "kernels/ops.h"

namespace glm::engine {

/// Padded sizes of a step.
struct StepSizes {
  int64_t tokens = 0;          // T
  int64_t sequences = 0;       // S
  int64_t logit_rows = 0;      // R
  int64_t blocks_max = 0;      // width of block_tables
  int64_t edits = 0;           // of all rows
  int64_t edit_contexts = 0;   // ids
  int64_t masks = 0;           // rows
  bool logprobs = false;       // some row wants them
  bool draft_layer = false;    // it runs over the step's tokens
  bool rows_apart = false;     // the logit rows are a batch of their own too
  int64_t draft_rows = 0;      // D
  int64_t drafts = 0;          // K
  int64_t prompts_begin = -1;  // as BatchView's, rounded up like tokens
  // Of several ranks: some row is drawn from the logits of all. Else each rank draws from its own
  // columns, and the ranks tell each other the best. Never with one rank.
  bool whole_logits = false;

  bool operator==(const StepSizes&) const = default;
};

/// What the largest step is, and how many may be in flight.
struct BatchLimits {
  StepLimits step;
  int64_t blocks_max = 0;       // blocks of the longest sequence
  int64_t slots = 0;            // entries of last_ids
  int64_t vocabulary_used = 0;  // ids that a mask has a bit for
  int64_t drafts_max = 0;       // K; 0: the draft layer never runs. D is at most S
  int64_t edits_max = kStepEditsMax;
  int64_t edit_contexts_max = kStepEditContextsMax;
  int64_t masks_max = kStepMasksMax;
  int32_t steps_in_flight_max = 1;
};

class Batch {
 public:
  /// Allocates everything, and clears last_ids.
  Batch(Device& device, const BatchLimits& limits);
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  /// Device memory that the constructor takes.
  static int64_t DeviceBytes(const BatchLimits& limits);
  /// Pinned host memory that it takes besides.
  static int64_t HostBytes(const BatchLimits& limits);
  /// The smallest bucket that holds `count`, at most `count_max`.
  static int64_t Bucket(int64_t count, int64_t count_max);
  /// The same of tokens, and of the width of block tables.
  static int64_t TokenBucket(int64_t count, int64_t count_max);
  static int64_t TableBucket(int64_t count, int64_t count_max);

  StepSizes SizesOf(const StepPlan& plan) const;

  /// Starts the copy of `plan` to the device, through host buffer `staging` (0 ..
  /// steps_in_flight_max - 1), which must not be in use by a step in flight; afterwards the views
  /// below are those of this plan.
  void Upload(const StepPlan& plan, int32_t staging);
  /// Starts the copy of what the step gives to the host.
  void Download(int32_t staging);
  /// What came back of a step of `sizes`, of `logit_rows` valid rows and `draft_rows` valid draft
  /// rows, once its download is done: ids, drafts and logprobs. Any thread, as far as the step's.
  void Read(int32_t staging, const StepSizes& sizes, int64_t logit_rows, int64_t draft_rows,
            StepResult* result) const;

  const StepSizes& sizes() const { return sizes_; }
  const BatchView& view() const { return view_; }
  /// The batch of the logit rows alone, for Glm::Forward; null where the sizes' rows_apart is
  /// false. Sequences without one have no tokens in it, and a length of 0.
  const BatchView* logit_row_view() const { return sizes_.rows_apart ? &row_view_ : nullptr; }
  /// F32 [R, V]; [R, V / ranks] where the sizes' whole_logits is false.
  const Tensor& logits() const { return logits_; }
  const Tensor& ids() const { return ids_; }  // I32 [R]
  /// All that `sample` is given for the step; of vocabulary_used ids. `tokens` is the cache's.
  SampleArgs sample_args(const TokenCache& tokens) const;

  // What the draft layer is given, where the plan says that it runs.
  /// The step with next_ids as token ids, which look into ids(), and D valid logit rows, of tokens
  /// that are not in the plan: logit_tokens is left for who knows them.
  const BatchView& next_view() const { return next_view_; }
  const SampleRow* sample_rows() const { return sample_rows_; }  // device, [R]
  const DraftRow* draft_rows() const { return draft_rows_; }     // device, [D]
  const Tensor& draft_count() const { return draft_count_; }     // I32 [1]
  Tensor draft_logits() const;            // [D, ..] as logits(), in the same memory
  Tensor draft_ids(int64_t draft) const;  // I32 [D], of the draft-th drafts

 private:
  struct Layout;
  struct ResultLayout;
  static Layout LayoutOf(const StepSizes& sizes, int64_t mask_words);
  static ResultLayout ResultLayoutOf(const StepSizes& sizes);
  static StepSizes Largest(const BatchLimits& limits);

  void CheckPlan(const StepPlan& plan) const;
  void FillStaging(const StepPlan& plan, const Layout& layout, char* host) const;
  void FillRowStaging(const StepPlan& plan, const Layout& layout, char* host) const;
  void FillDraftStaging(const StepPlan& plan, const Layout& layout, char* host) const;
  void SetViews(const Layout& layout);
  void SetResultViews();
  /// Room for logits of `rows` rows, whole or sliced as the sizes say.
  Tensor LogitsOf(int64_t rows) const;
  int64_t mask_words() const { return (limits_.vocabulary_used + 31) / 32; }

  Device& device_;
  const BatchLimits limits_;
  char* step_memory_ = nullptr;    // device: all arrays of a step
  char* result_memory_ = nullptr;  // device: all that comes back
  Tensor last_ids_;                // I32 [slots]
  Tensor logits_all_;              // F32 [R_max, V]
  std::vector<char*> staging_;     // pinned host memory, each as large as step_memory_
  std::vector<char*> results_;     // pinned host memory, each as large as result_memory_

  StepSizes sizes_;
  BatchView view_;
  BatchView row_view_;
  const SampleRow* sample_rows_ = nullptr;
  const LogitEdit* edits_ = nullptr;
  const int32_t* edit_contexts_ = nullptr;
  Tensor masks_;
  Tensor logits_;
  Tensor ids_;
  Logprobs logprobs_;
  BatchView next_view_;
  const DraftRow* draft_rows_ = nullptr;
  Tensor draft_count_;
  Tensor drafts_;  // I32 [K, D]
};

}  // namespace glm::engine
