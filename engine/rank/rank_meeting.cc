#include "engine/rank/rank_meeting.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_format.h"

namespace glm::engine {

namespace {

/// The GPU of a rank.
int32_t DeviceOfRank(const RankOptions& options, int32_t rank) {
  return options.device_index + rank / options.ranks_per_device;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> CreateRankDevice(const RankOptions& options, int32_t rank) {
  if (options.device == "cpu") return CreateCpuDevice(options.cpu_threads);
  const int32_t index = DeviceOfRank(options, rank);
  std::string error;
  std::unique_ptr<Device> device = CreateCudaDevice(index, &error);
  if (device == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrFormat("device is \"%s\", device_index %d: %s", options.device, index, error));
  }
  return device;
}

GpuExchange GpuExchangeOf(const std::string& name) {
  if (name == "peer") return GpuExchange::kPeer;
  return name == "nccl" ? GpuExchange::kNccl : GpuExchange::kAuto;
}

absl::Status FirstReason(const std::vector<absl::Status>& statuses) {
  absl::Status reason;
  for (const absl::Status& status : statuses) {
    if (reason.ok() || (absl::IsAborted(reason) && !status.ok())) reason = status;
  }
  return reason;
}

absl::StatusOr<std::unique_ptr<Meeting>> CreateRankMeeting(const RankOptions& options,
                                                           int32_t ranks) {
  if (ranks == 1) return CreateSingleMeeting();
  const StepLimits& step = options.batch.step;
  const int64_t logits_part = step.logit_rows_max * (step.vocabulary / ranks);
  if (options.device == "cpu") {
    return CreateLocalMeeting(ranks, std::max(step.tokens_max * step.hidden, logits_part));
  }
  GpuMeetingOptions meeting{.devices = {},
                            .exchange = options.exchange,
                            .rows_max = step.tokens_max,
                            .hidden = step.hidden,
                            .gather_elements_max = logits_part};
  for (int32_t rank = 0; rank < ranks; ++rank) {
    meeting.devices.push_back(DeviceOfRank(options, rank));
  }
  std::string error;
  std::unique_ptr<Meeting> created = CreateGpuMeeting(meeting, &error);
  if (created != nullptr) return created;
  return absl::FailedPreconditionError(absl::StrFormat(
      "tensor_parallel_size is %d and device_index %d: %s", ranks, options.device_index, error));
}

}  // namespace glm::engine
