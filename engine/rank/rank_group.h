// The ranks of a worker as one: every step goes to all of them, one result comes back.
//
// Who calls: Engine::Create starts it; then the engine thread alone, as with any StepRunner. Ranks
// share the model's heads, widths and vocabulary (tensor parallelism), meet in their communicators
// within a step, and draw the same ids: those of rank 0 are the result.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/config.h"
#include "engine/rank/rank.h"
#include "engine/rank/step_runner.h"
#include "kernels/communicator.h"

namespace glm::engine {

class RankGroup final : public StepRunner {
 public:
  /// Starts `ranks` ranks at once and waits until all are ready for the first step; `options` are
  /// what one is told, `config` is the whole model's. Errors are those of Rank::AwaitStart, and
  /// INVALID_ARGUMENT for a number of ranks that cannot share the model, and FAILED_PRECONDITION
  /// for GPUs that are not there or cannot exchange.
  static absl::StatusOr<std::unique_ptr<RankGroup>> Start(const RankOptions& options,
                                                          const ModelConfig& config, int32_t ranks);
  RankGroup(const RankGroup&) = delete;
  RankGroup& operator=(const RankGroup&) = delete;

  void Submit(const StepPlan* plan) override;
  StepResult Wait() override;

  int32_t size() const { return static_cast<int32_t>(ranks_.size()); }
  const RankMemory& memory(int32_t rank) const { return ranks_[rank]->memory(); }

 private:
  explicit RankGroup(int32_t ranks) : gate_(ranks) {}

  StartGate gate_;                    // both outlive
  std::unique_ptr<Meeting> meeting_;  // the ranks
  std::vector<std::unique_ptr<Rank>> ranks_;
};

}  // namespace glm::engine
