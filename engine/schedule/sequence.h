// Sequence: how far one request has come. Plain state; the scheduler alone reads and changes it.
//
// Three counts tell its progress. `tokens` are the ids that the host knows: the prompt, then what
// was generated. `outputs_in_flight` more are being sampled by plans whose results are not back;
// they are known to the device only. Of these tokens, the first `planned` are in the KV cache once
// the plans in flight have run. A running sequence always has at least one token that is not
// planned.
//
// A sequence that is preempted or ended while a plan in flight names it keeps its blocks and its
// slot until that plan's result is back (`plans_in_flight` 0).
#pragma once

#include <cstdint>
#include <vector>

#include "engine/request.h"

namespace glm::engine {

struct Sequence {
  enum class State : uint8_t {
    kWaiting,  // for its first step, or preempted: to be computed anew
    kRunning,  // has a slot and is planned step after step
    kEnded,    // its end was reported; here only until no plan in flight names it
  };

  RequestId id = 0;
  SamplingParams sampling;
  StopRule stop;
  uint64_t arrival = 0;  // number of the Admit call: the order in which sequences are served

  State state = State::kWaiting;
  std::vector<int32_t> tokens;  // prompt, then generated
  int32_t prompt_tokens = 0;    // how many of `tokens` are the prompt
  int32_t cached_tokens = 0;    // of the prompt, taken from the prefix cache
  int32_t planned = 0;          // tokens whose K and V are stored, or will be by plans in flight
  int32_t outputs_in_flight = 0;
  int32_t plans_in_flight = 0;
  bool vacating = false;        // preempted or ended, and a plan in flight names it
  int32_t slot = -1;            // entry of the ranks' last_ids, 0..sequences_max-1; -1: none
  uint64_t planned_step = 0;    // the newest plan that names it; 0: none
  std::vector<int32_t> blocks;  // block i holds positions [i*P, (i+1)*P)

  int32_t tokens_known() const { return static_cast<int32_t>(tokens.size()); }
  /// Known to the host or, the newest of them, only to the device.
  int32_t tokens_total() const { return tokens_known() + outputs_in_flight; }
  int32_t tokens_unplanned() const { return tokens_total() - planned; }
  int32_t tokens_generated() const { return tokens_known() - prompt_tokens; }
  /// True when the plans in flight already sample the last token that max_tokens allows.
  bool fully_planned() const { return tokens_generated() + outputs_in_flight >= stop.max_tokens; }
};

}  // namespace glm::engine
