// glmserve-worker: one engine behind a gRPC session service.
//
// Flags to WorkerOptions, then bottom-up: metrics, service, engine, server. On SIGTERM or SIGINT
// the worker drains: not ready at once, running requests may finish, then it exits with 0. A second
// signal ends it at once.
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <prometheus/exposer.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/engine.h"
#include "proto/base/log.h"
#include "proto/base/process.h"
#include "proto/bearer_token.h"
#include "proto/credentials.h"
#include "proto/wire_limits.h"
#include "worker/metrics.h"
#include "worker/options.h"
#include "worker/registration.h"
#include "worker/service.h"
#include "worker/speculative_config.h"

namespace glm::worker {
namespace {

void AddEngineFlags(CLI::App& app, engine::EngineOptions& engine) {
  app.add_option("--model", engine.model, "Folder of the checkpoint")->required();
  app.add_option("--served-model-name", engine.served_model_name,
                 "Name that clients use; empty: the folder's name");
  app.add_option("--device", engine.device, "cpu or cuda");
  app.add_option("--device-index", engine.device_index, "First GPU of this worker");
  app.add_option("--tensor-parallel-size", engine.tensor_parallel_size,
                 "Ranks that share the model: 1, 2, 4 or 8; with cuda a GPU each");
  app.add_option("--ranks-per-device", engine.ranks_per_device,
                 "Ranks that share a GPU, to try tensor parallelism with fewer GPUs");
  app.add_option("--gpu-exchange", engine.gpu_exchange,
                 "How ranks on GPUs exchange: auto, peer (each other's memory) or nccl");
  app.add_option("--dtype", engine.dtype, "auto, bfloat16 or float32");
  app.add_option("--quantization", engine.quantization,
                 "none, or fp8: quantise linears while loading");
  app.add_option("--load-format", engine.load_format,
                 "auto, or dummy: random weights by config.json alone");
  app.add_option("--load-threads", engine.load_threads, "Threads that read weights");
  app.add_option("--kv-cache-dtype", engine.kv_cache_dtype, "auto (as activations) or fp8");
  app.add_option("--cpu-threads", engine.cpu_threads, "Threads of the CPU backend; 0: one a core");
  app.add_option("--block-size", engine.block_size, "Tokens of one KV block: 16, 32, 64, 128");
  app.add_option("--kv-blocks", engine.kv_blocks, "KV cache in blocks; 0: by the flags below");
  app.add_option("--gpu-memory-utilization", engine.gpu_memory_utilization,
                 "Share of the device's free memory to use, without --kv-blocks; 0: by "
                 "--kv-cache-bytes");
  app.add_option("--kv-cache-bytes", engine.kv_cache_bytes, "KV cache in bytes");
  app.add_option("--max-model-len", engine.max_model_len,
                 "Longest prompt + answer in tokens; 0: the model's");
  app.add_option("--max-num-seqs", engine.max_num_seqs, "Requests running at once");
  app.add_option("--max-num-batched-tokens", engine.max_num_batched_tokens,
                 "Tokens computed in one step");
  app.add_option("--max-waiting-requests", engine.max_waiting_requests,
                 "Requests waiting for a first step; more are refused");
  app.add_option("--steps-in-flight", engine.steps_in_flight,
                 "Steps given to the device before the oldest is back: 1 or 2; 0: by the device");
  app.add_option("--long-prefill-token-threshold", engine.long_prefill_token_threshold,
                 "Prompt tokens of one request in a step while others decode; 0: no limit");
  app.add_flag("--enable-prefix-caching,!--no-enable-prefix-caching", engine.enable_prefix_caching,
               "Share the KV blocks of equal prefixes");
  app.add_option("--prefix-hash-key", engine.prefix_hash_key,
                 "Key of block hashes, 32 hex digits, the same in all of a deployment; empty: a "
                 "public one");
  app.add_flag("--adaptive-drafts,!--no-adaptive-drafts", engine.adaptive_drafts,
               "Draft fewer tokens, down to none, where it does not pay");
  app.add_flag("--batch-invariant,!--no-batch-invariant", engine.batch_invariant,
               "A request's tokens do not depend on what else runs");
}

/// The flags of drafting, not yet put together.
struct DraftFlags {
  std::string json;
  SpeculativeConfig parts;
};

void AddDraftFlags(CLI::App& app, DraftFlags& drafts) {
  app.add_option("--speculative-config", drafts.json,
                 "How to draft, as JSON: {\"method\": \"mtp\", \"num_speculative_tokens\": 3}");
  app.add_option("--speculative-config.method", drafts.parts.method,
                 "mtp: the model's own draft layer; empty: no drafts");
  app.add_option("--speculative-config.num_speculative_tokens", drafts.parts.num_speculative_tokens,
                 "Most drafts a sequence and step, 1 to 5");
}

void AddSecurityFlags(CLI::App& app, WorkerOptions& options) {
  app.add_option("--tls-cert", options.tls.cert,
                 "PEM file of this worker's certificate; empty: no TLS");
  app.add_option("--tls-key", options.tls.key, "PEM file of its key");
  app.add_option("--tls-client-ca", options.tls.client_ca,
                 "PEM file of the roots that routers' certificates must come from (mTLS); empty: "
                 "none is asked for");
  app.add_option("--auth-token-file", options.auth_token_file,
                 "File of the tokens of which a router must show one, one a line; empty: none");
}

void AddRegistrationFlags(CLI::App& app, WorkerOptions& options) {
  app.add_option("--register-with", options.register_with,
                 "Routers to make itself known to, comma-separated: their --registry-listen")
      ->delimiter(',');
  app.add_option("--advertise", options.advertise,
                 "Address that they are told: host:port or unix:/path; empty: that of --listen, at "
                 "the host that they see");
  app.add_option("--register-tls-ca", options.register_tls.ca,
                 "PEM file of the roots that their certificates come from; empty: no TLS. "
                 "--tls-cert is shown to those that ask for one");
  app.add_option("--register-tls-name", options.register_tls.name,
                 "Name that their certificates bear; empty: the host that was dialled");
}

void AddFlags(CLI::App& app, WorkerOptions& options, DraftFlags& drafts, std::string& name) {
  AddProcessFlags(app, &name);
  app.add_option("--listen", options.listen, "Where routers connect: host:port or unix:/path");
  app.add_option("--metrics-listen", options.metrics_listen,
                 "Where /metrics is served: host:port; none: nowhere");
  app.add_option("--drain-timeout-s", options.drain_timeout_s,
                 "Seconds that running requests may still take after SIGTERM");
  app.add_option("--sessions-max", options.sessions_max, "Routers connected at once");
  app.add_option("--peer-sessions-max", options.peer_sessions_max, "Of these, from one host");
  app.add_option("--streams-max", options.streams_max, "Calls of one connection at once");
  app.add_option("--hello-timeout-ms", options.hello_timeout_ms,
                 "From a router's call to its first frame");
  app.add_option("--session-frames-max", options.session_frames_max,
                 "Frames waiting for one router; past that it is disconnected");
  app.add_option("--heartbeat-ms", options.heartbeat_ms,
                 "A router with live requests that was sent nothing for so long gets a heartbeat");
  app.add_option("--frame-bytes-max", options.frame_bytes_max, "Largest frame from a router");
  app.add_option("--grpc-memory-bytes-max", options.grpc_memory_bytes_max,
                 "Bytes that gRPC holds for all connections together");
  AddSecurityFlags(app, options);
  AddRegistrationFlags(app, options);
  AddEngineFlags(app, options.engine);
  AddDraftFlags(app, drafts);
}

absl::Status Settle(const DraftFlags& drafts, WorkerOptions* options) {
  const absl::StatusOr<int32_t> asked = DraftsAsked(drafts.json, drafts.parts);
  if (!asked.ok()) return asked.status();
  options->engine.num_speculative_tokens = *asked;
  return options->Validate();
}

ServerLimits LimitsOf(const WorkerOptions& options) {
  return {.message_bytes_max = options.frame_bytes_max,
          .streams_max = options.streams_max,
          .memory_bytes_max = options.grpc_memory_bytes_max};
}

using Registrations = std::vector<std::unique_ptr<Registration>>;

/// Waits for a signal, then lets running requests finish.
void ServeUntilSignal(const StopSignals& signals, const WorkerOptions& options,
                      grpc::Server& server, Service& service, const Registrations& registrations) {
  const int signal = signals.Await();
  LOG(INFO) << "signal " << signal << ": draining for at most " << options.drain_timeout_s << " s";
  server.GetHealthCheckService()->SetServingStatus(false);
  service.StartDraining();
  for (const auto& registration : registrations) registration->Leave();
  const bool idle = service.AwaitIdle(std::chrono::seconds(options.drain_timeout_s));
  LOG(INFO) << (idle ? "drained" : "drain limit reached, cancelling what runs");
  service.CloseAll();
  server.Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(2));
}

int Fail(const absl::Status& status) {
  LOG(ERROR) << status.message();
  return 1;
}

/// Null without a file: no token is asked for.
absl::StatusOr<std::unique_ptr<TokenFile>> OpenTokens(const WorkerOptions& options) {
  if (options.auth_token_file.empty()) return nullptr;
  if (options.tls.cert.empty()) {
    LOG(WARNING) << "--auth-token-file without --tls-cert: the token crosses the network in the "
                    "clear";
  }
  return TokenFile::Open("auth-token-file", options.auth_token_file);
}

/// Serves /metrics until it is destroyed; null when nobody asked for it.
absl::StatusOr<std::unique_ptr<prometheus::Exposer>> Expose(
    const std::string& listen, const std::shared_ptr<WorkerMetrics>& metrics) {
  if (listen == "none") return nullptr;
  try {
    auto exposer = std::make_unique<prometheus::Exposer>(listen);
    exposer->RegisterCollectable(metrics);
    return exposer;
  } catch (const std::exception& error) {
    return absl::UnavailableError(absl::StrCat("--metrics-listen=", listen, ": ", error.what()));
  }
}

/// What the worker shows when it calls on routers.
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> CallerCredentials(
    const WorkerOptions& options) {
  ClientTls tls = options.register_tls;
  if (!tls.ca.empty()) {
    tls.cert = options.tls.cert;
    tls.key = options.tls.key;
  }
  return MakeCredentials("register-tls", tls);
}

Registrations Register(const WorkerOptions& options, int32_t port,
                       const std::shared_ptr<grpc::ChannelCredentials>& credentials,
                       const TokenFile* tokens) {
  Registrations registrations;
  for (const std::string& router : options.register_with) {
    Registration::Options registration;
    registration.router = router;
    registration.announcement = AnnouncementOf(options.advertise, options.listen, port);
    registration.tls_name = options.register_tls.name;
    registrations.push_back(
        std::make_unique<Registration>(std::move(registration), credentials, tokens));
  }
  return registrations;
}

int Run(const WorkerOptions& options) {
  const StopSignals signals;  // before any thread exists
  const auto credentials = MakeCredentials("tls", options.tls);
  if (!credentials.ok()) return Fail(credentials.status());
  const auto tokens = OpenTokens(options);
  if (!tokens.ok()) return Fail(tokens.status());
  const auto caller_credentials = CallerCredentials(options);
  if (!caller_credentials.ok()) return Fail(caller_credentials.status());
  auto metrics = std::make_shared<WorkerMetrics>();
  Service service(options, metrics.get(), tokens->get());
  auto engine = engine::Engine::Create(options.engine, [&service](engine::StepEvents&& events) {
    service.Deliver(std::move(events));
  });
  if (!engine.ok()) {
    LOG(ERROR) << "cannot start the engine: " << engine.status().message();
    return 1;
  }
  const absl::Status fits = CheckFrameHolds(options.frame_bytes_max, (*engine)->shape().length_max);
  if (!fits.ok()) return Fail(fits);
  metrics->Attach(engine->get());
  service.Attach(engine->get());
  const auto exposer = Expose(options.metrics_listen, metrics);
  if (!exposer.ok()) return Fail(exposer.status());

  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(options.listen, *credentials, &port);
  builder.RegisterService(&service);
  SetLimits(LimitsOf(options), &builder);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) {
    LOG(ERROR) << "--listen=" << options.listen << ": cannot listen there";
    return 1;
  }
  LOG(INFO) << "worker ready: model " << (*engine)->shape().model_name << ", listening on "
            << options.listen << " (port " << port << ")";
  const Registrations registrations = Register(options, port, *caller_credentials, tokens->get());
  ServeUntilSignal(signals, options, *server, service, registrations);
  (*engine)->Stop();
  LOG(INFO) << "bye";
  return 0;
}

}  // namespace
}  // namespace glm::worker

int main(int argc, char** argv) {
  CLI::App app("One glmserve worker: a GLM engine behind a gRPC session service");
  glm::worker::WorkerOptions options;
  glm::worker::DraftFlags drafts;
  std::string name = "worker";
  glm::worker::AddFlags(app, options, drafts, name);
  CLI11_PARSE(app, argc, argv);
  glm::SetLogName(name.c_str());
  if (const absl::Status status = glm::worker::Settle(drafts, &options); !status.ok()) {
    LOG(ERROR) << status.message();
    return 2;
  }
  return glm::worker::Run(options);
}
