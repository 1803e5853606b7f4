// Streams to workers over gRPC: a channel of its own for each.
#pragma once

#include "router/fleet/worker_stream.h"
#include "router/options.h"

namespace glm::router {

/// Dials with the keepalive and the limits of `options`.
DialWorker DialOverGrpc(const FleetOptions& options);

}  // namespace glm::router
