// TLS of our gRPC connections, from PEM files, for listeners and for diallers.
//
// Who calls: main, once for each listener and each set of peers. The files are read at start, where
// a bad one is refused by name, and by gRPC's own watcher each second from then on: connections
// made later use what is there then. While a certificate and its key do not fit each other no new
// connection comes about, so whoever renews them replaces both within a moment; connections that
// are open go on.
#pragma once

#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/tls_files.h"

namespace glm {

/// Plain credentials when `tls` is empty. INVALID_ARGUMENT naming the flag and what is wrong with
/// its file.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeCredentials(absl::string_view prefix,
                                                                         const ServerTls& tls);
/// The same for channels; `tls.name` belongs to the channel's arguments (wire_limits.h).
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeCredentials(absl::string_view prefix,
                                                                          const ClientTls& tls);

}  // namespace glm
