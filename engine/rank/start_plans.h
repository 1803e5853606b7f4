// The steps that a rank captures before the first request comes: decode steps of every number of
// sequences there is a bucket for, with as many drafts as there may be.
//
// Who calls: a rank, once, when all memory is planned. Other steps that suit a graph (logprobs,
// edits, fewer drafts, tables of very long sequences, several ranks that gather whole logits) are
// captured when they come.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/rank/batch.h"
#include "engine/schedule/step.h"

namespace glm::engine {

/// Numbers of sequences, the largest first; none above StepGraphs::kTokensMax tokens.
std::vector<int32_t> StartBatches(const BatchLimits& limits);

/// A decode step of `sequences` that each come with limits.drafts_max drafts. It is fit to run, and
/// touches nothing but the first positions of block 0, in which no sequence has put anything yet.
StepPlan StartPlan(const BatchLimits& limits, int32_t sequences);

}  // namespace glm::engine
