#include "router/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <algorithm>

namespace glm::router {
namespace {

constexpr std::array<const char*, kEndpointCount> kEndpointNames = {
    "chat_completions", "completions", "grpc_chat", "grpc_generate"};
constexpr std::array<const char*, kOutcomeCount> kOutcomeNames = {
    "stop", "length", "cancelled", "invalid", "overloaded", "unavailable", "timeout", "error"};
constexpr std::array<const char*, kRetryReasonCount> kRetryReasonNames = {"lost", "refused"};
constexpr std::array<const char*, kHangKindCount> kHangKindNames = {"silent", "step"};
constexpr std::array<const char*, kRefusalCount> kRefusalNames = {
    "requests", "queue_requests", "queue_tokens", "tenant_share", "wait", "timeout"};
constexpr std::array<const char*, 4> kWorkerStateNames = {"connecting", "ready", "draining",
                                                          "down"};
constexpr std::array<const char*, kMemberSourceCount> kMemberSourceNames = {"static", "file", "dns",
                                                                            "registry"};

using Buckets = prometheus::Histogram::BucketBoundaries;

/// From a short prompt and a few workers to 100,000 tokens and hundreds.
Buckets DecisionBuckets() {
  return {0.000'005, 0.000'01, 0.000'02, 0.000'05, 0.000'1, 0.000'2, 0.000'5, 0.001, 0.002, 0.01};
}

/// From a request that waits for nothing to the longest wait that is usual.
Buckets QueueWaitBuckets() {
  return {0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60};
}

/// From a cached short prompt on an idle GPU to a long one in a queue.
Buckets FirstTokenBuckets() {
  return {0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 20, 40, 80};
}

/// From several drafted tokens per step to a step that waits for a long prefill.
Buckets NextTokenBuckets() {
  return {0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05,
          0.075, 0.1,   0.15, 0.2,   0.3,  0.5,   1,    2.5};
}

Buckets RequestBuckets() {
  return {0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 20, 30, 60, 120, 240, 600, 1200, 3600};
}

prometheus::Counter* AddCounter(prometheus::Registry* registry, const std::string& name,
                                const std::string& help) {
  return &prometheus::BuildCounter()
              .Name("glmserve_router_" + name)
              .Help(help)
              .Register(*registry)
              .Add({});
}

prometheus::Gauge* AddGauge(prometheus::Registry* registry, const std::string& name,
                            const std::string& help) {
  return &prometheus::BuildGauge()
              .Name("glmserve_router_" + name)
              .Help(help)
              .Register(*registry)
              .Add({});
}

prometheus::Histogram* AddHistogram(prometheus::Registry* registry, const std::string& name,
                                    const std::string& help, const Buckets& buckets) {
  return &prometheus::BuildHistogram()
              .Name("glmserve_router_" + name)
              .Help(help)
              .Register(*registry)
              .Add({}, buckets);
}

}  // namespace

Outcome OutcomeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kCancelled:
      return Outcome::kCancelled;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kUnimplemented:
      return Outcome::kInvalid;
    case absl::StatusCode::kResourceExhausted:
      return Outcome::kOverloaded;
    case absl::StatusCode::kUnavailable:
      return Outcome::kUnavailable;
    case absl::StatusCode::kDeadlineExceeded:
      return Outcome::kTimeout;
    default:
      return Outcome::kError;
  }
}

RouterMetrics::RouterMetrics() : registry_(std::make_unique<prometheus::Registry>()) {
  prometheus::Registry* const registry = registry_.get();
  auto& requests = prometheus::BuildCounter()
                       .Name("glmserve_router_requests_total")
                       .Help("Requests that ended, by what was called and how they ended")
                       .Register(*registry);
  for (size_t i = 0; i < kEndpointNames.size(); ++i) {
    for (size_t j = 0; j < kOutcomeNames.size(); ++j) {
      requests_[i][j] =
          &requests.Add({{"endpoint", kEndpointNames[i]}, {"outcome", kOutcomeNames[j]}});
    }
  }
  auto& retries = prometheus::BuildCounter()
                      .Name("glmserve_router_retries_total")
                      .Help("Requests sent to another worker, by why")
                      .Register(*registry);
  for (size_t i = 0; i < kRetryReasonNames.size(); ++i) {
    retries_[i] = &retries.Add({{"reason", kRetryReasonNames[i]}});
  }
  auto& refusals = prometheus::BuildCounter()
                       .Name("glmserve_router_refusals_total")
                       .Help("Requests that the router's queue did not take or keep, by why")
                       .Register(*registry);
  for (size_t i = 0; i < kRefusalNames.size(); ++i) {
    refusals_[i] = &refusals.Add({{"reason", kRefusalNames[i]}});
  }
  retries_denied_ = AddCounter(registry, "retries_denied_total",
                               "Refused requests that the retry budget kept from another worker");
  ejections_ =
      AddCounter(registry, "worker_ejections_total", "Workers kept out of the choice for a while");
  auto& hangs = prometheus::BuildCounter()
                    .Name("glmserve_router_worker_hangs_total")
                    .Help("Workers given up because they showed no progress, by what was seen")
                    .Register(*registry);
  for (size_t i = 0; i < kHangKindNames.size(); ++i) {
    hangs_[i] = &hangs.Add({{"kind", kHangKindNames[i]}});
  }
  auto& workers = prometheus::BuildGauge()
                      .Name("glmserve_router_workers")
                      .Help("Workers in each state")
                      .Register(*registry);
  for (size_t i = 0; i < kWorkerStateNames.size(); ++i) {
    workers_[i] = &workers.Add({{"state", kWorkerStateNames[i]}});
  }
  auto& members = prometheus::BuildGauge()
                      .Name("glmserve_router_members")
                      .Help("Workers that a source names")
                      .Register(*registry);
  auto& member_errors = prometheus::BuildCounter()
                            .Name("glmserve_router_member_errors_total")
                            .Help("Times that a source of workers said nothing, or nothing usable")
                            .Register(*registry);
  for (size_t i = 0; i < kMemberSourceNames.size(); ++i) {
    members_[i] = &members.Add({{"source", kMemberSourceNames[i]}});
    member_errors_[i] = &member_errors.Add({{"source", kMemberSourceNames[i]}});
  }
  attempts_ = AddCounter(registry, "attempts_total",
                         "Times that a request was sent to a worker, the first included");
  cache_breaks_ = AddCounter(registry, "cache_breaks_total",
                             "Gaps and wrong digests in what workers say of their prefix caches");
  index_blocks_ = AddGauge(registry, "prefix_index_blocks", "Blocks of KV whose holders are known");
  index_bytes_ = AddGauge(registry, "prefix_index_bytes", "Memory for them");
  index_blocks_refused_ = AddGauge(registry, "prefix_index_blocks_refused",
                                   "Blocks or holders not noted since the start, for want of room "
                                   "(--prefix-blocks-max)");
  cache_snapshots_ = AddCounter(registry, "cache_snapshots_total",
                                "Snapshots of a worker's prefix cache that were asked for");
  prompt_tokens_ = AddCounter(registry, "prompt_tokens_total", "Tokens of the prompts sent");
  cached_tokens_ = AddCounter(registry, "cached_tokens_total",
                              "Prompt tokens that workers had in their prefix cache");
  completion_tokens_ = AddCounter(registry, "completion_tokens_total", "Tokens received");
  decision_seconds_ =
      AddHistogram(registry, "decision_seconds", "To name a prompt's blocks and choose its worker",
                   DecisionBuckets());
  queue_wait_seconds_ = AddHistogram(
      registry, "queue_wait_seconds",
      "That a request waited for room at a worker before it was sent", QueueWaitBuckets());
  first_token_seconds_ =
      AddHistogram(registry, "time_to_first_token_seconds",
                   "From a request read to its first token received", FirstTokenBuckets());
  next_token_seconds_ = AddHistogram(registry, "inter_token_seconds",
                                     "Between two tokens of an answer", NextTokenBuckets());
  request_seconds_ =
      AddHistogram(registry, "request_seconds", "From a request read to its last token received",
                   RequestBuckets());
  running_ = AddGauge(registry, "requests_running", "Requests that are at a worker");
  waiting_ = AddGauge(registry, "requests_waiting", "Requests that wait for room at a worker");
  waiting_tokens_ =
      AddGauge(registry, "tokens_waiting", "Prompt tokens of requests that wait for room");
  open_ = AddGauge(registry, "requests_open", "Requests in the router, wherever they are");
  prompt_bytes_ = AddGauge(registry, "prompt_bytes", "Bytes of prompts' token ids that are held");
  ejected_ = AddGauge(registry, "workers_ejected", "Workers that are not chosen for a while");
  connections_ = AddGauge(registry, "http_connections", "Open HTTP connections");
  workers_unauthenticated_ =
      AddGauge(registry, "workers_unauthenticated", "Workers that do not take this router's token");
}

RouterMetrics::~RouterMetrics() = default;

void RouterMetrics::CountRequest(Endpoint endpoint, Outcome outcome) {
  requests_[static_cast<size_t>(endpoint)][static_cast<size_t>(outcome)]->Increment();
}

void RouterMetrics::CountPromptTokens(int64_t tokens) {
  prompt_tokens_->Increment(static_cast<double>(tokens));
}

void RouterMetrics::CountCachedTokens(int64_t tokens) {
  cached_tokens_->Increment(static_cast<double>(tokens));
}

void RouterMetrics::CountCompletionTokens(int64_t tokens) {
  completion_tokens_->Increment(static_cast<double>(tokens));
}

void RouterMetrics::CountRetry(RetryReason reason) {
  retries_[static_cast<size_t>(reason)]->Increment();
}

void RouterMetrics::CountRefusal(Refusal reason) {
  refusals_[static_cast<size_t>(reason)]->Increment();
}

void RouterMetrics::CountRetryDenied() { retries_denied_->Increment(); }

void RouterMetrics::CountEjection() { ejections_->Increment(); }

void RouterMetrics::CountAttempt() { attempts_->Increment(); }

void RouterMetrics::CountHang(HangKind kind) { hangs_[static_cast<size_t>(kind)]->Increment(); }

void RouterMetrics::CountCacheBreak() { cache_breaks_->Increment(); }

void RouterMetrics::SetIndex(int64_t blocks, int64_t bytes, int64_t refused) {
  index_blocks_->Set(static_cast<double>(blocks));
  index_bytes_->Set(static_cast<double>(bytes));
  index_blocks_refused_->Set(static_cast<double>(refused));
}

void RouterMetrics::CountCacheSnapshot() { cache_snapshots_->Increment(); }

void RouterMetrics::ObserveDecision(double seconds) { decision_seconds_->Observe(seconds); }

void RouterMetrics::ObserveQueueWait(double seconds) { queue_wait_seconds_->Observe(seconds); }

void RouterMetrics::ObserveFirstToken(double seconds) { first_token_seconds_->Observe(seconds); }

void RouterMetrics::ObserveNextTokens(double seconds, int32_t tokens) {
  for (int32_t i = 0; i < tokens; ++i) next_token_seconds_->Observe(seconds / tokens);
}

void RouterMetrics::ObserveRequest(double seconds) { request_seconds_->Observe(seconds); }

void RouterMetrics::AddRunning(int32_t change) { running_->Increment(change); }
void RouterMetrics::AddWaiting(int32_t change) { waiting_->Increment(change); }
void RouterMetrics::AddWaitingTokens(int64_t change) {
  waiting_tokens_->Increment(static_cast<double>(change));
}
void RouterMetrics::AddOpen(int32_t change) { open_->Increment(change); }
void RouterMetrics::AddPromptBytes(int64_t change) {
  prompt_bytes_->Increment(static_cast<double>(change));
}
void RouterMetrics::SetEjected(int32_t workers) { ejected_->Set(workers); }
void RouterMetrics::AddConnections(int32_t change) { connections_->Increment(change); }

void RouterMetrics::SetWorkers(const WorkerCounts& counts) {
  workers_[0]->Set(counts.connecting);
  workers_[1]->Set(counts.ready);
  workers_[2]->Set(counts.draining);
  workers_[3]->Set(counts.down);
  workers_unauthenticated_->Set(counts.unauthenticated);
}

void RouterMetrics::SetMembers(MemberSource source, int32_t count) {
  members_[static_cast<size_t>(source)]->Set(count);
}

void RouterMetrics::CountMemberError(MemberSource source) {
  member_errors_[static_cast<size_t>(source)]->Increment();
}

std::string RouterMetrics::Text() const {
  return prometheus::TextSerializer().Serialize(registry_->Collect());
}

}  // namespace glm::router
