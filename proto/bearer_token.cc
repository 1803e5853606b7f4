#include "proto/bearer_token.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <chrono>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "proto/base/log.h"

namespace glm {
namespace {

constexpr absl::string_view kScheme = "Bearer ";
constexpr int64_t kFileBytesMax = kTokensMax * (kTokenBytesMax + 1024);
constexpr std::chrono::seconds kReadInterval{1};

}  // namespace

absl::StatusOr<std::vector<std::string>> ParseTokens(absl::string_view text) {
  std::vector<std::string> tokens;
  int32_t number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || line.front() == '#') continue;
    if (line.size() < kTokenBytesMin || line.size() > kTokenBytesMax) {
      return absl::InvalidArgumentError(absl::StrCat("line ", number, " has a token of ",
                                                     line.size(), " bytes; it must have from ",
                                                     kTokenBytesMin, " to ", kTokenBytesMax));
    }
    for (const char byte : line) {
      if (byte <= ' ' || byte > '~') {
        return absl::InvalidArgumentError(
            absl::StrCat("line ", number, " has a token with bytes that are not printable ASCII"));
      }
    }
    tokens.emplace_back(line);
  }
  if (tokens.empty() || tokens.size() > kTokensMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("it has ", tokens.size(), " tokens; it must have from 1 to ", kTokensMax));
  }
  return tokens;
}

absl::StatusOr<std::unique_ptr<TokenFile>> TokenFile::Open(const std::string& flag,
                                                           const std::string& path) {
  std::unique_ptr<TokenFile> tokens(new TokenFile());
  tokens->file_ = std::make_unique<WatchedFile>(
      path, kFileBytesMax, kReadInterval,
      [flag, self = tokens.get()](const FileReading& reading) { self->Take(flag, reading); });
  const FileReading& first = tokens->file_->first();
  if (!first.error.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("--", flag, ": ", first.error));
  }
  if (const auto parsed = ParseTokens(first.content); !parsed.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--", flag, "=", path, ": ", parsed.status().message()));
  }
  tokens->Take(flag, first);
  return tokens;
}

void TokenFile::Take(const std::string& flag, const FileReading& reading) {
  const absl::StatusOr<std::vector<std::string>> tokens = ParseTokens(reading.content);
  if (!reading.error.empty() || !tokens.ok()) {
    LOG(WARNING) << "--" << flag << ": the tokens known before stay: "
                 << (reading.error.empty() ? std::string(tokens.status().message())
                                           : reading.error);
    return;
  }
  std::vector<Sha256> accepted;
  for (const std::string& token : *tokens) accepted.push_back(Digest(token));
  MutexLock lock(&mutex_);
  if (!accepted_.empty()) LOG(INFO) << "--" << flag << " was read again";
  shown_ = absl::StrCat(kScheme, tokens->front());
  accepted_ = std::move(accepted);
}

std::string TokenFile::Authorization() const {
  MutexLock lock(&mutex_);
  return shown_;
}

TokenFile::Sha256 TokenFile::Digest(absl::string_view text) {
  Sha256 digest;
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest.data());
  return digest;
}

grpc::Status TokenFile::Check(const Metadata& metadata) const {
  const auto shown = metadata.equal_range("authorization");
  if (shown.first == shown.second) {
    return grpc::Status(grpc::StatusCode::UNAUTHENTICATED,
                        "no token: metadata 'authorization: Bearer TOKEN' is missing");
  }
  absl::string_view value(shown.first->second.data(), shown.first->second.size());
  const bool single = std::next(shown.first) == shown.second;
  if (!single || !absl::StartsWithIgnoreCase(value, kScheme)) {
    return grpc::Status(grpc::StatusCode::UNAUTHENTICATED,
                        "metadata 'authorization' must be one, and 'Bearer TOKEN'");
  }
  const Sha256 digest = Digest(value.substr(kScheme.size()));
  bool known = false;
  {
    MutexLock lock(&mutex_);
    // All are compared, whichever it is.
    for (const Sha256& accepted : accepted_) {
      known |= CRYPTO_memcmp(digest.data(), accepted.data(), digest.size()) == 0;
    }
  }
  if (known) return grpc::Status::OK;
  return grpc::Status(grpc::StatusCode::UNAUTHENTICATED, "wrong token");
}

}  // namespace glm
