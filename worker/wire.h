// Messages of worker.proto to the engine's values and back.
//
// Who calls: Service, on gRPC's threads and the engine's. Pure functions. What is checked here is
// what the engine's types cannot hold and what would cost memory before the engine sees it; bounds
// of values are Engine::Submit's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/request.h"
#include "proto/worker.pb.h"

namespace glm::worker {

/// Blocks of one frame of a snapshot: half a megabyte.
inline constexpr size_t kSnapshotFrameBlocks = 32768;

/// INVALID_ARGUMENT naming the field, its value and the limit.
absl::StatusOr<engine::Request> FromWire(const ::glmserve::worker::v1::Submit& submit,
                                         engine::RequestId engine_id);

/// `request_id`: the router's.
void ToWire(const engine::RequestEvent& event, uint64_t request_id,
            ::glmserve::worker::v1::Output* wire);
/// The changes of a step; REQUIRES that there are some.
void ToWire(const engine::StepEvents& events, ::glmserve::worker::v1::CacheChanges* wire);
/// A snapshot as frames of at most kSnapshotFrameBlocks each; at least one.
std::vector<::glmserve::worker::v1::WorkerFrame> ToWire(const engine::CacheSnapshot& snapshot);
/// Without the step times, which are told only when they changed.
void ToWire(const engine::EngineLoad& load, ::glmserve::worker::v1::Load* wire);
void ToWire(const engine::StepTimes& times, ::glmserve::worker::v1::StepTimes* wire);
/// The step under way, by what the engine says of itself.
void ToWire(const engine::EngineStats& stats, ::glmserve::worker::v1::Heartbeat* wire);

}  // namespace glm::worker
