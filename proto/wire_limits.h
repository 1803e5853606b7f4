// How much one end of a gRPC connection between our processes may ask of the other, and how often
// they ping each other. Both ends take their numbers from here, so they agree by construction.
//
// Who calls: whoever builds a server or a channel between router and worker.
#pragma once

#include <grpcpp/server_builder.h>
#include <grpcpp/support/channel_arguments.h>

#include <cstdint>
#include <string>

namespace glm {

/// A listener allows pings this often, in milliseconds; one that comes sooner is a strike, and some
/// strikes end the connection.
inline constexpr int32_t kPingPermittedMs = 500;
/// So no dialler may be told to ping more often than this. gRPC itself never does.
inline constexpr int32_t kPingIntervalLeastMs = 1000;
static_assert(kPingPermittedMs <= kPingIntervalLeastMs / 2,
              "a ping that the network held up and the one after it must not count as a strike");

/// Metadata of one call: a token and what gRPC adds. Bytes; the most that a peer is told to send.
inline constexpr int32_t kMetadataBytesMax = 16 << 10;

/// A listener's ends of these limits.
struct ServerLimits {
  int64_t message_bytes_max = 16LL << 20;  // of one message received
  int32_t streams_max = 16;                // calls of one connection at once
  int64_t memory_bytes_max = 1LL << 30;    // that gRPC holds for all connections
  int32_t ping_ms = 20'000;                // a silent connection is pinged this often
  int32_t ping_timeout_ms = 10'000;        // and closed when the ping is not answered
  int32_t ping_permitted_ms = kPingPermittedMs;
};

void SetLimits(const ServerLimits& limits, grpc::ServerBuilder* builder);

/// A dialler's.
struct ChannelLimits {
  int64_t message_bytes_max = 64LL << 20;
  int32_t ping_ms = 10'000;  // at least kPingIntervalLeastMs
  int32_t ping_timeout_ms = 5000;
  std::string tls_name = {};  // as ClientTls::name
};

/// The channel gets a connection of its own, and gRPC retries nothing: who dials knows how long it
/// wants to wait.
grpc::ChannelArguments MakeChannelArguments(const ChannelLimits& limits);

}  // namespace glm
