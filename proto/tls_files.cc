#include "proto/tls_files.h"

#include "absl/strings/str_cat.h"

namespace glm {

void CheckTls(absl::string_view prefix, const ServerTls& tls, OptionChecks* checks) {
  const std::string cert = absl::StrCat(prefix, "-cert");
  const std::string key = absl::StrCat(prefix, "-key");
  checks->Needs(cert, tls.cert, key, tls.key);
  checks->Needs(key, tls.key, cert, tls.cert);
  checks->Needs(absl::StrCat(prefix, "-client-ca"), tls.client_ca, cert, tls.cert);
}

void CheckTls(absl::string_view prefix, const ClientTls& tls, OptionChecks* checks) {
  const std::string ca = absl::StrCat(prefix, "-ca");
  const std::string cert = absl::StrCat(prefix, "-cert");
  const std::string key = absl::StrCat(prefix, "-key");
  checks->Needs(cert, tls.cert, key, tls.key);
  checks->Needs(key, tls.key, cert, tls.cert);
  checks->Needs(cert, tls.cert, ca, tls.ca);
  checks->Needs(absl::StrCat(prefix, "-name"), tls.name, ca, tls.ca);
}

}  // namespace glm
