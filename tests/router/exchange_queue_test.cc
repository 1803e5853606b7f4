// Exchanges that wait, are refused, tried again or kept away, over scripted workers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "router/admit/retry_after.h"
#include "router/exchange.h"
#include "tests/router/exchange_rig.h"

namespace glm::router {
namespace {

using ::testing::HasSubstr;

const std::vector<int32_t> kPrompt = {300, 301, 302, 303, 304};

ExchangeRequest Ask(int32_t max_tokens) {
  ExchangeRequest request;
  request.prompt = kPrompt;
  request.max_tokens = max_tokens;
  request.ignore_eos = true;
  return request;
}

class ExchangeQueueTest : public ::testing::Test {
 protected:
  ExchangeQueueTest() { rig_.fleet_options.worker_queue_requests = 0; }

  /// Workers that run one request at once and are stepped by hand.
  FakeWorker* AddSlowWorker(int32_t sequences_max = 1) {
    FakeWorkerOptions options = rig_.WorkerOptions();
    options.sequences_max = sequences_max;
    options.automatic = false;
    return rig_.AddWorker(options);
  }
  std::unique_ptr<ExchangeClient> Start(ExchangeRequest request, int32_t loop = 0) {
    return std::make_unique<ExchangeClient>(rig_.Rooms(loop), std::move(request));
  }
  std::string Metric(const std::string& name) {
    const std::string text = rig_.metrics()->Text();
    const size_t begin = text.find("\nglmserve_router_" + name + " ");
    if (begin == std::string::npos) return "absent";
    const size_t value = text.find(' ', begin) + 1;
    return text.substr(value, text.find('\n', value) - value);
  }
  bool AwaitMetric(const std::string& name, const std::string& value) {
    for (int i = 0; i < 10'000; ++i) {
      if (Metric(name) == value) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return false;
  }
  void ExpectNothingLeft() {
    EXPECT_EQ(rig_.admission()->counts(), Admission::Counts{});
    for (const char* gauge : {"requests_open", "requests_waiting", "tokens_waiting",
                              "requests_running", "prompt_bytes"}) {
      EXPECT_EQ(Metric(gauge), "0") << gauge;
    }
  }

  ExchangeRig rig_;
};

TEST_F(ExchangeQueueTest, WhatNoWorkerHasRoomForWaitsHere) {
  FakeWorker* worker = AddSlowWorker(2);
  rig_.Start(1);
  std::vector<std::unique_ptr<ExchangeClient>> clients;
  for (int32_t i = 0; i < 2; ++i) clients.push_back(Start(Ask(2), i));
  ASSERT_TRUE(worker->AwaitLive(2));
  for (int32_t i = 0; i < 3; ++i) clients.push_back(Start(Ask(2), i % 2));
  EXPECT_EQ(Metric("requests_waiting"), "3");
  EXPECT_EQ(Metric("tokens_waiting"), "15");
  EXPECT_EQ(worker->seen().submits, 2);
  worker->SetAutomatic(true);
  for (const auto& client : clients) {
    ASSERT_TRUE(client->AwaitEnd());
    EXPECT_FALSE(client->error.has_value()) << *client->error;
  }
  EXPECT_EQ(Metric("queue_wait_seconds_count"), "5");
  ExpectNothingLeft();
}

TEST_F(ExchangeQueueTest, WaitsNoLongerThanItMay) {
  rig_.admit_options.queue_timeout_ms = 30;
  FakeWorker* worker = AddSlowWorker();
  rig_.Start(1);
  const auto first = Start(Ask(2));
  ASSERT_TRUE(worker->AwaitLive(1));
  const auto second = Start(Ask(2), 1);
  ASSERT_TRUE(second->AwaitEnd());
  EXPECT_EQ(second->error->code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(second->error->message()), HasSubstr("within 30 ms"));
  EXPECT_TRUE(RetryAfterOf(*second->error).has_value());

  ExchangeRequest request = Ask(2);
  request.queue_timeout_ms = 0;  // its own limit: not at all
  const auto third = Start(std::move(request), 1);
  EXPECT_EQ(third->error->code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Metric("refusals_total{reason=\"timeout\"}"), "2");
  first->Leave();
  ExpectNothingLeft();
}

TEST_F(ExchangeQueueTest, ALostRequestDoesNotWaitBehindNewOnes) {
  FakeWorker* lost = AddSlowWorker();
  FakeWorker* other = AddSlowWorker();
  rig_.Start(2);
  const auto first = Start(Ask(3));
  const auto second = Start(Ask(3), 1);
  ASSERT_TRUE(lost->AwaitLive(1));
  ASSERT_TRUE(other->AwaitLive(1));
  const auto waits = Start(Ask(3));
  EXPECT_EQ(Metric("requests_waiting"), "1");
  lost->BreakSessions(absl::InternalError("device lost"));
  ASSERT_TRUE(other->AwaitLive(2));  // full as it is
  EXPECT_EQ(Metric("retries_total{reason=\"lost\"}"), "1");
  other->SetAutomatic(true);
  lost->SetAutomatic(true);
  for (const auto* client : {&first, &second, &waits}) {
    ASSERT_TRUE((*client)->AwaitEnd());
    EXPECT_FALSE((*client)->error.has_value()) << *(*client)->error;
  }
  ExpectNothingLeft();
}

TEST_F(ExchangeQueueTest, ALossNeedsNoBudget) {
  rig_.admit_options.retry_burst = 0;
  rig_.admit_options.retry_percent = 0;
  FakeWorker* worker = AddSlowWorker();
  rig_.Start(1);
  const auto client = Start(Ask(3));
  ASSERT_TRUE(worker->AwaitLive(1));
  worker->BreakSessions(absl::InternalError("device lost"));
  ASSERT_TRUE(worker->AwaitSubmits(2));
  worker->SetAutomatic(true);
  ASSERT_TRUE(client->AwaitEnd());
  EXPECT_FALSE(client->error.has_value()) << *client->error;
}

TEST_F(ExchangeQueueTest, AnErrorOfAWorkersOwnIsTriedElsewhereAndCounted) {
  rig_.fleet_options.eject_errors = 3;
  FakeWorker* bad = rig_.AddWorker(rig_.WorkerOptions());
  FakeWorker* good = rig_.AddWorker(rig_.WorkerOptions());
  rig_.Start(2);
  bad->Refuse(absl::InternalError("out of order"));
  for (int32_t i = 0; i < 40 && bad->seen().submits < 3; ++i) {
    const auto client = Start(Ask(2));
    ASSERT_TRUE(client->AwaitEnd());
    EXPECT_FALSE(client->error.has_value()) << *client->error;
  }
  ASSERT_TRUE(AwaitMetric("workers_ejected", "1"));
  EXPECT_EQ(Metric("worker_ejections_total"), "1");
  for (int32_t i = 0; i < 10; ++i) {
    const auto client = Start(Ask(2));
    ASSERT_TRUE(client->AwaitEnd());
  }
  EXPECT_EQ(bad->seen().submits, 3);
  // Where there is no other it is used.
  bad->Refuse(absl::OkStatus());
  good->SetDraining(true);
  ASSERT_TRUE(rig_.AwaitReady(1));
  const auto client = Start(Ask(2));
  ASSERT_TRUE(client->AwaitEnd());
  EXPECT_FALSE(client->error.has_value()) << *client->error;
}

TEST_F(ExchangeQueueTest, RefusalsAreTriedAgainWithinTheBudgetOnly) {
  rig_.admit_options.retry_burst = 1;
  rig_.admit_options.retry_percent = 0;
  FakeWorker* first = rig_.AddWorker(rig_.WorkerOptions());
  FakeWorker* second = rig_.AddWorker(rig_.WorkerOptions());
  rig_.AddWorker(rig_.WorkerOptions());
  rig_.Start(3);
  first->Refuse(absl::ResourceExhaustedError("queue is full"));
  second->Refuse(absl::InternalError("out of order"));
  int32_t denied = 0;
  for (int32_t i = 0; i < 60 && denied == 0; ++i) {
    const auto client = Start(Ask(2));
    ASSERT_TRUE(client->AwaitEnd());
    if (!client->error.has_value()) continue;
    EXPECT_THAT(std::string(client->error->message()), HasSubstr("--retry-percent"));
    ++denied;
  }
  EXPECT_EQ(denied, 1);
  EXPECT_EQ(Metric("retries_denied_total"), "1");
  EXPECT_EQ(Metric("retries_total{reason=\"refused\"}"), "1");
  EXPECT_EQ(first->seen().submits + second->seen().submits, 2);
}

TEST_F(ExchangeQueueTest, SoManyRequestsInTheRouterAndNoMore) {
  rig_.admit_options.requests_max = 2;
  FakeWorker* worker = AddSlowWorker();
  rig_.Start(1);
  const auto first = Start(Ask(2));
  const auto second = Start(Ask(2));
  const auto third = Start(Ask(2));
  EXPECT_EQ(third->error->code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(third->error->message()), HasSubstr("(--requests-max)"));
  EXPECT_EQ(Metric("requests_open"), "2");
  worker->SetAutomatic(true);
  ASSERT_TRUE(first->AwaitEnd() && second->AwaitEnd());
  ExpectNothingLeft();
}

TEST_F(ExchangeQueueTest, TheAnswersToOnePromptHoldItOnce) {
  FakeWorker* worker = AddSlowWorker();
  rig_.Start(1);
  std::vector<std::unique_ptr<ExchangeClient>> clients;
  for (ExchangeRequest& request : RequestsFor(Ask(2), 3)) {
    clients.push_back(Start(std::move(request)));
  }
  EXPECT_EQ(Metric("prompt_bytes"), "20");
  worker->SetAutomatic(true);
  for (const auto& client : clients) {
    ASSERT_TRUE(client->AwaitEnd());
    EXPECT_FALSE(client->error.has_value()) << *client->error;
    EXPECT_EQ(client->usage.prompt_tokens, 5);
  }
  clients.clear();
  ExpectNothingLeft();
}

TEST_F(ExchangeQueueTest, APriorityThatIsTheTenantsAffairIsNotToldToWorkers) {
  rig_.admit_options.priority_across_tenants = false;
  FakeWorker* worker = rig_.AddWorker(rig_.WorkerOptions());
  rig_.Start(1);
  ExchangeRequest request = Ask(2);
  request.priority = -1000;
  const auto client = Start(std::move(request));
  ASSERT_TRUE(client->AwaitEnd());
  EXPECT_EQ(worker->submits().at(0).priority(), 0);
}

TEST_F(ExchangeQueueTest, WhoCannotFitIsToldAtOnceThoughOthersWait) {
  FakeWorker* worker = AddSlowWorker();
  rig_.Start(1);
  const auto first = Start(Ask(2));
  ASSERT_TRUE(worker->AwaitLive(1));
  const auto second = Start(Ask(2));
  ExchangeRequest request = Ask(2);
  request.prompt = std::vector<int32_t>(5000, 300);
  const auto third = Start(std::move(request));
  ASSERT_TRUE(third->error.has_value());
  EXPECT_EQ(third->error->code(), absl::StatusCode::kOutOfRange);
  first->Leave();
  ASSERT_TRUE(worker->AwaitLive(1));  // the second's turn
  second->Leave();
  ExpectNothingLeft();
}

}  // namespace
}  // namespace glm::router
