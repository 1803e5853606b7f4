#include "engine/rank/rank_group.h"

#include <algorithm>
#include <utility>

#include "engine/model/glm.h"
#include "proto/base/log.h"

namespace glm::engine {

absl::StatusOr<std::unique_ptr<RankGroup>> RankGroup::Start(const RankOptions& options,
                                                            const ModelConfig& config,
                                                            int32_t ranks) {
  const absl::Status divides = Glm::CheckRanks(config, ranks);
  if (!divides.ok()) return divides;
  std::unique_ptr<RankGroup> group(new RankGroup);
  if (ranks == 1) {
    group->communicators_.push_back(CreateSingleCommunicator());
  } else {
    CHECK(options.device == "cpu") << ranks << " ranks on \"" << options.device << "\"";
    const StepLimits& step = options.batch.step;
    const int64_t elements_max =
        std::max(step.tokens_max * step.hidden, step.logit_rows_max * (step.vocabulary / ranks));
    group->communicators_ = CreateLocalCommunicators(ranks, elements_max);
  }
  for (const auto& communicator : group->communicators_) {
    group->ranks_.push_back(std::make_unique<Rank>(options, config, communicator.get()));
  }
  absl::Status status;
  for (const auto& rank : group->ranks_) status.Update(rank->AwaitStart());
  if (!status.ok()) return status;
  return group;
}

void RankGroup::Submit(const StepPlan* plan) {
  for (const auto& rank : ranks_) rank->Submit(plan);
}

StepResult RankGroup::Wait() {
  StepResult result = ranks_.front()->Wait();
  for (size_t i = 1; i < ranks_.size(); ++i) {
    const StepResult other = ranks_[i]->Wait();
    CHECK_EQ(other.step, result.step) << "rank " << i << " is at another step";
    DCHECK(other.ids == result.ids) << "rank " << i << " sampled other ids";
    DCHECK(other.drafts == result.drafts) << "rank " << i << " drafted other ids";
  }
  return result;
}

}  // namespace glm::engine
