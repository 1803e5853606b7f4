// Sequence: how far one request has come. Plain state; the scheduler alone changes it.
//
// Three counts tell its progress. `tokens` are the ids that the host knows: the prompt, then what
// was generated. `outputs_in_flight` more are being sampled by plans whose results are not back;
// they are known to the device only. Of these tokens, the first `planned` are in the KV cache once
// the plans in flight have run. A running sequence always has at least one token that is not
// planned. With drafts, `planned` counts those of the plan in flight too; those that turn out wrong
// are taken off again.
//
// A sequence that is preempted or ended while a plan in flight names it keeps its blocks and its
// slot until that plan's result is back (`plans_in_flight` 0).
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/request.h"
#include "kernels/ops.h"
#include "proto/base/block_hash.h"

namespace glm::engine {

struct Sequence {
  enum class State : uint8_t {
    kWaiting,  // for its first step, or preempted: to be computed anew
    kRunning,  // has a slot and is planned step after step
    kEnded,    // its end was reported; here only until no plan in flight names it
  };
  /// Smaller is served first.
  using Order = std::pair<int32_t, uint64_t>;

  RequestId id = 0;
  SamplingParams sampling;
  StopRule stop;
  int32_t priority = 0;
  uint64_t arrival = 0;  // number of the Admit call
  std::string cache_salt;
  std::shared_ptr<const TokenMask> token_mask;

  // Made of `sampling` and `stop` by PrepareEdits, for all rows of the sequence.
  std::vector<LogitEdit> edits;  // contexts count from 0; those that end with min_tokens come last
  int32_t edits_lasting = 0;     // of them, those that never end
  std::vector<int32_t> edit_contexts;
  std::vector<uint32_t> allowed;  // mask words of allowed_ids; empty: all are

  State state = State::kWaiting;
  std::vector<int32_t> tokens;   // prompt, then generated
  int32_t prompt_tokens = 0;     // how many of `tokens` are the request's prompt_ids
  int32_t generated_before = 0;  // of these, the last that count as generated
  int32_t cached_tokens = 0;     // of the prompt, taken from the prefix cache
  bool ran = false;              // was admitted to the running ones at least once
  int32_t planned = 0;           // tokens whose K and V are stored, or will be by plans in flight
  int32_t outputs_in_flight = 0;
  int32_t plans_in_flight = 0;
  bool vacating = false;        // preempted or ended, and a plan in flight names it
  int32_t slot = -1;            // entry of the ranks' last_ids, 0..sequences_max-1; -1: none
  std::vector<int32_t> blocks;  // block i holds positions [i*P, (i+1)*P)
  std::vector<BlockKey> keys;   // of the first full blocks; more are named as needed
  int32_t published = 0;        // the first so many blocks are in the prefix cache
  bool publishes = true;        // false: a key of its was taken by other tokens
  std::vector<int32_t> drafts;  // what may follow `tokens`; the next plan has them judged
  int32_t score_next = 1;  // position of the next prompt token whose logprobs are to be planned
  int32_t score_told = 1;  // and of that to be told

  Order order() const { return {priority, arrival}; }
  int32_t tokens_known() const { return static_cast<int32_t>(tokens.size()); }
  /// Known to the host or, the newest of them, only to the device.
  int32_t tokens_total() const { return tokens_known() + outputs_in_flight; }
  int32_t tokens_unplanned() const { return tokens_total() - planned; }
  /// Since it came here: what max_tokens counts.
  int32_t tokens_generated() const { return tokens_known() - prompt_tokens; }
  /// The prompt without what had been generated before: where generated tokens begin.
  int32_t answer_begins() const { return prompt_tokens - generated_before; }
  /// Positions up to here, from 1, are to have prompt logprobs.
  int32_t score_end() const { return sampling.prompt_logprobs >= 0 ? answer_begins() : 0; }
  /// Rows of prompt logprobs that the next `count` tokens need.
  int32_t score_rows(int32_t count) const {
    const int32_t begin = std::max(planned + 1, score_next);
    return std::max(0, std::min(planned + count + 1, score_end()) - begin);
  }
  /// True when the plans in flight already sample the last token that max_tokens allows.
  bool fully_planned() const { return tokens_generated() + outputs_in_flight >= stop.max_tokens; }
};

}  // namespace glm::engine
