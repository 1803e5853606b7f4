// A step's two halves: the plan goes down to the ranks, the result comes up.
//
// Flat arrays that mirror kernels/ops.h BatchView, so that a rank uploads them as they are. The
// engine thread fills a plan and puts the same pointer into every rank's mailbox; from then until
// the result is back the plan is read-only. Vectors keep their capacity from step to step.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/request.h"
#include "kernels/ops.h"

namespace glm::engine {

// Most of these in one step: a rank has room for so many. Each holds what one request may ask for.
inline constexpr int32_t kStepEditsMax = 1 << 15;
inline constexpr int32_t kStepEditContextsMax = 1 << 16;
inline constexpr int32_t kStepMasksMax = 256;  // rows

/// What a step is to do, in the numbers that its time depends on.
struct StepWork {
  int32_t decodes = 0;         // sequences that take one token, and drafts behind it
  int32_t prompt_tokens = 0;   // of all others
  int64_t context_tokens = 0;  // keys that are read: each sequence's length at the step's end
};

struct StepPlan {
  uint64_t step = 0;
  StepWork work;
  std::vector<int32_t>
      token_ids;  // [T] a token, or ~slot: the newest id of that slot, on the device
  std::vector<int32_t> positions;        // [T]
  std::vector<int32_t> token_sequences;  // [T]
  std::vector<int32_t> query_starts;     // [S+1]
  std::vector<int32_t> kv_lengths;       // [S]
  int32_t blocks_max = 0;                // of the sequences in this plan
  std::vector<int32_t> block_tables;     // [S * blocks_max], row-major, zero-filled
  std::vector<int32_t> logit_tokens;     // [R]
  std::vector<SampleRow> sample_rows;    // [R]; slot -1 where several rows draw for a sequence
  std::vector<LogitEdit> edits;          // of all rows; rows of one sequence share theirs
  std::vector<int32_t> edit_contexts;
  std::vector<uint32_t> masks;  // rows of ceil(vocabulary_used / 32) words; bit set: id allowed
  bool logprobs = false;        // some row wants them

  // The draft layer's half of the step; next_ids are empty where no sequence ever drafts. It runs
  // over the step's tokens, each with the token after it, so that its cache is whole, also in steps
  // without draft_rows; then the sequences of draft_rows draft. The block tables reach K - 1
  // positions behind the last token of each of these.
  std::vector<int32_t> next_ids;     // [T] the token after each, or ~r: what logit row r draws
  std::vector<DraftRow> draft_rows;  // [D]
  int32_t drafts = 0;                // K, how many each of them drafts; 0 with D = 0
};

/// Logprobs of the rows of a step: [R * (1 + kLogprobsMax)] as kernels/ops.h Logprobs, or empty.
struct StepLogprobs {
  std::vector<float> values;
  std::vector<int32_t> ids;
  std::vector<int32_t> ranks;  // [R]
};

struct StepResult {
  uint64_t step = 0;
  std::vector<int32_t> ids;     // [R] sampled ids
  std::vector<int32_t> drafts;  // [D * K], those of a draft row behind each other
  StepLogprobs logprobs;        // where the plan says so
  double seconds = 0;           // on the device, upload to download
  double idle_seconds = 0;  // the device stood still so long since the step before; 0: the first
};

}  // namespace glm::engine
