// Streams to workers over gRPC: a channel of its own for each.
#pragma once

#include <memory>

#include "router/fleet/worker_stream.h"
#include "router/options.h"

namespace grpc {
class ChannelCredentials;
}  // namespace grpc

namespace glm {
class TokenFile;
}  // namespace glm

namespace glm::router {

/// Dials with the keepalive and the limits of `options`. `credentials`: none means no TLS.
/// `tokens`, which outlives every stream: what is shown to the worker; null: nothing.
DialWorker DialOverGrpc(const FleetOptions& options,
                        std::shared_ptr<grpc::ChannelCredentials> credentials = nullptr,
                        const TokenFile* tokens = nullptr);

}  // namespace glm::router
