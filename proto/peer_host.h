// Who is at the other end of a gRPC call, without the port that changes with every connection.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace glm {

/// The host of what gRPC calls a peer ("ipv4:10.0.0.1:4711", "ipv6:%5B::1%5D:4711", "unix:..."), as
/// it stands in an address: 10.0.0.1, [::1]. Empty for a unix socket.
std::string PeerHost(absl::string_view peer);

}  // namespace glm
