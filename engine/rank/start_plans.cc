#include "engine/rank/start_plans.h"

#include <algorithm>

#include "engine/rank/graphs.h"

namespace glm::engine {

std::vector<int32_t> StartBatches(const BatchLimits& limits) {
  std::vector<int32_t> batches;
  const int64_t tokens_each = 1 + limits.drafts_max;
  const int64_t most =
      std::min({limits.step.sequences_max, limits.step.tokens_max / tokens_each,
                limits.step.logit_rows_max / tokens_each, StepGraphs::kTokensMax / tokens_each});
  for (int64_t sequences = 1; sequences <= most; ++sequences) {
    const int64_t bucket = std::min(Batch::Bucket(sequences, limits.step.sequences_max), most);
    if (batches.empty() || batches.back() != bucket) {
      batches.push_back(static_cast<int32_t>(bucket));
    }
  }
  std::reverse(batches.begin(), batches.end());
  return batches;
}

StepPlan StartPlan(const BatchLimits& limits, int32_t sequences) {
  const auto drafts = static_cast<int32_t>(limits.drafts_max);
  const int32_t tokens_each = 1 + drafts;
  StepPlan plan;
  plan.query_starts = {0};
  plan.blocks_max = 1;
  for (int32_t s = 0; s < sequences; ++s) {
    for (int32_t t = 0; t < tokens_each; ++t) {
      plan.logit_tokens.push_back(static_cast<int32_t>(plan.token_ids.size()));
      plan.token_ids.push_back(0);
      plan.positions.push_back(t);
      plan.token_sequences.push_back(s);
      SampleRow row;
      row.sequence = s;
      row.position = static_cast<uint32_t>(t + 1);
      plan.sample_rows.push_back(row);
      if (drafts > 0) plan.next_ids.push_back(~plan.logit_tokens.back());
    }
    plan.query_starts.push_back((s + 1) * tokens_each);
    plan.kv_lengths.push_back(tokens_each);
    plan.block_tables.push_back(0);
    if (drafts > 0) {
      plan.draft_rows.push_back({s, s * tokens_each, drafts});
      plan.drafts = drafts;
    }
  }
  return plan;
}

}  // namespace glm::engine
