#include "router/options.h"

#include <limits>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace glm::router {
namespace {

constexpr int64_t kDayS = 86'400;
constexpr int64_t kHourMs = 3'600'000;
constexpr int64_t kKib = 1 << 10;
constexpr int64_t kGib = 1LL << 30;

/// Collects the first failure, so that a long list of bounds reads as a table.
class Checks {
 public:
  void Range(absl::string_view flag, int64_t value, int64_t least, int64_t most) {
    if (!status_.ok() || (value >= least && value <= most)) return;
    status_ = absl::InvalidArgumentError(
        absl::StrCat("--", flag, "=", value, " must be from ", least, " to ", most));
  }

  void Address(absl::string_view flag, absl::string_view value, int32_t port_min) {
    if (!status_.ok()) return;
    const size_t colon = value.rfind(':');
    int32_t port = -1;
    const bool good = colon != absl::string_view::npos && colon > 0 &&
                      absl::SimpleAtoi(value.substr(colon + 1), &port) && port >= port_min &&
                      port <= 65'535;
    if (!good) {
      Fail(absl::StrCat("--", flag, "='", value, "' must be host:port, with a port from ", port_min,
                        " to 65535"));
    }
  }

  void Fail(const std::string& message) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(message);
  }

  const absl::Status& status() const { return status_; }

 private:
  absl::Status status_;
};

void CheckFleet(const FleetOptions& fleet, Checks* checks) {
  checks->Range("workers (how many)", static_cast<int64_t>(fleet.workers.size()), 1, 1024);
  std::set<std::string> seen;
  for (const std::string& address : fleet.workers) {
    checks->Address("workers", address, 1);
    if (!seen.insert(address).second) {
      checks->Fail(absl::StrCat("--workers names '", address, "' twice; once is the limit"));
    }
  }
  checks->Range("connect_timeout_ms", fleet.connect_timeout_ms, 1, kHourMs);
  checks->Range("backoff_initial_ms", fleet.backoff_initial_ms, 1, kHourMs);
  checks->Range("backoff_max_ms", fleet.backoff_max_ms, fleet.backoff_initial_ms, kHourMs);
  if (!(fleet.backoff_jitter >= 0 && fleet.backoff_jitter < 1)) {
    checks->Fail(
        absl::StrCat("--backoff_jitter=", fleet.backoff_jitter, " must be at least 0 and below 1"));
  }
  checks->Range("keepalive_ms", fleet.keepalive_ms, 1000, kHourMs);
  checks->Range("keepalive_timeout_ms", fleet.keepalive_timeout_ms, 100, kHourMs);
  checks->Range("session_out_bytes_max", fleet.session_out_bytes_max, kKib, 16 * kGib);
  checks->Range("frame_bytes_max", fleet.frame_bytes_max, kKib, kGib);
  checks->Range("waiting_max", fleet.waiting_max, 0, 1'000'000);
}

}  // namespace

absl::Status RouterOptions::Validate() const {
  Checks checks;
  if (model_dir.empty()) checks.Fail("--model='' must name the model's folder");
  if (ModelName().size() > 256) {
    checks.Fail(absl::StrCat("--served_model_name of ", ModelName().size(),
                             " bytes must have at most 256"));
  }
  checks.Range("loop_threads", loop_threads, 1, 256);
  checks.Range("drain_timeout_s", drain_timeout_s, 0, kDayS);
  CheckFleet(fleet, &checks);

  checks.Range("attempts_max", exchange.attempts_max, 1, 100);
  checks.Range("worker_wait_ms", exchange.worker_wait_ms, 0, kHourMs);
  checks.Range("request_timeout_s", exchange.timeout_s, 1, kDayS);

  if (http.host.empty()) checks.Fail("--host='' must be an address to listen on");
  checks.Range("port", http.port, 0, 65'535);
  checks.Range("http_body_bytes_max", http.body_bytes_max, kKib, kGib);
  checks.Range("http_header_bytes_max", http.header_bytes_max, kKib, 16 << 20);
  checks.Range("http_connections_max", http.connections_max, 1, 1'000'000);
  checks.Range("http_output_bytes_max", http.output_bytes_max, kKib, kGib);
  checks.Range("http_idle_timeout_s", http.idle_timeout_s, 1, kDayS);
  checks.Range("http_read_timeout_s", http.read_timeout_s, 1, kDayS);
  checks.Range("http_write_timeout_s", http.write_timeout_s, 1, kDayS);
  if (http.cors_origin.find_first_of("\r\n") != std::string::npos) {
    checks.Fail("--http_cors_origin must not have a line break");
  }

  checks.Address("grpc_address", grpc.address, 0);
  checks.Range("grpc_message_bytes_max", grpc.message_bytes_max, kKib, kGib);
  checks.Range("grpc_output_bytes_max", grpc.output_bytes_max, kKib, kGib);
  checks.Range("grpc_streams_max", grpc.streams_max, 1, 1'000'000);
  return checks.status();
}

std::string RouterOptions::ModelName() const {
  if (!served_model_name.empty()) return served_model_name;
  std::string path = model_dir;
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path.substr(path.rfind('/') + 1);
}

}  // namespace glm::router
