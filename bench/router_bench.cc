#include "bench/router_bench.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <memory>
#include <random>
#include <thread>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "bench/router_clients.h"
#include "bench/router_process.h"
#include "bench/scripted/scripted_worker.h"
#include "nlohmann/json.hpp"

namespace glm::bench {
namespace {

using Json = nlohmann::json;

constexpr const char* kModel = "bench";
// Ids of plain text in any tokenizer of byte pairs: behind single bytes, before special tokens.
constexpr int32_t kAnswerIdsBegin = 300;
constexpr int32_t kAnswerIdsEnd = 4000;
constexpr int32_t kVocabulary = 1'000'000;
constexpr int32_t kStreamTokensMax = 100'000;
constexpr int32_t kOpenAtOnce = 64;

void Print(const Json& record) { std::cout << record.dump() << std::endl; }

void Say(const std::string& text) { std::cerr << text << std::endl; }

/// As many descriptors as the system allows: each stream takes one here and one in the router.
void RaiseDescriptors() {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

/// Words at random, none of them known to be one token.
std::string TextOf(int32_t words, std::mt19937& random) {
  std::string text;
  for (int32_t i = 0; i < words; ++i) {
    if (i > 0) text += ' ';
    for (uint32_t letters = 3 + random() % 4; letters > 0; --letters) {
      text += static_cast<char>('a' + random() % 26);
    }
  }
  return text;
}

std::string ChatRequest(const std::string& text, int32_t max_tokens, bool stream) {
  const Json body = {{"model", kModel},
                     {"messages", {{{"role", "user"}, {"content", text}}}},
                     {"max_tokens", max_tokens},
                     {"stream", stream}};
  return PostRequest("/v1/chat/completions", body.dump());
}

/// Scripted workers and a router over them.
struct Cluster {
  std::unique_ptr<ScriptedWorkers> workers;
  std::unique_ptr<RouterProcess> router;
};

absl::StatusOr<Cluster> StartCluster(const RouterBenchOptions& options, const std::string& policy,
                                     int32_t count, const Script& script) {
  ScriptedWorkerOptions worker;
  worker.model_name = kModel;
  worker.vocabulary = kVocabulary;
  worker.answer_ids_begin = kAnswerIdsBegin;
  worker.answer_ids_end = kAnswerIdsEnd;
  worker.sequences_max = 1 << 20;
  worker.kv_blocks_total = 1 << 16;
  worker.script = script;
  absl::StatusOr<std::unique_ptr<ScriptedWorkers>> workers = ScriptedWorkers::Start(worker, count);
  if (!workers.ok()) return workers.status();
  std::vector<std::string> addresses;
  for (int32_t i = 0; i < count; ++i) addresses.push_back((*workers)->address(i));
  const std::vector<std::string> flags = {"--model",
                                          options.model,
                                          "--served-model-name",
                                          kModel,
                                          "--workers",
                                          absl::StrJoin(addresses, ","),
                                          "--policy",
                                          policy,
                                          "--loop-threads",
                                          absl::StrCat(options.loop_threads),
                                          "--http-connections-max",
                                          "65536"};
  absl::StatusOr<std::unique_ptr<RouterProcess>> router = RouterProcess::Start(
      options.router.empty() ? ProgramBeside("glmserve-router") : options.router, flags);
  if (!router.ok()) return router.status();
  return Cluster{.workers = *std::move(workers), .router = *std::move(router)};
}

/// Tokens of a chat with `text`, as the workers saw it.
absl::StatusOr<int64_t> TokensOf(const Cluster& cluster, const std::string& text) {
  const int64_t before = cluster.workers->seen().prompt_tokens;
  const ShortResult result = RunShortLoad({.port = cluster.router->port(),
                                           .requests = {ChatRequest(text, 1, false)},
                                           .connections = 1,
                                           .rate = 1,
                                           .seconds = 0.5});
  if (result.answers != 1) return absl::InternalError("a chat was not answered");
  return cluster.workers->seen().prompt_tokens - before;
}

/// Requests of about chat_tokens each, all different.
absl::StatusOr<std::vector<std::string>> Chats(const RouterBenchOptions& options,
                                               const Cluster& cluster) {
  std::mt19937 random(1);
  constexpr int32_t kTrial = 50;
  const absl::StatusOr<int64_t> none = TokensOf(cluster, "a");
  if (!none.ok()) return none.status();
  const absl::StatusOr<int64_t> trial = TokensOf(cluster, TextOf(kTrial, random));
  if (!trial.ok()) return trial.status();
  const double a_word = static_cast<double>(*trial - *none) / kTrial;
  const auto words =
      static_cast<int32_t>((options.chat_tokens - static_cast<double>(*none)) / a_word);
  std::vector<std::string> requests;
  for (int32_t i = 0; i < 2000; ++i) {
    requests.push_back(ChatRequest(TextOf(std::max(1, words), random), 1, false));
  }
  return requests;
}

Script Immediately() {
  Script script;
  script.tokens_per_s = 0;
  script.prefill_tokens_per_s = 0;
  return script;
}

absl::Status MeasureChat(const RouterBenchOptions& options, const std::string& policy) {
  absl::StatusOr<Cluster> cluster = StartCluster(options, policy, options.workers, Immediately());
  if (!cluster.ok()) return cluster.status();
  absl::StatusOr<std::vector<std::string>> chats = Chats(options, *cluster);
  if (!chats.ok()) return chats.status();
  ShortLoad load{.port = cluster->router->port(),
                 .requests = *std::move(chats),
                 .connections = options.chat_connections,
                 .rate = 0,
                 .seconds = 1};
  RunShortLoad(load);  // thrown away
  load.seconds = options.seconds;
  for (const bool full : {true, false}) {
    const double cpu = cluster->router->CpuSeconds();
    const ScriptedSeen before = cluster->workers->seen();
    ShortResult result = RunShortLoad(load);
    const double used = cluster->router->CpuSeconds() - cpu;
    const ScriptedSeen after = cluster->workers->seen();
    const double rate = static_cast<double>(result.answers) / result.seconds;
    Print({{"bench", "router chat"},
           {"policy", policy},
           {"load", full ? "full" : "quarter"},
           {"prompt_tokens", static_cast<double>(after.prompt_tokens - before.prompt_tokens) /
                                 static_cast<double>(after.submits - before.submits)},
           {"requests_per_s", rate},
           {"requests_per_router_core_s", static_cast<double>(result.answers) / used},
           {"router_cores", used / result.seconds},
           {"errors", result.errors},
           {"p50_ms", 1e3 * result.latency.Quantile(0.5)},
           {"p99_ms", 1e3 * result.latency.Quantile(0.99)},
           {"p999_ms", 1e3 * result.latency.Quantile(0.999)}});
    if (result.errors > 0) return absl::InternalError("requests failed");
    load.rate = rate / 4;
  }
  return absl::OkStatus();
}

absl::Status MeasureStreams(const RouterBenchOptions& options, const std::string& policy) {
  Script script;
  script.tokens_per_s = options.stream_tokens_per_s;
  for (const int32_t count : options.streams) {
    absl::StatusOr<Cluster> cluster = StartCluster(options, policy, options.workers, script);
    if (!cluster.ok()) return cluster.status();
    std::mt19937 random(2);
    StreamLoad load(cluster->router->port(),
                    ChatRequest(TextOf(50, random), kStreamTokensMax, true), count, kOpenAtOnce);
    if (!load.Open(60)) {
      return absl::InternalError(absl::StrCat(load.ended(), " of ", count, " streams ended"));
    }
    const double cpu = cluster->router->CpuSeconds();
    const int64_t tokens = cluster->workers->seen().tokens;
    load.Measure(options.seconds);
    const double used = cluster->router->CpuSeconds() - cpu;
    const int64_t made = cluster->workers->seen().tokens - tokens;
    const double gap = 1 / options.stream_tokens_per_s;
    Print({{"bench", "router streams"},
           {"policy", policy},
           {"streams", count},
           {"events_per_s", static_cast<double>(load.events()) / options.seconds},
           {"tokens_made_per_s", static_cast<double>(made) / options.seconds},
           {"events_per_router_core_s", static_cast<double>(load.events()) / used},
           {"router_cores", used / options.seconds},
           {"ended", load.ended()},
           {"gap_p50_ms", 1e3 * load.gaps().Quantile(0.5)},
           {"gap_p99_ms", 1e3 * load.gaps().Quantile(0.99)},
           {"added_p99_ms", 1e3 * (load.gaps().Quantile(0.99) - gap)}});
  }
  return absl::OkStatus();
}

absl::Status MeasureMemory(const RouterBenchOptions& options) {
  Script script;
  script.tokens_per_s = 2;
  absl::StatusOr<Cluster> cluster = StartCluster(options, "prefix", options.workers, script);
  if (!cluster.ok()) return cluster.status();
  const int32_t port = cluster->router->port();
  std::mt19937 random(3);
  const std::string request = ChatRequest(TextOf(50, random), kStreamTokensMax, true);
  // What the first streams make the router allocate once is not theirs.
  auto first = std::make_unique<StreamLoad>(port, request, kOpenAtOnce, kOpenAtOnce);
  if (!first->Open(60)) return absl::InternalError("streams ended");
  const int64_t before = cluster->router->ResidentBytes();
  StreamLoad load(port, request, options.memory_streams, kOpenAtOnce);
  if (!load.Open(120)) {
    return absl::InternalError(
        absl::StrCat(load.ended(), " of ", options.memory_streams, " streams ended"));
  }
  load.Measure(options.seconds);
  const int64_t bytes = cluster->router->ResidentBytes() - before;
  Print({{"bench", "router memory"},
         {"streams", options.memory_streams},
         {"rss_before_mib", static_cast<double>(before) / (1 << 20)},
         {"kib_per_stream", static_cast<double>(bytes) / 1024 / options.memory_streams}});
  return absl::OkStatus();
}

absl::Status MeasureIdle(const RouterBenchOptions& options) {
  for (const int32_t count : {1, options.idle_workers}) {
    absl::StatusOr<Cluster> cluster = StartCluster(options, "prefix", count, {});
    if (!cluster.ok()) return cluster.status();
    while (cluster->workers->seen().sessions < count) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    std::this_thread::sleep_for(std::chrono::seconds(2));
    const double cpu = cluster->router->CpuSeconds();
    std::this_thread::sleep_for(std::chrono::duration<double>(options.seconds));
    Print({{"bench", "router idle"},
           {"workers", count},
           {"router_cores", (cluster->router->CpuSeconds() - cpu) / options.seconds},
           {"rss_mib", static_cast<double>(cluster->router->ResidentBytes()) / (1 << 20)}});
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RouterBenchOptions::Validate() const {
  struct Bound {
    const char* flag;
    double value, low, high;
  };
  for (const Bound& bound : {Bound{"loop-threads", double(loop_threads), 1, 256},
                             {"workers", double(workers), 1, 1024},
                             {"seconds", seconds, 0.1, 3600},
                             {"chat-tokens", double(chat_tokens), 20, 100'000},
                             {"chat-connections", double(chat_connections), 1, 10'000},
                             {"stream-tokens-per-s", stream_tokens_per_s, 0.1, 10'000},
                             {"memory-streams", double(memory_streams), 1, 50'000},
                             {"idle-workers", double(idle_workers), 1, 4096}}) {
    if (bound.value >= bound.low && bound.value <= bound.high) continue;
    return absl::InvalidArgumentError(absl::StrFormat(
        "--%s is %g, it must be from %g to %g", bound.flag, bound.value, bound.low, bound.high));
  }
  for (const int32_t count : streams) {
    if (count >= 1 && count <= 50'000) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("--streams has ", count, ", each must be from 1 to 50000"));
  }
  return absl::OkStatus();
}

absl::Status RunRouterBench(const RouterBenchOptions& options) {
  RaiseDescriptors();
  const auto only = [&](const char* name) {
    return options.only.empty() || std::string(name).find(options.only) != std::string::npos;
  };
  for (const std::string& policy : options.policies) {
    if (only("chat")) {
      Say("chat, " + policy);
      if (absl::Status status = MeasureChat(options, policy); !status.ok()) return status;
    }
  }
  for (const std::string& policy : options.policies) {
    if (only("streams")) {
      Say("streams, " + policy);
      if (absl::Status status = MeasureStreams(options, policy); !status.ok()) return status;
    }
  }
  if (only("memory")) {
    Say("memory");
    if (absl::Status status = MeasureMemory(options); !status.ok()) return status;
  }
  if (only("idle")) {
    Say("idle");
    return MeasureIdle(options);
  }
  return absl::OkStatus();
}

}  // namespace glm::bench
