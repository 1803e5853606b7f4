// How the ranks of a worker come together: by device, number and the sizes of a step.
//
// Who calls: RankGroup; Rank, for its device and where it reckons what memory is left; benchmarks
// that have ranks.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/rank/rank.h"
#include "kernels/communicator.h"

namespace glm::engine {

/// Where `ranks` ranks that are told `options` get their communicators. FAILED_PRECONDITION for
/// GPUs that are not there or cannot reach each other, naming them.
absl::StatusOr<std::unique_ptr<Meeting>> CreateRankMeeting(const RankOptions& options,
                                                           int32_t ranks);

/// The device of a rank, on the thread that will own it. FAILED_PRECONDITION for a GPU that is not
/// there or not of a kind that the kernels are for.
absl::StatusOr<std::unique_ptr<Device>> CreateRankDevice(const RankOptions& options, int32_t rank);

/// By its name as a flag has it: "peer", "nccl"; anything else is kAuto.
GpuExchange GpuExchangeOf(const std::string& name);

/// What to tell of ranks that started: OK, or the reason of one that failed by itself. ABORTED, by
/// which a rank says that another failed, only where there is no other.
absl::Status FirstReason(const std::vector<absl::Status>& statuses);

}  // namespace glm::engine
