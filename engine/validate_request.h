// What an engine can serve: every field of a request against its limits.
//
// Who calls: Engine::Submit, on the caller's thread. A request that passes can always be run.
#pragma once

#include "absl/status/status.h"
#include "engine/request.h"
#include "kernels/ops.h"

namespace glm::engine {

/// INVALID_ARGUMENT naming field, value and limit for what the engine of this shape cannot serve.
absl::Status ValidateRequest(const Request& request, const EngineShape& shape);

}  // namespace glm::engine
