// How the ranks of a worker come together: by device, number and the sizes of a step.
//
// Who calls: RankGroup, and Rank where it reckons what memory is left.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "engine/rank/rank.h"
#include "kernels/communicator.h"

namespace glm::engine {

/// Where `ranks` ranks that are told `options` get their communicators. FAILED_PRECONDITION for
/// GPUs that are not there or cannot reach each other, naming them.
absl::StatusOr<std::unique_ptr<Meeting>> CreateRankMeeting(const RankOptions& options,
                                                           int32_t ranks);

/// The GPU of a rank.
int32_t DeviceOfRank(const RankOptions& options, int32_t rank);

}  // namespace glm::engine
