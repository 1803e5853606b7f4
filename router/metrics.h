// Every metric of the router, declared once; names begin with glmserve_router_.
//
// Who calls: exchanges, fronts and main, from any thread; counters are atomic. Labels take their
// values from the enums below, never from a client.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"

namespace prometheus {
class Counter;
class Gauge;
class Histogram;
class Registry;
}  // namespace prometheus

namespace glm::router {

/// What a client called.
enum class Endpoint : uint8_t { kChatCompletions, kCompletions, kGrpcChat, kGrpcGenerate };
inline constexpr int32_t kEndpointCount = 4;

/// How a request ended.
enum class Outcome : uint8_t {
  kStop,         // answered; the model or a stop string ended it
  kLength,       // answered up to max_tokens
  kCancelled,    // the client left
  kInvalid,      // refused for what it says
  kOverloaded,   // refused for lack of room
  kUnavailable,  // no worker, or too many were lost
  kTimeout,      // took longer than it may
  kError,        // anything else
};
inline constexpr int32_t kOutcomeCount = 8;

/// The outcome of a request that failed with `status`.
Outcome OutcomeOf(const absl::Status& status);

/// Why a request was sent to another worker.
enum class RetryReason : uint8_t { kLost, kRefused };
inline constexpr int32_t kRetryReasonCount = 2;

/// How a worker was found to hang.
enum class HangKind : uint8_t {
  kSilent,  // it sends nothing
  kStep,    // it lives, and its step does not end
};
inline constexpr int32_t kHangKindCount = 2;

/// Who names workers to this router.
enum class MemberSource : uint8_t { kStatic, kFile, kDns, kRegistry };
inline constexpr int32_t kMemberSourceCount = 4;
/// Why a request was not taken, or not kept.
enum class Refusal : uint8_t {
  kRequests,       // --requests-max are in the router
  kQueueRequests,  // --queue-requests-max wait
  kQueueTokens,    // --queue-tokens-max wait
  kTenantShare,    // its tenant has its share of the queue
  kWait,           // it would wait longer than it may
  kTimeout,        // it waited as long as it may
};
inline constexpr int32_t kRefusalCount = 6;

/// How many workers are in each state.
struct WorkerCounts {
  int32_t connecting = 0;
  int32_t ready = 0;
  int32_t draining = 0;
  int32_t down = 0;
  int32_t unauthenticated = 0;  // of those not ready: they do not take our token
};

class RouterMetrics {
 public:
  RouterMetrics();
  RouterMetrics(const RouterMetrics&) = delete;
  RouterMetrics& operator=(const RouterMetrics&) = delete;
  ~RouterMetrics();

  /// Once per request. An exchange counts itself; a front counts what it refuses before there is
  /// one.
  void CountRequest(Endpoint endpoint, Outcome outcome);
  void CountPromptTokens(int64_t tokens);
  void CountCachedTokens(int64_t tokens);
  void CountCompletionTokens(int64_t tokens);
  void CountRetry(RetryReason reason);
  void CountAttempt();            // a request was sent to a worker
  void CountHang(HangKind kind);  // a worker was given up that showed no progress
  void CountRefusal(Refusal reason);
  void CountRetryDenied();    // a retry that the budget did not allow
  void CountEjection();       // a worker is not chosen for a while
  void CountCacheBreak();     // a gap or a wrong digest in what a worker says of its prefix cache
  void CountCacheSnapshot();  // a worker was asked for all that its prefix cache holds

  void ObserveDecision(double seconds);    // to name a prompt's blocks and choose its worker
  void ObserveQueueWait(double seconds);   // of a request that was sent; 0: it did not wait
  void ObserveFirstToken(double seconds);  // since the request was read
  /// `tokens` arrived together, `seconds` after the ones before.
  void ObserveNextTokens(double seconds, int32_t tokens);
  void ObserveRequest(double seconds);  // from first to last, answered requests only

  void AddRunning(int32_t change);        // requests that are at a worker
  void AddWaiting(int32_t change);        // requests that wait for room at a worker
  void AddWaitingTokens(int64_t change);  // of their prompts
  void AddOpen(int32_t change);           // requests in the router, wherever they are
  void AddPromptBytes(int64_t change);    // token ids that are held for them
  void AddConnections(int32_t change);    // open HTTP connections
  void SetWorkers(const WorkerCounts& counts);
  void SetMembers(MemberSource source, int32_t count);  // named by it, some perhaps by others too
  void CountMemberError(MemberSource source);  // what it said was not taken, or it said nothing
  /// Of the prefix index: blocks remembered, their memory, and what was not taken for want of room.
  void SetIndex(int64_t blocks, int64_t bytes, int64_t refused);
  void SetEjected(int32_t workers);  // that are not chosen for a while

  /// Everything in Prometheus' text format, version 0.0.4.
  std::string Text() const;

 private:
  std::unique_ptr<prometheus::Registry> registry_;
  std::array<std::array<prometheus::Counter*, kOutcomeCount>, kEndpointCount> requests_;
  std::array<prometheus::Counter*, kRetryReasonCount> retries_;
  std::array<prometheus::Counter*, kHangKindCount> hangs_;
  std::array<prometheus::Counter*, kRefusalCount> refusals_;
  prometheus::Counter* attempts_;
  prometheus::Counter* retries_denied_;
  prometheus::Counter* ejections_;
  prometheus::Counter* cache_breaks_;
  prometheus::Counter* cache_snapshots_;
  prometheus::Gauge* index_blocks_;
  prometheus::Gauge* index_bytes_;
  prometheus::Gauge* index_blocks_refused_;
  prometheus::Counter* prompt_tokens_;
  prometheus::Counter* cached_tokens_;
  prometheus::Counter* completion_tokens_;
  prometheus::Histogram* decision_seconds_;
  prometheus::Histogram* queue_wait_seconds_;
  prometheus::Histogram* first_token_seconds_;
  prometheus::Histogram* next_token_seconds_;
  prometheus::Histogram* request_seconds_;
  prometheus::Gauge* running_;
  prometheus::Gauge* waiting_;
  prometheus::Gauge* waiting_tokens_;
  prometheus::Gauge* open_;
  prometheus::Gauge* prompt_bytes_;
  prometheus::Gauge* ejected_;
  prometheus::Gauge* connections_;
  std::array<prometheus::Gauge*, 4> workers_;
  prometheus::Gauge* workers_unauthenticated_;
  std::array<prometheus::Gauge*, kMemberSourceCount> members_;
  std::array<prometheus::Counter*, kMemberSourceCount> member_errors_;
};

}  // namespace glm::router
