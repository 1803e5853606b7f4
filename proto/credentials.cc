#include "proto/credentials.h"

#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_certificate_verifier.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "proto/base/watched_file.h"

namespace glm {
namespace {

namespace tls = grpc::experimental;

constexpr int64_t kPemBytesMax = 4 << 20;  // a bundle of every public root is some 250 KiB
constexpr unsigned int kReadIntervalS = 1;

using Bio = std::unique_ptr<BIO, decltype(&BIO_free)>;
using Certificate = std::unique_ptr<X509, decltype(&X509_free)>;
using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;

absl::Status Bad(absl::string_view flag, absl::string_view path, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("--", flag, "='", path, "': ", what));
}

/// The first certificate of a file.
absl::StatusOr<Certificate> ReadCertificate(absl::string_view flag, const std::string& path) {
  const FileReading file = ReadSmallFile(path, kPemBytesMax);
  if (!file.error.empty()) return Bad(flag, path, file.error);
  const Bio bio(BIO_new_mem_buf(file.content.data(), static_cast<int>(file.content.size())),
                BIO_free);
  Certificate certificate(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr), X509_free);
  ERR_clear_error();
  if (certificate == nullptr) return Bad(flag, path, "no certificate in PEM form is in it");
  return certificate;
}

/// A key that needs a passphrase is not read: there is nobody to ask.
absl::StatusOr<Key> ReadKey(absl::string_view flag, const std::string& path) {
  const FileReading file = ReadSmallFile(path, kPemBytesMax);
  if (!file.error.empty()) return Bad(flag, path, file.error);
  const Bio bio(BIO_new_mem_buf(file.content.data(), static_cast<int>(file.content.size())),
                BIO_free);
  char no_passphrase[] = "";
  Key key(PEM_read_bio_PrivateKey(bio.get(), nullptr, nullptr, no_passphrase), EVP_PKEY_free);
  ERR_clear_error();
  if (key == nullptr) {
    return Bad(flag, path, "no private key in PEM form, without a passphrase, is in it");
  }
  return key;
}

absl::Status CheckPair(absl::string_view prefix, const std::string& cert, const std::string& key) {
  const std::string cert_flag = absl::StrCat(prefix, "-cert");
  const std::string key_flag = absl::StrCat(prefix, "-key");
  const absl::StatusOr<Certificate> certificate = ReadCertificate(cert_flag, cert);
  if (!certificate.ok()) return certificate.status();
  const absl::StatusOr<Key> private_key = ReadKey(key_flag, key);
  if (!private_key.ok()) return private_key.status();
  const bool fits = X509_check_private_key(certificate->get(), private_key->get()) == 1;
  ERR_clear_error();
  if (fits) return absl::OkStatus();
  return Bad(key_flag, key, absl::StrCat("it is not the key of --", cert_flag, "='", cert, "'"));
}

std::shared_ptr<tls::CertificateProviderInterface> Watch(const std::string& cert,
                                                         const std::string& key,
                                                         const std::string& roots) {
  return std::make_shared<tls::FileWatcherCertificateProvider>(key, cert, roots, kReadIntervalS);
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeCredentials(absl::string_view prefix,
                                                                         const ServerTls& files) {
  if (files.cert.empty()) return grpc::InsecureServerCredentials();
  if (absl::Status status = CheckPair(prefix, files.cert, files.key); !status.ok()) return status;
  if (!files.client_ca.empty()) {
    const auto roots = ReadCertificate(absl::StrCat(prefix, "-client-ca"), files.client_ca);
    if (!roots.ok()) return roots.status();
  }
  tls::TlsServerCredentialsOptions options(Watch(files.cert, files.key, files.client_ca));
  options.watch_identity_key_cert_pairs();
  if (!files.client_ca.empty()) {
    options.watch_root_certs();
    options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  return tls::TlsServerCredentials(options);
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeCredentials(absl::string_view prefix,
                                                                          const ClientTls& files) {
  if (files.ca.empty()) return grpc::InsecureChannelCredentials();
  const auto roots = ReadCertificate(absl::StrCat(prefix, "-ca"), files.ca);
  if (!roots.ok()) return roots.status();
  if (!files.cert.empty()) {
    if (absl::Status status = CheckPair(prefix, files.cert, files.key); !status.ok()) return status;
  }
  tls::TlsChannelCredentialsOptions options;
  options.set_certificate_provider(Watch(files.cert, files.key, files.ca));
  options.watch_root_certs();
  if (!files.cert.empty()) options.watch_identity_key_cert_pairs();
  options.set_certificate_verifier(std::make_shared<tls::HostNameCertificateVerifier>());
  return tls::TlsCredentials(options);
}

}  // namespace glm
