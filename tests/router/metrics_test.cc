#include "router/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace glm::router {
namespace {

using ::testing::HasSubstr;

TEST(MetricsTest, EveryMetricIsThereBeforeItHappens) {
  const RouterMetrics metrics;
  const std::string text = metrics.Text();
  for (const char* line : {
           "glmserve_router_requests_total{endpoint=\"chat_completions\",outcome=\"stop\"} 0",
           "glmserve_router_requests_total{endpoint=\"grpc_generate\",outcome=\"error\"} 0",
           "glmserve_router_retries_total{reason=\"lost\"} 0",
           "glmserve_router_workers{state=\"ready\"} 0",
           "glmserve_router_prompt_tokens_total 0",
           "glmserve_router_cached_tokens_total 0",
           "glmserve_router_completion_tokens_total 0",
           "glmserve_router_time_to_first_token_seconds_count 0",
           "glmserve_router_inter_token_seconds_count 0",
           "glmserve_router_request_seconds_count 0",
           "glmserve_router_requests_running 0",
           "glmserve_router_requests_waiting 0",
           "glmserve_router_http_connections 0",
           "glmserve_router_refusals_total{reason=\"requests\"} 0",
           "glmserve_router_refusals_total{reason=\"timeout\"} 0",
           "glmserve_router_retries_denied_total 0",
           "glmserve_router_worker_ejections_total 0",
           "glmserve_router_workers_ejected 0",
           "glmserve_router_tokens_waiting 0",
           "glmserve_router_requests_open 0",
           "glmserve_router_prompt_bytes 0",
           "glmserve_router_queue_wait_seconds_count 0",
       }) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

TEST(MetricsTest, CountsAndGaugesMove) {
  RouterMetrics metrics;
  metrics.CountRequest(Endpoint::kCompletions, Outcome::kLength);
  metrics.CountRequest(Endpoint::kCompletions, Outcome::kLength);
  metrics.CountRetry(RetryReason::kRefused);
  metrics.CountPromptTokens(10);
  metrics.CountCachedTokens(8);
  metrics.CountCompletionTokens(5);
  metrics.AddRunning(3);
  metrics.AddRunning(-1);
  metrics.AddWaiting(1);
  metrics.CountRefusal(Refusal::kTenantShare);
  metrics.CountRefusal(Refusal::kWait);
  metrics.CountRefusal(Refusal::kWait);
  metrics.CountRetryDenied();
  metrics.CountEjection();
  metrics.SetEjected(2);
  metrics.AddWaitingTokens(70'000);
  metrics.AddOpen(9);
  metrics.AddPromptBytes(4'000'000'000);
  metrics.ObserveQueueWait(0.02);
  metrics.AddConnections(4);
  metrics.AddConnections(-4);
  metrics.SetWorkers({.connecting = 1, .ready = 2, .draining = 3, .down = 4});
  const std::string text = metrics.Text();
  for (const char* line : {
           "glmserve_router_requests_total{endpoint=\"completions\",outcome=\"length\"} 2",
           "glmserve_router_retries_total{reason=\"refused\"} 1",
           "glmserve_router_prompt_tokens_total 10",
           "glmserve_router_cached_tokens_total 8",
           "glmserve_router_completion_tokens_total 5",
           "glmserve_router_requests_running 2",
           "glmserve_router_requests_waiting 1",
           "glmserve_router_http_connections 0",
           "glmserve_router_refusals_total{reason=\"tenant_share\"} 1",
           "glmserve_router_refusals_total{reason=\"wait\"} 2",
           "glmserve_router_retries_denied_total 1",
           "glmserve_router_worker_ejections_total 1",
           "glmserve_router_workers_ejected 2",
           "glmserve_router_tokens_waiting 70000",
           "glmserve_router_requests_open 9",
           "glmserve_router_prompt_bytes 4000000000",
           "glmserve_router_queue_wait_seconds_bucket{le=\"0.01\"} 0",
           "glmserve_router_queue_wait_seconds_bucket{le=\"0.05\"} 1",
           "glmserve_router_workers{state=\"connecting\"} 1",
           "glmserve_router_workers{state=\"ready\"} 2",
           "glmserve_router_workers{state=\"draining\"} 3",
           "glmserve_router_workers{state=\"down\"} 4",
       }) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

TEST(MetricsTest, TokensThatCameTogetherShareTheTime) {
  RouterMetrics metrics;
  metrics.ObserveFirstToken(0.3);
  metrics.ObserveNextTokens(0.08, 4);
  metrics.ObserveRequest(2);
  const std::string text = metrics.Text();
  EXPECT_THAT(text, HasSubstr("time_to_first_token_seconds_bucket{le=\"0.25\"} 0"));
  EXPECT_THAT(text, HasSubstr("time_to_first_token_seconds_bucket{le=\"0.5\"} 1"));
  EXPECT_THAT(text, HasSubstr("inter_token_seconds_count 4"));
  EXPECT_THAT(text, HasSubstr("inter_token_seconds_bucket{le=\"0.015\"} 0"));
  EXPECT_THAT(text, HasSubstr("inter_token_seconds_bucket{le=\"0.025\"} 4"));
  EXPECT_THAT(text, HasSubstr("request_seconds_sum 2"));
}

TEST(MetricsTest, AnErrorsCodeIsItsOutcome) {
  EXPECT_EQ(OutcomeOf(absl::InvalidArgumentError("")), Outcome::kInvalid);
  EXPECT_EQ(OutcomeOf(absl::NotFoundError("")), Outcome::kInvalid);
  EXPECT_EQ(OutcomeOf(absl::UnimplementedError("")), Outcome::kInvalid);
  EXPECT_EQ(OutcomeOf(absl::ResourceExhaustedError("")), Outcome::kOverloaded);
  EXPECT_EQ(OutcomeOf(absl::UnavailableError("")), Outcome::kUnavailable);
  EXPECT_EQ(OutcomeOf(absl::DeadlineExceededError("")), Outcome::kTimeout);
  EXPECT_EQ(OutcomeOf(absl::CancelledError("")), Outcome::kCancelled);
  EXPECT_EQ(OutcomeOf(absl::InternalError("")), Outcome::kError);
}

}  // namespace
}  // namespace glm::router
