#include "router/options.h"

#include <limits>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "proto/base/block_hash.h"
#include "proto/option_checks.h"
#include "proto/wire_limits.h"
#include "router/route/policy.h"
#include "router/route/worker_mask.h"

namespace glm::router {
namespace {

constexpr int64_t kDayS = 86'400;
constexpr int64_t kHourMs = 3'600'000;
constexpr int64_t kKib = 1 << 10;
constexpr int64_t kGib = 1LL << 30;
constexpr int64_t kTib = 1LL << 40;

void CheckRoute(const RouteOptions& route, OptionChecks* checks) {
  if (!ParsePolicy(route.policy).has_value()) {
    checks->Fail(
        absl::StrCat("--policy='", route.policy,
                     "' must be prefix, least-load, round-robin, power-of-two or session"));
  }
  // A key is a secret: not said.
  if (!ParseHashKey(route.prefix_hash_key).has_value()) {
    checks->Fail(absl::StrCat("--prefix-hash-key has ", route.prefix_hash_key.size(),
                              " characters, must be 32 hex digits, or empty"));
  }
  checks->Range("prefix-blocks-max", route.prefix_blocks_max, 1, 1LL << 32);
  checks->Range("prefix-expect-ms", route.prefix_expect_ms, 0, kHourMs);
}

void CheckFleet(const FleetOptions& fleet, OptionChecks* checks) {
  checks->Range("workers (how many)", static_cast<int64_t>(fleet.workers.size()), 0,
                WorkerMask::kWorkersMax);
  std::set<std::string> seen;
  for (const std::string& address : fleet.workers) {
    checks->Address("workers", address, 1);
    if (!seen.insert(address).second) {
      checks->Fail(absl::StrCat("--workers names '", address, "' twice; once is the limit"));
    }
  }
  checks->Range("connect-timeout-ms", fleet.connect_timeout_ms, 1, kHourMs);
  checks->Range("backoff-initial-ms", fleet.backoff_initial_ms, 1, kHourMs);
  checks->Range("backoff-max-ms", fleet.backoff_max_ms, fleet.backoff_initial_ms, kHourMs);
  if (!(fleet.backoff_jitter >= 0 && fleet.backoff_jitter < 1)) {
    checks->Fail(
        absl::StrCat("--backoff-jitter=", fleet.backoff_jitter, " must be at least 0 and below 1"));
  }
  checks->Range("hang-timeout-ms", fleet.hang_timeout_ms, 1000, kHourMs);
  checks->Range("step-timeout-ms", fleet.step_timeout_ms, 1000, kHourMs);
  // Workers close a connection that pings them more often.
  checks->Range("keepalive-ms", fleet.keepalive_ms, kPingIntervalLeastMs, kHourMs);
  checks->Range("keepalive-timeout-ms", fleet.keepalive_timeout_ms, 100, kHourMs);
  checks->Range("session-out-bytes-max", fleet.session_out_bytes_max, kKib, 16 * kGib);
  checks->Range("frame-bytes-max", fleet.frame_bytes_max, kKib, kGib);
  checks->Range("worker-queue-requests", fleet.worker_queue_requests, 0, 100'000);
  checks->Range("worker-queue-tokens", fleet.worker_queue_tokens, 1, 1LL << 40);
  checks->Range("eject-errors", fleet.eject_errors, 1, 1000);
  checks->Range("eject-ms", fleet.eject_ms, 1, kHourMs);
  checks->Range("eject-max-ms", fleet.eject_max_ms, fleet.eject_ms, kHourMs);
  checks->Range("leave-timeout-s", fleet.leave_timeout_s, 0, kDayS);
  CheckTls("worker-tls", fleet.tls, checks);
}

void CheckMembership(const RouterOptions& options, OptionChecks* checks) {
  const MembershipOptions& membership = options.membership;
  if (options.fleet.workers.empty() && membership.file.empty() && membership.dns.empty() &&
      membership.registry_listen.empty()) {
    checks->Fail(
        "--workers, --workers-file, --workers-dns or --registry-listen must say where workers are");
  }
  if (!membership.dns.empty() &&
      (absl::StartsWith(membership.dns, "unix:") || !IsAddress(membership.dns, 1))) {
    checks->Fail(absl::StrCat("--workers-dns='", membership.dns,
                              "' must be host:port, with a port from 1 to 65535"));
  }
  checks->Range("workers-dns-interval-s", membership.dns_interval_s, 1, kDayS);
  checks->Range("registration-grace-s", membership.registration_grace_s, 0, kDayS);
  CheckTls("registry-tls", membership.registry_tls, checks);
  if (membership.registry_listen.empty()) return;
  checks->Address("registry-listen", membership.registry_listen, 0);
  // Who registers is sent prompts.
  if (options.fleet.token_file.empty() && membership.registry_tls.client_ca.empty()) {
    checks->Fail("--registry-listen needs --worker-token-file or --registry-tls-client-ca");
  }
}

bool IsHeaderName(const std::string& name) {
  return name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-_") == std::string::npos;
}

void CheckAdmit(const AdmitOptions& admit, OptionChecks* checks) {
  checks->Range("requests-max", admit.requests_max, 1, 10'000'000);
  checks->Range("queue-requests-max", admit.queue_requests_max, 0, 1'000'000);
  checks->Range("queue-tokens-max", admit.queue_tokens_max, 1, 1LL << 40);
  if (!(admit.queue_tenant_share > 0 && admit.queue_tenant_share <= 1)) {
    checks->Fail(absl::StrCat("--queue-tenant-share=", admit.queue_tenant_share,
                              " must be above 0 and at most 1"));
  }
  checks->Range("queue-timeout-ms", admit.queue_timeout_ms, 0, kHourMs);
  checks->Range("queue-wait-max-ms", admit.queue_wait_max_ms, 1, kHourMs);
  checks->Range("tenants-max", admit.tenants_max, 1, 1'000'000);
  if (admit.tenant_header.size() > 256 || !IsHeaderName(admit.tenant_header)) {
    checks->Fail(absl::StrCat("--tenant-header='", admit.tenant_header.substr(0, 256),
                              "' must be at most 256 lower-case letters, digits, '-' and '_'"));
  }
  checks->Range("retry-percent", admit.retry_percent, 0, 100);
  checks->Range("retry-burst", admit.retry_burst, 0, 1'000'000);
}

}  // namespace

absl::Status RouterOptions::Validate() const {
  OptionChecks checks;
  if (model_dir.empty()) checks.Fail("--model='' must name the model's folder");
  if (ModelName().size() > 256) {
    checks.Fail(absl::StrCat("--served-model-name of ", ModelName().size(),
                             " bytes must have at most 256"));
  }
  checks.Range("loop-threads", loop_threads, 1, 256);
  checks.Range("settle-s", settle_s, 0, kDayS);
  checks.Range("drain-timeout-s", drain_timeout_s, 0, kDayS);
  CheckFleet(fleet, &checks);
  CheckMembership(*this, &checks);
  CheckRoute(route, &checks);
  CheckAdmit(admit, &checks);

  checks.Range("attempts-max", exchange.attempts_max, 1, 100);
  checks.Range("worker-wait-ms", exchange.worker_wait_ms, 0, kHourMs);
  checks.Range("request-timeout-s", exchange.timeout_s, 1, kDayS);

  if (http.host.empty()) checks.Fail("--host='' must be an address to listen on");
  checks.Range("port", http.port, 0, 65'535);
  checks.Range("http-body-bytes-max", http.body_bytes_max, kKib, kGib);
  checks.Range("http-header-bytes-max", http.header_bytes_max, kKib, 16 << 20);
  checks.Range("http-connections-max", http.connections_max, 1, 1'000'000);
  checks.Range("http-output-bytes-max", http.output_bytes_max, kKib, kGib);
  checks.Range("http-idle-timeout-s", http.idle_timeout_s, 1, kDayS);
  checks.Range("http-read-timeout-s", http.read_timeout_s, 1, kDayS);
  checks.Range("http-write-timeout-s", http.write_timeout_s, 1, kDayS);
  if (http.cors_origin.find_first_of("\r\n") != std::string::npos) {
    checks.Fail("--http-cors-origin must not have a line break");
  }

  checks.Address("grpc-listen", grpc.listen, 0);
  checks.Range("grpc-message-bytes-max", grpc.message_bytes_max, kKib, kGib);
  checks.Range("grpc-output-bytes-max", grpc.output_bytes_max, kKib, kGib);
  checks.Range("grpc-streams-max", grpc.streams_max, 1, 1'000'000);
  checks.Range("grpc-memory-bytes-max", grpc.memory_bytes_max, 16 << 20, kTib);
  CheckTls("grpc-tls", grpc.tls, &checks);
  return checks.status();
}

std::string RouterOptions::ModelName() const {
  if (!served_model_name.empty()) return served_model_name;
  std::string path = model_dir;
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path.substr(path.rfind('/') + 1);
}

}  // namespace glm::router
