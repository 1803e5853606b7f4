// Every option of the router, with its default, unit and effect. main fills it from flags, checks
// it once with Validate, and hands its parts down by const reference.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "proto/tls_files.h"

namespace glm::router {

/// The sessions with the workers.
struct FleetOptions {
  std::vector<std::string> workers = {};       // host:port or unix:/path; none twice
  int32_t connect_timeout_ms = 5000;           // from dialling to the worker's Welcome
  int32_t backoff_initial_ms = 100;            // before the second try; doubles with each failure
  int32_t backoff_max_ms = 5000;               // the longest wait between two tries
  double backoff_jitter = 0.2;                 // a wait is up to this share longer or shorter
  int32_t keepalive_ms = 10'000;               // a silent connection is pinged this often
  int32_t keepalive_timeout_ms = 5000;         // and given up when the ping is not answered
  int32_t hang_timeout_ms = 2500;              // a worker with requests that is silent is lost
  int32_t step_timeout_ms = 60'000;            // one whose step takes longer too, if it cannot say
                                               // what the step should take
  int64_t session_out_bytes_max = 64LL << 20;  // frames not yet taken by a worker; over: it is lost
  int64_t frame_bytes_max = 64LL << 20;        // one frame of a worker
  int32_t leave_timeout_s = 30;                // for the requests of a worker that no source names
                                               // any more; then they go on elsewhere
  // A worker that has this many requests beyond those that it runs at once, or this many prompt
  // tokens to compute, gets no more: they wait in the router, where order can still be chosen.
  int32_t worker_queue_requests = 4;
  int64_t worker_queue_tokens = 16 << 10;
  int32_t eject_errors = 5;       // in a row: the worker is not chosen for a while
  int32_t eject_ms = 1000;        // for so long; doubles with each time
  int32_t eject_max_ms = 30'000;  // and at most for so long
  ClientTls tls = {};             // of the connections to workers
  std::string token_file = {};    // shown to workers; empty: none
};

/// Who names workers besides FleetOptions::workers.
struct MembershipOptions {
  std::string file = {};              // one address a line, looked at each second; empty: none
  std::string dns = {};               // host:port, all addresses of the host; empty: none
  int32_t dns_interval_s = 5;         // between two look-ups
  std::string registry_listen = {};   // host:port where workers register themselves; empty: nowhere
  int32_t registration_grace_s = 60;  // a worker whose stream broke, and that cannot be reached, is
                                      // kept for this long
  ServerTls registry_tls = {};
};

/// Which worker gets a request.
struct RouteOptions {
  std::string policy = "prefix";          // one of route/policy.h
  std::string prefix_hash_key;            // as the workers'; empty: the public one
  int64_t prefix_blocks_max = 4LL << 20;  // blocks that are remembered, some 32 bytes each
  int32_t prefix_expect_ms = 10'000;      // a prompt sent counts as cached there for this long
};

/// Which requests are taken, and who is served first.
struct AdmitOptions {
  int32_t requests_max = 16'384;          // in the router at once, waiting or being answered
  int32_t queue_requests_max = 4096;      // that wait for room at a worker; more are refused
  int64_t queue_tokens_max = 16LL << 20;  // prompt tokens of those that wait, 4 bytes each
  double queue_tenant_share = 0.5;        // of both, for one tenant
  int32_t queue_timeout_ms = 60'000;      // how long a request waits, if it does not say
  int32_t queue_wait_max_ms = 30'000;     // a request that would wait longer is refused at once
  int32_t tenants_max = 1024;             // that are told apart
  std::string tenant_header;              // names the tenant; empty: the API key does
  bool priority_across_tenants = true;    // else a priority orders its tenant's requests only
  int32_t retry_percent = 8;              // of the requests, sent again after a worker's refusal
  int32_t retry_burst = 10;               // such retries that can be saved up
};

/// One client's request.
struct ExchangeOptions {
  int32_t attempts_max = 3;       // workers tried before a request fails, the first included
  int32_t worker_wait_ms = 5000;  // how long a request waits while no worker is ready
  int32_t timeout_s = 3600;       // how long a request may take in all
};

/// The HTTP gateway.
struct HttpOptions {
  std::string host = "0.0.0.0";
  int32_t port = 8000;                  // 0: one that is free
  int64_t body_bytes_max = 32LL << 20;  // of a request
  int64_t header_bytes_max = 64 << 10;  // of a request, its first line included
  int32_t connections_max = 8192;       // open at once; more are closed when they arrive
  int64_t output_bytes_max = 4 << 20;   // not yet taken by a client; over: its request is cancelled
  int32_t idle_timeout_s = 75;          // a connection without a request is closed after this long
  int32_t read_timeout_s = 30;          // from a request's first byte to its last
  int32_t write_timeout_s = 30;         // a client that takes no byte for this long is given up
  std::string cors_origin;              // pages of this origin may call, "*": any; empty: none
};

/// The public gRPC service.
struct GrpcOptions {
  std::string listen = "0.0.0.0:50050";    // host:port or unix:/path; port 0: one that is free
  int64_t message_bytes_max = 32LL << 20;  // of a request
  int64_t output_bytes_max = 4 << 20;  // not yet taken by a client; over: its request is cancelled
  int32_t streams_max = 1024;          // of one connection at once
  int64_t memory_bytes_max = 4LL << 30;  // that gRPC holds for all connections together
  ServerTls tls = {};
};

struct RouterOptions {
  std::string model_dir;          // tokenizer.json and the chat template
  std::string served_model_name;  // empty: the last part of model_dir
  int32_t loop_threads = 2;       // event loops, one thread each
  int32_t settle_s = 5;           // after SIGTERM it is served on for this long, not ready
  int32_t drain_timeout_s = 30;   // after that, before open streams are cut
  FleetOptions fleet;
  MembershipOptions membership;
  RouteOptions route;
  AdmitOptions admit;
  ExchangeOptions exchange;
  HttpOptions http;
  GrpcOptions grpc;

  /// INVALID_ARGUMENT naming the first bad field as its flag, its value and the limit.
  absl::Status Validate() const;
  /// served_model_name, or the last part of model_dir.
  std::string ModelName() const;
};

}  // namespace glm::router
