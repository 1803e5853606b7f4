#include "engine/rank/rank_group.h"

#include <utility>

#include "engine/model/glm.h"
#include "engine/rank/rank_meeting.h"
#include "proto/base/log.h"

namespace glm::engine {

absl::StatusOr<std::unique_ptr<RankGroup>> RankGroup::Start(const RankOptions& options,
                                                            const ModelConfig& config,
                                                            int32_t ranks) {
  const absl::Status divides = Glm::CheckRanks(config, ranks);
  if (!divides.ok()) return divides;
  std::unique_ptr<RankGroup> group(new RankGroup(ranks));
  absl::StatusOr<std::unique_ptr<Meeting>> meeting = CreateRankMeeting(options, ranks);
  if (!meeting.ok()) return meeting.status();
  group->meeting_ = *std::move(meeting);
  if (ranks > 1) {
    LOG(INFO) << "tensor parallel: " << ranks << " ranks, over " << group->meeting_->Describe();
  }
  for (int32_t rank = 0; rank < ranks; ++rank) {
    group->ranks_.push_back(std::make_unique<Rank>(
        options, config,
        RankPlace{.rank = rank, .meeting = group->meeting_.get(), .gate = &group->gate_}));
  }
  std::vector<absl::Status> statuses;
  for (const auto& rank : group->ranks_) statuses.push_back(rank->AwaitStart());
  const absl::Status status = FirstReason(statuses);
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
