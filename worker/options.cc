#include "worker/options.h"

#include "absl/strings/str_cat.h"

namespace glm::worker {
namespace {

absl::Status CheckRange(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--", name, " is ", value, ", it must be from ", low, " to ", high));
}

}  // namespace

absl::Status WorkerOptions::Validate() const {
  if (listen.empty()) return absl::InvalidArgumentError("--listen is empty, it must be host:port");
  for (const absl::Status& status :
       {CheckRange("drain-timeout-s", drain_timeout_s, 0, 86'400),
        CheckRange("sessions-max", sessions_max, 1, 4'096),
        CheckRange("session-frames-max", session_frames_max, 16, 1 << 20),
        CheckRange("heartbeat-ms", heartbeat_ms, 10, 60'000),
        CheckRange("frame-bytes-max", frame_bytes_max, 4'096, 1 << 30)}) {
    if (!status.ok()) return status;
  }
  return engine.Validate();
}

}  // namespace glm::worker
