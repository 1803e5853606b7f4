#include "proto/peer_host.h"

#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"

namespace glm {

std::string PeerHost(absl::string_view peer) {
  if (!absl::ConsumePrefix(&peer, "ipv4:") && !absl::ConsumePrefix(&peer, "ipv6:")) return "";
  return absl::StrReplaceAll(peer.substr(0, peer.rfind(':')), {{"%5B", "["}, {"%5D", "]"}});
}

}  // namespace glm
