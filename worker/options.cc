#include "worker/options.h"

#include "absl/strings/str_cat.h"
#include "proto/option_checks.h"

namespace glm::worker {
namespace {

/// The most bytes that an id of a prompt takes in a frame, and what else is in it: ids that are
/// allowed, biased or banned.
constexpr int64_t kTokenBytes = 5;
constexpr int64_t kOtherBytes = 1 << 20;

}  // namespace

absl::Status CheckFrameHolds(int64_t frame_bytes_max, int64_t length_max) {
  const int64_t least = kTokenBytes * length_max + kOtherBytes;
  if (frame_bytes_max >= least) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--frame-bytes-max=", frame_bytes_max, " must be at least ", least,
                   ": a request may have ", length_max, " tokens (--max-model-len)"));
}

absl::Status WorkerOptions::Validate() const {
  OptionChecks checks;
  checks.Address("listen", listen, 0);
  checks.Range("drain-timeout-s", drain_timeout_s, 0, 86'400);
  checks.Range("sessions-max", sessions_max, 1, 4'096);
  checks.Range("peer-sessions-max", peer_sessions_max, 1, 4'096);
  checks.Range("streams-max", streams_max, 1, 4'096);
  checks.Range("hello-timeout-ms", hello_timeout_ms, 1, 3'600'000);
  checks.Range("session-frames-max", session_frames_max, 16, 1 << 20);
  checks.Range("heartbeat-ms", heartbeat_ms, 10, 60'000);
  checks.Range("frame-bytes-max", frame_bytes_max, 4'096, 1 << 30);
  checks.Range("grpc-memory-bytes-max", grpc_memory_bytes_max, 16 << 20, 1LL << 40);
  CheckTls("tls", tls, &checks);
  checks.Range("register-with (how many)", static_cast<int64_t>(register_with.size()), 0, 64);
  for (const std::string& router : register_with) checks.Address("register-with", router, 1);
  if (!advertise.empty()) checks.Address("advertise", advertise, 1);
  checks.Needs("register-tls-name", register_tls.name, "register-tls-ca", register_tls.ca);
  if (!checks.status().ok()) return checks.status();
  return engine.Validate();
}

}  // namespace glm::worker
