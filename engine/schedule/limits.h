// The sizes that a scheduler plans within. Plain values, agreed with the ranks at start.
#pragma once

#include <cstdint>

#include "engine/schedule/step.h"
#include "proto/base/block_hash.h"

namespace glm::engine {

struct SchedulerLimits {
  int32_t block_size = 0;          // P, token slots of a block
  int64_t kv_blocks = 0;           // B
  int32_t length_max = 0;          // prompt + generated tokens of one request; at most B * P
  int32_t sequences_max = 0;       // running at once; also the number of slots
  int32_t batched_tokens_max = 0;  // tokens of one step; at least sequences_max * (1 + drafts_max)
  int32_t logit_rows_max = 0;      // logit rows of one step; at least the same
  int32_t edits_max = kStepEditsMax;                 // of one step; each at least what one request
  int32_t edit_contexts_max = kStepEditContextsMax;  // can ask for
  int32_t masks_max = kStepMasksMax;
  int32_t vocabulary = 0;           // ids are below this; needed for masks only
  int32_t plans_in_flight_max = 1;  // plans made whose results are not back; 1 with drafts
  int32_t drafts_max = 0;           // K, of a sequence and step; at most 5
  bool adaptive_drafts = true;      // fewer where they do not pay
  bool prefix_caching = false;
  HashKey prefix_hash_key{};
  /// Prompt tokens of one request in a step in which others decode; 0: no limit.
  int32_t long_prefill_token_threshold = 0;
};

}  // namespace glm::engine
