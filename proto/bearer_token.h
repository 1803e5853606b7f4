// The shared token of a deployment: what a process shows to its peer, and what it takes from one,
// in the gRPC metadata "authorization: Bearer TOKEN".
//
// A token comes from a file only, since a command line is seen by all of a host. The file is read
// again when it changes: several tokens, one a line, are all accepted and the first is shown, so
// that one can be replaced without a moment in which peers disagree: add the new one to the end
// everywhere, then move it to the front, then drop the old one.
#pragma once

#include <grpcpp/support/status.h>
#include <grpcpp/support/string_ref.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/base/mutex.h"
#include "proto/base/watched_file.h"

namespace glm {

inline constexpr int32_t kTokenBytesMin = 16;
inline constexpr int32_t kTokenBytesMax = 4096;
inline constexpr int32_t kTokensMax = 16;

/// Tokens of a file's text: one a line; empty lines and those that begin with '#' do not count.
/// INVALID_ARGUMENT saying which line is wrong, and never what is in it.
absl::StatusOr<std::vector<std::string>> ParseTokens(absl::string_view text);

class TokenFile {
 public:
  using Metadata = std::multimap<grpc::string_ref, grpc::string_ref>;

  /// Reads `path` now, and again each second from then on; a file that turns bad keeps what it
  /// said. `flag` names it in messages. INVALID_ARGUMENT.
  static absl::StatusOr<std::unique_ptr<TokenFile>> Open(const std::string& flag,
                                                         const std::string& path);

  /// The value of the metadata to show. Any thread.
  std::string Authorization() const;

  /// Whether the call of `metadata` shows a token of the file: OK, or UNAUTHENTICATED. Any thread.
  /// The time it takes tells nothing of the tokens.
  grpc::Status Check(const Metadata& metadata) const;

 private:
  using Sha256 = std::array<uint8_t, 32>;

  TokenFile() = default;
  void Take(const std::string& flag, const FileReading& reading);
  static Sha256 Digest(absl::string_view text);

  mutable Mutex mutex_;  // "tokens"
  std::string shown_ ABSL_GUARDED_BY(mutex_);
  std::vector<Sha256> accepted_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<WatchedFile> file_;  // last: its thread uses the others
};

}  // namespace glm
