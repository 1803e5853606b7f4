#include "proto/wire_limits.h"

#include <grpc/grpc.h>
#include <grpcpp/resource_quota.h>

#include "proto/base/log.h"

namespace glm {

void SetLimits(const ServerLimits& limits, grpc::ServerBuilder* builder) {
  builder->SetMaxReceiveMessageSize(static_cast<int>(limits.message_bytes_max));
  grpc::ResourceQuota quota("glmserve");
  quota.Resize(static_cast<size_t>(limits.memory_bytes_max));
  builder->SetResourceQuota(quota);
  builder->AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, limits.streams_max);
  builder->AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMetadataBytesMax);
  // Two processes on one port would share its peers at random.
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, limits.ping_ms);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, limits.ping_timeout_ms);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                              limits.ping_permitted_ms);
}

grpc::ChannelArguments MakeChannelArguments(const ChannelLimits& limits) {
  CHECK_GE(limits.ping_ms, kPingIntervalLeastMs) << "validated where the flag is";
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, limits.ping_ms);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, limits.ping_timeout_ms);
  // Without limit: a session may be idle for days.
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_MAX_METADATA_SIZE, kMetadataBytesMax);
  arguments.SetMaxReceiveMessageSize(static_cast<int>(limits.message_bytes_max));
  if (!limits.tls_name.empty()) arguments.SetSslTargetNameOverride(limits.tls_name);
  return arguments;
}

}  // namespace glm
