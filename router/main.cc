// glmserve-router: the front door of a cluster: OpenAI's HTTP API and a gRPC service over a fleet
// of workers.
//
// Flags to RouterOptions, then bottom-up: text, metrics, loops, fleet, fronts. On SIGTERM or SIGINT
// the router drains: not ready at once, served on for a while, so that load balancers see it before
// anyone is turned away; then nothing new is taken, open streams may finish, and it exits with 0. A
// second signal ends it at once.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "proto/base/log.h"
#include "proto/base/process.h"
#include "proto/bearer_token.h"
#include "proto/credentials.h"
#include "router/admit/admission.h"
#include "router/fleet/fleet.h"
#include "router/fleet/grpc_stream.h"
#include "router/fleet/membership.h"
#include "router/fleet/registry.h"
#include "router/front/grpc_front.h"
#include "router/front/http.h"
#include "router/front/http_routes.h"
#include "router/front/openai.h"
#include "router/front/openai_answer.h"
#include "router/metrics.h"
#include "router/options.h"
#include "router/route/placement.h"
#include "router/text/text_model.h"
#include "router/thread_loop.h"

namespace glm::router {
namespace {

void AddFleetFlags(CLI::App& app, FleetOptions& fleet, ExchangeOptions& exchange) {
  app.add_option("--workers", fleet.workers, "Workers: host:port or unix:/path, comma-separated")
      ->delimiter(',');
  app.add_option("--connect-timeout-ms", fleet.connect_timeout_ms,
                 "From dialling a worker to its welcome");
  app.add_option("--backoff-initial-ms", fleet.backoff_initial_ms,
                 "Wait before a worker is dialled again; doubles with each failure");
  app.add_option("--backoff-max-ms", fleet.backoff_max_ms, "The longest such wait");
  app.add_option("--backoff-jitter", fleet.backoff_jitter,
                 "Such a wait is up to this share longer or shorter");
  app.add_option("--hang-timeout-ms", fleet.hang_timeout_ms,
                 "A worker that has requests and sends nothing for this long is given up");
  app.add_option("--step-timeout-ms", fleet.step_timeout_ms,
                 "So is one whose step takes longer, if it does not say what the step should take");
  app.add_option("--keepalive-ms", fleet.keepalive_ms,
                 "A silent connection to a worker is pinged this often");
  app.add_option("--keepalive-timeout-ms", fleet.keepalive_timeout_ms,
                 "A worker that does not answer a ping for this long is lost");
  app.add_option("--session-out-bytes-max", fleet.session_out_bytes_max,
                 "Bytes waiting for one worker; past that it is lost");
  app.add_option("--frame-bytes-max", fleet.frame_bytes_max, "Largest frame from a worker");
  app.add_option("--attempts-max", exchange.attempts_max,
                 "Workers tried before a request fails, the first included");
  app.add_option("--worker-wait-ms", exchange.worker_wait_ms,
                 "How long a request waits while no worker is ready");
  app.add_option("--request-timeout-s", exchange.timeout_s, "How long a request may take in all");
}

void AddMembershipFlags(CLI::App& app, MembershipOptions& membership, FleetOptions& fleet) {
  app.add_option("--workers-file", membership.file,
                 "File of workers, one a line, read again when it changes; empty: none");
  app.add_option("--workers-dns", membership.dns,
                 "host:port; every address of the host is a worker; empty: none");
  app.add_option("--workers-dns-interval-s", membership.dns_interval_s,
                 "Seconds between two look-ups of it");
  app.add_option("--registry-listen", membership.registry_listen,
                 "Where workers may register themselves: host:port; empty: nowhere. Needs "
                 "--worker-token-file or --registry-tls-client-ca");
  app.add_option("--registration-grace-s", membership.registration_grace_s,
                 "Seconds that a registered worker is kept when neither its registration nor its "
                 "session lives");
  app.add_option("--registry-tls-cert", membership.registry_tls.cert,
                 "PEM file of the certificate shown to workers that register; empty: no TLS");
  app.add_option("--registry-tls-key", membership.registry_tls.key, "PEM file of its key");
  app.add_option("--registry-tls-client-ca", membership.registry_tls.client_ca,
                 "PEM file of the roots that their certificates must come from; empty: none is "
                 "asked for");
  app.add_option("--leave-timeout-s", fleet.leave_timeout_s,
                 "Seconds that the requests of a worker may still take that is no member any more; "
                 "then they go on elsewhere");
}

void AddSecurityFlags(CLI::App& app, FleetOptions& fleet, GrpcOptions& grpc) {
  app.add_option("--worker-tls-ca", fleet.tls.ca,
                 "PEM file of the roots that workers' certificates come from; empty: no TLS");
  app.add_option("--worker-tls-cert", fleet.tls.cert,
                 "PEM file of the certificate shown to workers that ask for one (mTLS)");
  app.add_option("--worker-tls-key", fleet.tls.key, "PEM file of its key");
  app.add_option("--worker-tls-name", fleet.tls.name,
                 "Name that workers' certificates bear; empty: the host that was dialled");
  app.add_option("--worker-token-file", fleet.token_file,
                 "File of the token that is shown to workers, its first line; empty: none");
  app.add_option("--grpc-tls-cert", grpc.tls.cert,
                 "PEM file of the gRPC service's certificate; empty: no TLS");
  app.add_option("--grpc-tls-key", grpc.tls.key, "PEM file of its key");
  app.add_option("--grpc-tls-client-ca", grpc.tls.client_ca,
                 "PEM file of the roots that gRPC clients' certificates must come from; empty: "
                 "none is asked for");
}

void AddRouteFlags(CLI::App& app, RouteOptions& route) {
  app.add_option(
      "--policy", route.policy,
      "Which worker gets a request: prefix, least-load, round-robin, power-of-two, session");
  app.add_option("--prefix-hash-key", route.prefix_hash_key,
                 "32 hex digits, as the workers'; empty: a public key");
  app.add_option("--prefix-blocks-max", route.prefix_blocks_max,
                 "Cached blocks of the workers that are remembered, some 32 bytes each");
  app.add_option("--prefix-expect-ms", route.prefix_expect_ms,
                 "A prompt that was sent counts as cached at its worker for this long");
}

void AddAdmitFlags(CLI::App& app, AdmitOptions& admit, FleetOptions& fleet) {
  app.add_option("--requests-max", admit.requests_max,
                 "Requests in the router at once, waiting or being answered; more are refused");
  app.add_option("--queue-requests-max", admit.queue_requests_max,
                 "Requests that wait for room at a worker; more are refused");
  app.add_option("--queue-tokens-max", admit.queue_tokens_max,
                 "Prompt tokens of the requests that wait, 4 bytes each; more are refused");
  app.add_option("--queue-tenant-share", admit.queue_tenant_share,
                 "The share of the queue's bounds that one tenant may take, above 0 to 1");
  app.add_option("--queue-timeout-ms", admit.queue_timeout_ms,
                 "How long a request waits for room at a worker, if it does not say");
  app.add_option("--queue-wait-max-ms", admit.queue_wait_max_ms,
                 "A request that would wait longer, by prediction, is refused at once");
  app.add_option("--tenants-max", admit.tenants_max, "Tenants that are told apart in the queue");
  app.add_option("--tenant-header", admit.tenant_header,
                 "Header, in lower case, that names a request's tenant; empty: the API key does");
  app.add_option("--priority-across-tenants", admit.priority_across_tenants,
                 "Whether priorities count among all requests, or among those of one tenant");
  app.add_option("--worker-queue-requests", fleet.worker_queue_requests,
                 "Requests at a worker beyond those that it runs at once; more wait here");
  app.add_option("--worker-queue-tokens", fleet.worker_queue_tokens,
                 "Prompt tokens to compute at a worker that is given more requests");
  app.add_option("--retry-percent", admit.retry_percent,
                 "Requests of a hundred that may go elsewhere after a worker's refusal");
  app.add_option("--retry-burst", admit.retry_burst, "Such retries that can be saved up");
  app.add_option("--eject-errors", fleet.eject_errors,
                 "Errors in a row after which a worker is not chosen for a while");
  app.add_option("--eject-ms", fleet.eject_ms, "For how long; doubles with each time");
  app.add_option("--eject-max-ms", fleet.eject_max_ms, "The longest such time");
}

void AddFrontFlags(CLI::App& app, HttpOptions& http, GrpcOptions& grpc) {
  app.add_option("--host", http.host, "Address of the HTTP gateway");
  app.add_option("--port", http.port, "Port of the HTTP gateway; 0: one that is free");
  app.add_option("--http-body-bytes-max", http.body_bytes_max, "Largest body of a request");
  app.add_option("--http-header-bytes-max", http.header_bytes_max, "Largest header of a request");
  app.add_option("--http-connections-max", http.connections_max, "Connections open at once");
  app.add_option("--http-output-bytes-max", http.output_bytes_max,
                 "Bytes waiting for one client; past that its request is cancelled");
  app.add_option("--http-idle-timeout-s", http.idle_timeout_s,
                 "A connection without a request is closed after this long");
  app.add_option("--http-read-timeout-s", http.read_timeout_s,
                 "From a request's first byte to its last");
  app.add_option("--http-write-timeout-s", http.write_timeout_s,
                 "A client that takes no byte for this long is given up");
  app.add_option("--http-cors-origin", http.cors_origin,
                 "Web pages of this origin may call, '*': any; empty: none");
  app.add_option("--grpc-listen", grpc.listen, "Where gRPC is served: host:port or unix:/path");
  app.add_option("--grpc-message-bytes-max", grpc.message_bytes_max, "Largest gRPC request");
  app.add_option("--grpc-output-bytes-max", grpc.output_bytes_max,
                 "Bytes waiting for one gRPC client; past that its call is cancelled");
  app.add_option("--grpc-streams-max", grpc.streams_max, "Calls of one gRPC connection at once");
  app.add_option("--grpc-memory-bytes-max", grpc.memory_bytes_max,
                 "Bytes that gRPC holds for all clients together");
}

void AddFlags(CLI::App& app, RouterOptions& options, std::string& name) {
  AddProcessFlags(app, &name);
  app.add_option("--model", options.model_dir,
                 "Folder of the checkpoint: tokenizer.json and the chat template are read")
      ->required();
  app.add_option("--served-model-name", options.served_model_name,
                 "Name that clients use; empty: the folder's name");
  app.add_option("--loop-threads", options.loop_threads, "Threads that serve connections");
  app.add_option(
      "--settle-s", options.settle_s,
      "Seconds after SIGTERM in which requests are still served, while readiness says no");
  app.add_option("--drain-timeout-s", options.drain_timeout_s,
                 "Seconds that open streams may still take after that");
  AddFleetFlags(app, options.fleet, options.exchange);
  AddMembershipFlags(app, options.membership, options.fleet);
  AddSecurityFlags(app, options.fleet, options.grpc);
  AddRouteFlags(app, options.route);
  AddAdmitFlags(app, options.admit, options.fleet);
  AddFrontFlags(app, options.http, options.grpc);
}

WorkerCounts CountWorkers(const FleetSnapshot& snapshot) {
  WorkerCounts counts;
  for (const FleetWorker& worker : snapshot.workers) {
    counts.unauthenticated += worker.unauthenticated ? 1 : 0;
    switch (worker.state) {
      case WorkerState::kConnecting:
        ++counts.connecting;
        break;
      case WorkerState::kReady:
        ++counts.ready;
        break;
      case WorkerState::kDraining:
        ++counts.draining;
        break;
      case WorkerState::kDown:
        ++counts.down;
        break;
    }
  }
  return counts;
}

/// Waits for a signal, then lets open streams finish.
void ServeUntilSignal(const StopSignals& signals, const RouterOptions& options, OpenAiFront& openai,
                      HttpServer& http, GrpcFront& grpc_front) {
  const int signal = signals.Await();
  LOG(INFO) << "signal " << signal << ": not ready, serving on for " << options.settle_s
            << " s, then draining for at most " << options.drain_timeout_s << " s";
  openai.BeginDrain();
  grpc_front.BeginDrain();
  std::this_thread::sleep_for(std::chrono::seconds(options.settle_s));
  const std::chrono::seconds wait(options.drain_timeout_s);
  std::thread grpc_drain([&] { grpc_front.Drain(wait); });
  http.Drain(wait);
  grpc_drain.join();
}

/// A secret of this process.
HashKey RandomKey() {
  std::random_device device;
  HashKey key;
  for (uint8_t& byte : key) byte = static_cast<uint8_t>(device());
  return key;
}

int Fail(const absl::Status& status) {
  LOG(ERROR) << status.message();
  return 1;
}

/// What opens the workers' doors.
struct WorkerKeys {
  std::shared_ptr<grpc::ChannelCredentials> credentials;
  std::unique_ptr<TokenFile> tokens;  // null: none are shown
};

absl::StatusOr<WorkerKeys> OpenKeys(const FleetOptions& fleet) {
  WorkerKeys keys;
  auto credentials = MakeCredentials("worker-tls", fleet.tls);
  if (!credentials.ok()) return credentials.status();
  keys.credentials = *std::move(credentials);
  if (fleet.token_file.empty()) return keys;
  auto tokens = TokenFile::Open("worker-token-file", fleet.token_file);
  if (!tokens.ok()) return tokens.status();
  keys.tokens = *std::move(tokens);
  if (fleet.tls.ca.empty()) {
    LOG(WARNING) << "--worker-token-file without --worker-tls-ca: the token crosses the network in "
                    "the clear";
  }
  return keys;
}

/// Who names workers besides --workers. Gone before the fleet stops.
struct Sources {
  std::unique_ptr<Membership> membership;
  std::unique_ptr<Registry> registry;  // null without --registry-listen
};

bool IsReached(const FleetSnapshot& snapshot, const std::string& address) {
  return std::any_of(snapshot.workers.begin(), snapshot.workers.end(), [&](const auto& worker) {
    return worker.address == address && worker.session != nullptr;
  });
}

absl::Status StartSources(const RouterOptions& options, Fleet& fleet, RouterMetrics* metrics,
                          const TokenFile* tokens, Sources* sources) {
  const auto set_members = [&fleet](MemberSource source, std::vector<std::string> addresses) {
    return fleet.SetMembers(source, std::move(addresses));
  };
  auto membership = Membership::Start(options.membership, set_members, metrics);
  if (!membership.ok()) return membership.status();
  sources->membership = *std::move(membership);
  if (options.membership.registry_listen.empty()) return absl::OkStatus();
  auto registry = Registry::Start(
      options.membership,
      {.set_members = set_members,
       .reached =
           [&fleet](const std::string& address) { return IsReached(*fleet.Snapshot(), address); },
       .metrics = metrics,
       .tokens = tokens});
  if (!registry.ok()) return registry.status();
  sources->registry = *std::move(registry);
  LOG(INFO) << "workers register on " << options.membership.registry_listen << " (registry port "
            << sources->registry->port() << ")";
  return absl::OkStatus();
}

int Run(const RouterOptions& options) {
  const StopSignals signals;  // before any thread exists
  const absl::StatusOr<std::unique_ptr<const TextModel>> text = TextModel::Load(options.model_dir);
  if (!text.ok()) return Fail(text.status());
  const absl::StatusOr<WorkerKeys> keys = OpenKeys(options.fleet);
  if (!keys.ok()) return Fail(keys.status());

  RouterMetrics metrics;
  LoopPool loops(options.loop_threads);
  GrpcFront* grpc_health = nullptr;           // set before the fleet starts
  const RouteOptions& route = options.route;  // validated
  Placement placement(*ParsePolicy(route.policy), *ParseHashKey(route.prefix_hash_key),
                      route.prefix_blocks_max, route.prefix_expect_ms);
  Fleet* asked_for_room = nullptr;  // set before anybody waits
  Admission admission(options.admit, RandomKey(),
                      {.loop = &loops.at(0), .metrics = &metrics, .room = [&asked_for_room] {
                         return asked_for_room->Room();
                       }});
  Fleet fleet(options.fleet, {options.ModelName(), (*text)->tokenizer().vocabulary()},
              {.loops = loops.all(),
               .index = &placement.index(),
               .metrics = &metrics,
               .dial = DialOverGrpc(options.fleet, keys->credentials, keys->tokens.get()),
               .on_room = [&admission] { admission.RoomChanged(); }},
              [&](const FleetSnapshot& snapshot) {
                metrics.SetWorkers(CountWorkers(snapshot));
                grpc_health->SetServing(snapshot.ready > 0);
              });
  asked_for_room = &fleet;
  const ExchangeRooms rooms{.loop = nullptr,
                            .fleet = &fleet,
                            .admission = &admission,
                            .placement = &placement,
                            .text = text->get(),
                            .metrics = &metrics,
                            .model_name = options.ModelName(),
                            .options = options.exchange};
  OpenAiFront openai(rooms, &loops);
  HttpRoutes routes;
  openai.AddRoutes(&routes);
  HttpServer http(options.http, std::move(routes), HttpErrorJson, &loops, &metrics);
  absl::StatusOr<std::unique_ptr<GrpcFront>> grpc_front =
      GrpcFront::Start(options.grpc, rooms, &loops);
  if (!grpc_front.ok()) return Fail(grpc_front.status());
  grpc_health = grpc_front->get();
  fleet.Start();
  Sources sources;
  absl::Status started = StartSources(options, fleet, &metrics, keys->tokens.get(), &sources);
  if (started.ok()) started = http.Start();
  if (!started.ok()) {
    sources = {};
    fleet.Stop();
    return Fail(started);
  }
  LOG(INFO) << "router ready: model " << options.ModelName() << ", HTTP on " << options.http.host
            << ":" << http.port() << ", gRPC on " << options.grpc.listen << " (port "
            << (*grpc_front)->port() << ")";

  ServeUntilSignal(signals, options, openai, http, **grpc_front);
  sources = {};
  fleet.Stop();
  LOG(INFO) << "bye";
  return 0;
}

}  // namespace
}  // namespace glm::router

int main(int argc, char** argv) {
  CLI::App app("The router of a glmserve cluster: OpenAI's HTTP API and gRPC over its workers");
  glm::router::RouterOptions options;
  std::string name = "router";
  glm::router::AddFlags(app, options, name);
  CLI11_PARSE(app, argc, argv);
  glm::SetLogName(name.c_str());
  if (const absl::Status status = options.Validate(); !status.ok()) {
    LOG(ERROR) << status.message();
    return 2;
  }
  return glm::router::Run(options);
}
