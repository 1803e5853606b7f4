// Which PEM files a connection's TLS is made of: plain options, for the structs of both processes.
// What is made of them: credentials.h.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "proto/option_checks.h"

namespace glm {

/// A listener's files. All empty: no TLS.
struct ServerTls {
  std::string cert = {};  // its certificate, then those between it and the root
  std::string key = {};   // of the certificate
  std::string client_ca =
      {};  // roots that a client's certificate must come from; empty: none is asked
};

/// A dialler's files. All empty: no TLS.
struct ClientTls {
  std::string ca = {};    // roots that the peer's certificate must come from
  std::string cert = {};  // to show to peers that ask for one; empty: none
  std::string key = {};   // of the certificate
  std::string name = {};  // that the peer's certificate must bear; empty: the host that was dialled
};

/// That the flags --PREFIX-cert, -key, -client-ca go together.
void CheckTls(absl::string_view prefix, const ServerTls& tls, OptionChecks* checks);
/// The same of --PREFIX-ca, -cert, -key, -name.
void CheckTls(absl::string_view prefix, const ClientTls& tls, OptionChecks* checks);

}  // namespace glm
