#include "router/exchange.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/router/exchange_rig.h"

namespace glm::router {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::vector<int32_t> kPrompt = {300, 301, 302, 303, 304};

ExchangeRequest Ask(std::vector<int32_t> prompt_ids, std::optional<int32_t> max_tokens) {
  ExchangeRequest request;
  request.prompt = std::move(prompt_ids);
  request.max_tokens = max_tokens;
  request.ignore_eos = true;
  return request;
}

/// The line of a metric in the exposition, without its name.
std::string MetricOf(RouterMetrics* metrics, const std::string& name) {
  const std::string text = metrics->Text();
  const size_t begin = text.find("\n" + name + " ");
  if (begin == std::string::npos) return "absent";
  const size_t value = begin + name.size() + 2;
  return text.substr(value, text.find('\n', value) - value);
}

class ExchangeTest : public ::testing::Test {
 protected:
  ExchangeRig rig_;
};

TEST_F(ExchangeTest, AnswersWithTextTokensAndUsage) {
  FakeWorkerOptions options = rig_.WorkerOptions();
  options.cached_tokens = 3;
  rig_.AddWorker(options);
  rig_.Start(1);
  ExchangeClient client(rig_.Rooms(), Ask(kPrompt, 40));
  ASSERT_TRUE(client.AwaitEnd());
  ASSERT_FALSE(client.error.has_value()) << *client.error;
  EXPECT_EQ(client.token_ids, FakeAnswer(options, kPrompt, 40));
  EXPECT_EQ(client.content, rig_.text().Decode(client.token_ids));
  EXPECT_EQ(client.reasoning, "");
  EXPECT_EQ(client.end, AnswerEnd::kLength);
  EXPECT_EQ(client.usage.prompt_tokens, 5);
  EXPECT_EQ(client.usage.completion_tokens, 40);
  EXPECT_EQ(client.usage.cached_tokens, 3);
  EXPECT_EQ(client.ends, 1);
  EXPECT_EQ(MetricOf(rig_.metrics(), "glmserve_router_requests_running"), "0");
  EXPECT_EQ(MetricOf(rig_.metrics(), "glmserve_router_prompt_tokens_total"), "5");
  EXPECT_EQ(MetricOf(rig_.metrics(), "glmserve_router_cached_tokens_total"), "3");
  EXPECT_EQ(MetricOf(rig_.metrics(), "glmserve_router_completion_tokens_total"), "40");
  EXPECT_EQ(MetricOf(rig_.metrics(), "glmserve_router_time_to_first_token_seconds_count"), "1");
  EXPECT_EQ(MetricOf(rig_.metrics(), "glmserve_router_inter_token_seconds_count"), "39");
  EXPECT_EQ(MetricOf(rig_.metrics(), "glmserve_router_request_seconds_count"), "1");
  EXPECT_EQ(MetricOf(rig_.metrics(),
                     "glmserve_router_requests_total{endpoint=\"completions\",outcome=\"length\"}"),
            "1");
}

TEST_F(ExchangeTest, TakesSeveralTokensOfOneStep) {
  FakeWorkerOptions options = rig_.WorkerOptions();
  options.tokens_per_step = 4;
  rig_.AddWorker(options);
  rig_.Start(1);
  ExchangeClient client(rig_.Rooms(), Ask(kPrompt, 10));
  ASSERT_TRUE(client.AwaitEnd());
  EXPECT_EQ(client.token_ids, FakeAnswer(options, kPrompt, 10));
  EXPECT_EQ(client.content, rig_.text().Decode(client.token_ids));
}

TEST_F(ExchangeTest, EndsAtAnEndIdWhichIsNoText) {
  const std::vector<int32_t> words = *rig_.text().EncodePrompt("a short answer");
  FakeWorker* worker = rig_.AddWorker(rig_.Scripted(kPrompt.size(), words));
  rig_.Start(1);
  ExchangeRequest request = Ask(kPrompt, std::nullopt);
  request.ignore_eos = false;
  request.stop_token_ids = {7};
  ExchangeClient client(rig_.Rooms(), std::move(request));
  ASSERT_TRUE(client.AwaitEnd());
  EXPECT_EQ(client.end, AnswerEnd::kStop);
  EXPECT_EQ(client.content, "a short answer");
  EXPECT_EQ(client.usage.completion_tokens, static_cast<int32_t>(words.size()) + 1);
  const wire::Submit submit = worker->submits().at(0);
  EXPECT_EQ(submit.stop().max_tokens(), 4096u - 5u);  // what the length leaves
  const FakeWorkerOptions options = rig_.WorkerOptions();
  EXPECT_THAT(submit.stop().stop_ids(), ElementsAre(options.eos_ids[0], options.eos_ids[1], 7));
}

TEST_F(ExchangeTest, AStopIdWithTextIsNoTextEither) {
  const std::vector<int32_t> words = *rig_.text().EncodePrompt("one two");
  const std::vector<int32_t> stop = *rig_.text().EncodePrompt(" stop");
  std::vector<int32_t> script = words;
  script.push_back(stop[0]);
  rig_.AddWorker(rig_.Scripted(kPrompt.size(), script));
  rig_.Start(1);
  ExchangeRequest request = Ask(kPrompt, 100);
  request.stop_token_ids = {stop[0]};
  ExchangeClient client(rig_.Rooms(), std::move(request));
  ASSERT_TRUE(client.AwaitEnd());
  EXPECT_EQ(client.end, AnswerEnd::kStop);
  EXPECT_EQ(client.content, "one two");
}

TEST_F(ExchangeTest, SendsTheSamplingAsAsked) {
  FakeWorker* worker = rig_.AddWorker(rig_.WorkerOptions());
  rig_.Start(1);
  ExchangeRequest request = Ask(kPrompt, 3);
  request.temperature = 0.5f;
  request.top_p = 0.25f;
  request.top_k = -1;
  request.seed = 0xFFFF'FFFF'FFFF'FFFFu;
  request.min_tokens = 2;
  ExchangeClient client(rig_.Rooms(), std::move(request));
  ASSERT_TRUE(client.AwaitEnd());
  const wire::Submit submit = worker->submits().at(0);
  EXPECT_EQ(submit.sampling().temperature(), 0.5f);
  EXPECT_EQ(submit.sampling().top_p(), 0.25f);
  EXPECT_EQ(submit.sampling().top_k(), 0);
  EXPECT_EQ(submit.sampling().seed(), 0xFFFF'FFFF'FFFF'FFFFu);
  EXPECT_EQ(submit.stop().min_tokens(), 2u);
  EXPECT_EQ(submit.stop().stop_ids_size(), 0);  // ignore_eos

  // Without a seed each request draws its own.
  ExchangeClient second(rig_.Rooms(), Ask(kPrompt, 1));
  ExchangeClient third(rig_.Rooms(), Ask(kPrompt, 1));
  ASSERT_TRUE(second.AwaitEnd() && third.AwaitEnd());
  EXPECT_NE(worker->submits().at(1).sampling().seed(), worker->submits().at(2).sampling().seed());
}

TEST_F(ExchangeTest, AStopStringEndsTheAnswerAndTheWorkersWork) {
  const std::vector<int32_t> words =
      *rig_.text().EncodePrompt("first line\nsecond line\nthird line and much more text");
  FakeWorker* worker = rig_.AddWorker(rig_.Scripted(kPrompt.size(), words));
  rig_.Start(1);
  ExchangeRequest request = Ask(kPrompt, 4000);
  request.stop = {"d line\nth", "absent"};
  ExchangeClient client(rig_.Rooms(), std::move(request));
  ASSERT_TRUE(client.AwaitEnd());
  EXPECT_EQ(client.end, AnswerEnd::kStop);
  EXPECT_EQ(client.content, "first line\nsecon");
  ASSERT_TRUE(worker->AwaitLive(0));
  EXPECT_EQ(worker->seen().cancels, 1);
  EXPECT_EQ(client.usage.completion_tokens, static_cast<int32_t>(client.token_ids.size()));
}

TEST_F(ExchangeTest, AClientThatLeavesFreesTheWorker) {
  FakeWorkerOptions options = rig_.WorkerOptions();
  options.automatic = false;
  FakeWorker* worker = rig_.AddWorker(options);
  rig_.Start(1);
  ExchangeClient client(rig_.Rooms(1), Ask(kPrompt, 4000));
  ASSERT_TRUE(worker->AwaitLive(1));
  worker->Step();
  ASSERT_TRUE(client.AwaitTokens(1));
  client.Leave();
  ASSERT_TRUE(worker->AwaitLive(0));
  EXPECT_EQ(worker->seen().cancels, 1);
  EXPECT_EQ(client.ends, 0);
  EXPECT_EQ(
      MetricOf(rig_.metrics(),
               "glmserve_router_requests_total{endpoint=\"completions\",outcome=\"cancelled\"}"),
      "1");
  EXPECT_EQ(MetricOf(rig_.metrics(), "glmserve_router_requests_running"), "0");
}

TEST_F(ExchangeTest, MayBeDestroyedInsideItsOwnDelta) {
  FakeWorkerOptions options = rig_.WorkerOptions();
  options.automatic = false;
  FakeWorker* worker = rig_.AddWorker(options);
  rig_.Start(1);
  ExchangeClient client(rig_.Rooms(), Ask(kPrompt, 4000));
  client.LeaveAtNextDelta();
  ASSERT_TRUE(worker->AwaitLive(1));
  worker->Step();
  ASSERT_TRUE(worker->AwaitLive(0));
  EXPECT_EQ(worker->seen().cancels, 1);
}

TEST_F(ExchangeTest, GoesOnAtAnotherWorkerWhenOneIsLostMidAnswer) {
  FakeWorkerOptions options = rig_.WorkerOptions();
  options.automatic = false;
  options.cached_tokens = 7;
  FakeWorker* other = rig_.AddWorker(options);
  FakeWorker* lost = rig_.AddWorker(options);
  rig_.Start(2);
  wire::Load load;
  load.set_requests_running(50);
  other->SayLoad(load);
  while (rig_.fleet()->Snapshot()->workers[0].session->Load().requests < 50) {
    std::this_thread::yield();
  }
  ExchangeRequest request = Ask(kPrompt, 10);
  request.min_tokens = 9;
  request.seed = 77;
  ExchangeClient client(rig_.Rooms(), std::move(request));
  ASSERT_TRUE(lost->AwaitLive(1));
  for (size_t i = 1; i <= 4; ++i) {
    lost->Step();
    ASSERT_TRUE(client.AwaitTokens(i));
  }
  lost->BreakSessions(absl::InternalError("device lost"));
  ASSERT_TRUE(other->AwaitLive(1));
  other->SetAutomatic(true);
  ASSERT_TRUE(client.AwaitEnd());
  ASSERT_FALSE(client.error.has_value()) << *client.error;

  EXPECT_EQ(client.token_ids, FakeAnswer(options, kPrompt, 10));
  EXPECT_EQ(client.content, rig_.text().Decode(client.token_ids));
  EXPECT_EQ(client.usage.prompt_tokens, 5);
  EXPECT_EQ(client.usage.completion_tokens, 10);
  EXPECT_EQ(client.usage.cached_tokens, 5);  // never more than the prompt
  EXPECT_EQ(client.ends, 1);
  const wire::Submit replay = other->submits().at(0);
  std::vector<int32_t> so_far = kPrompt;
  so_far.insert(so_far.end(), client.token_ids.begin(), client.token_ids.begin() + 4);
  EXPECT_THAT(replay.prompt_ids(), ::testing::ElementsAreArray(so_far));
  EXPECT_EQ(replay.generated_before(), 4u);
  EXPECT_EQ(replay.stop().max_tokens(), 6u);
  EXPECT_EQ(replay.stop().min_tokens(), 9u);  // counts those generated before
  EXPECT_EQ(replay.sampling().seed(), 77u);
  EXPECT_EQ(MetricOf(rig_.metrics(), "glmserve_router_retries_total{reason=\"lost\"}"), "1");
  EXPECT_EQ(MetricOf(rig_.metrics(), "glmserve_router_prompt_tokens_total"), "5");
}

TEST_F(ExchangeTest, ManyAnswersSurviveTheLossOfAWorker) {
  FakeWorkerOptions options = rig_.WorkerOptions();
  FakeWorker* first = rig_.AddWorker(options);
  rig_.AddWorker(options);
  rig_.Start(2);
  std::vector<std::unique_ptr<ExchangeClient>> clients;
  for (int32_t i = 0; i < 40; ++i) {
    clients.push_back(
        std::make_unique<ExchangeClient>(rig_.Rooms(i % 2), Ask({300, 301, 302 + i}, 200)));
  }
  ASSERT_TRUE(first->Await([](const FakeWorker::Seen& seen) { return seen.tokens > 50; }));
  first->BreakSessions(absl::UnavailableError("killed"));
  for (int32_t i = 0; i < 40; ++i) {
    ASSERT_TRUE(clients[i]->AwaitEnd());
    ASSERT_FALSE(clients[i]->error.has_value()) << *clients[i]->error;
    EXPECT_EQ(clients[i]->token_ids, FakeAnswer(options, {300, 301, 302 + i}, 200));
  }
}

TEST_F(ExchangeTest, AWorkerThatDropsARequestIsALostOne) {
  FakeWorkerOptions options = rig_.WorkerOptions();
  options.automatic = false;
  FakeWorker* worker = rig_.AddWorker(options);
  rig_.Start(1);
  ExchangeClient client(rig_.Rooms(), Ask(kPrompt, 6));
  ASSERT_TRUE(worker->AwaitLive(1));
  worker->Step();
  ASSERT_TRUE(client.AwaitTokens(1));
  worker->DropRequests();
  ASSERT_TRUE(worker->AwaitSubmits(2));
  worker->SetAutomatic(true);
  ASSERT_TRUE(client.AwaitEnd());
  EXPECT_EQ(client.token_ids, FakeAnswer(options, kPrompt, 6));
}

TEST_F(ExchangeTest, GivesUpAfterSoManyAttempts) {
  rig_.exchange_options.attempts_max = 2;
  FakeWorkerOptions options = rig_.WorkerOptions();
  options.automatic = false;
  FakeWorker* worker = rig_.AddWorker(options);
  rig_.Start(1);
  ExchangeClient client(rig_.Rooms(), Ask(kPrompt, 100));
  for (int32_t attempt = 1; attempt <= 2; ++attempt) {
    ASSERT_TRUE(worker->AwaitSubmits(attempt));
    worker->BreakSessions(absl::InternalError("again"));
  }
  ASSERT_TRUE(client.AwaitEnd());
  ASSERT_TRUE(client.error.has_value());
  EXPECT_EQ(client.error->code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(client.error->message()), HasSubstr("attempt 2 of at most 2"));
  EXPECT_EQ(client.ends, 1);
}

TEST_F(ExchangeTest, WaitsForAWorkerToBeReady) {
  auto worker = FakeWorker::Start();
  const int32_t port = worker->port();
  rig_.fleet_options.workers = {worker->address()};
  worker = nullptr;
  rig_.exchange_options.worker_wait_ms = 60'000;
  rig_.Start(0);
  ExchangeClient client(rig_.Rooms(1), Ask(kPrompt, 3));
  EXPECT_EQ(MetricOf(rig_.metrics(), "glmserve_router_requests_waiting"), "1");
  FakeWorkerOptions options = rig_.WorkerOptions();
  options.port = port;
  worker = FakeWorker::Start(options);
  ASSERT_TRUE(client.AwaitEnd());
  EXPECT_EQ(client.token_ids, FakeAnswer(options, kPrompt, 3));
  EXPECT_EQ(MetricOf(rig_.metrics(), "glmserve_router_requests_waiting"), "0");
}

TEST_F(ExchangeTest, WaitsNoLongerThanItMay) {
  auto worker = FakeWorker::Start();
  rig_.fleet_options.workers = {worker->address()};
  worker = nullptr;
  rig_.exchange_options.worker_wait_ms = 20;
  rig_.Start(0);
  ExchangeClient client(rig_.Rooms(), Ask(kPrompt, 3));
  ASSERT_TRUE(client.AwaitEnd());
  EXPECT_EQ(client.error->code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(client.error->message()),
              HasSubstr("no worker was ready within 20 ms (--worker-wait-ms)"));
  EXPECT_EQ(MetricOf(rig_.metrics(), "glmserve_router_requests_waiting"), "0");
}

TEST_F(ExchangeTest, ALeaverWaitsNoMore) {
  auto worker = FakeWorker::Start();
  rig_.fleet_options.workers = {worker->address()};
  worker = nullptr;
  rig_.Start(0);
  ExchangeClient client(rig_.Rooms(), Ask(kPrompt, 3));
  client.Leave();
  EXPECT_EQ(MetricOf(rig_.metrics(), "glmserve_router_requests_waiting"), "0");
  EXPECT_EQ(client.ends, 0);
}

TEST_F(ExchangeTest, AFullWorkerSendsItToAnother) {
  FakeWorkerOptions options = rig_.WorkerOptions();
  FakeWorker* full = rig_.AddWorker(options);
  rig_.AddWorker(options);
  rig_.Start(2);
  full->Refuse(absl::ResourceExhaustedError("queue is full"));
  for (int32_t i = 0; i < 10; ++i) {
    ExchangeClient client(rig_.Rooms(), Ask(kPrompt, 2));
    ASSERT_TRUE(client.AwaitEnd());
    ASSERT_FALSE(client.error.has_value()) << *client.error;
    EXPECT_EQ(client.token_ids, FakeAnswer(options, kPrompt, 2));
  }
  EXPECT_GT(full->seen().submits, 0);
}

TEST_F(ExchangeTest, WhenAllAreFullTheLastRefusalIsTold) {
  FakeWorker* first = rig_.AddWorker(rig_.WorkerOptions());
  FakeWorker* second = rig_.AddWorker(rig_.WorkerOptions());
  rig_.Start(2);
  first->Refuse(absl::ResourceExhaustedError("queue is full"));
  second->Refuse(absl::ResourceExhaustedError("queue is full"));
  ExchangeClient client(rig_.Rooms(), Ask(kPrompt, 2));
  ASSERT_TRUE(client.AwaitEnd());
  EXPECT_EQ(client.error->code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(first->seen().submits + second->seen().submits, 2);
}

TEST_F(ExchangeTest, ARefusalForWhatItSaysIsFinal) {
  FakeWorker* first = rig_.AddWorker(rig_.WorkerOptions());
  FakeWorker* second = rig_.AddWorker(rig_.WorkerOptions());
  rig_.Start(2);
  first->Refuse(absl::InvalidArgumentError("top_k=9 must be 8"));
  second->Refuse(absl::InvalidArgumentError("top_k=9 must be 8"));
  ExchangeClient client(rig_.Rooms(), Ask(kPrompt, 2));
  ASSERT_TRUE(client.AwaitEnd());
  EXPECT_EQ(*client.error, absl::InvalidArgumentError("top_k=9 must be 8"));
  EXPECT_EQ(first->seen().submits + second->seen().submits, 1);
}

TEST_F(ExchangeTest, SpreadsABurstEvenly) {
  FakeWorkerOptions options = rig_.WorkerOptions();
  options.automatic = false;
  FakeWorker* first = rig_.AddWorker(options);
  FakeWorker* second = rig_.AddWorker(options);
  rig_.Start(2);
  std::vector<std::unique_ptr<ExchangeClient>> clients;
  for (int32_t i = 0; i < 8; ++i) {
    clients.push_back(std::make_unique<ExchangeClient>(rig_.Rooms(i % 2), Ask(kPrompt, 2)));
  }
  EXPECT_TRUE(first->AwaitLive(4));
  EXPECT_TRUE(second->AwaitLive(4));
}

TEST_F(ExchangeTest, ADrainingWorkerGetsNothingNew) {
  FakeWorker* draining = rig_.AddWorker(rig_.WorkerOptions());
  FakeWorker* other = rig_.AddWorker(rig_.WorkerOptions());
  rig_.Start(2);
  draining->SetDraining(true);
  ASSERT_TRUE(rig_.AwaitReady(1));
  for (int32_t i = 0; i < 6; ++i) {
    ExchangeClient client(rig_.Rooms(), Ask(kPrompt, 2));
    ASSERT_TRUE(client.AwaitEnd());
    EXPECT_FALSE(client.error.has_value());
  }
  EXPECT_EQ(draining->seen().submits, 0);
  EXPECT_EQ(other->seen().submits, 6);
}

TEST_F(ExchangeTest, ErrorsNameFieldValueAndLimit) {
  FakeWorkerOptions options = rig_.WorkerOptions();
  options.length_max = 20;
  rig_.AddWorker(options);
  rig_.Start(1);
  const auto error_of = [&](ExchangeRequest request) {
    ExchangeClient client(rig_.Rooms(), std::move(request));
    EXPECT_TRUE(client.AwaitEnd());
    EXPECT_EQ(client.ends, 1);
    return client.error.value_or(absl::OkStatus()).ToString();
  };
  EXPECT_THAT(error_of(Ask(std::vector<int32_t>(20, 300), std::nullopt)),
              HasSubstr("OUT_OF_RANGE: prompt has 20 tokens; the model's length is 20"));
  EXPECT_THAT(error_of(Ask(kPrompt, 16)),
              HasSubstr("OUT_OF_RANGE: max_tokens=16 must be at most 15"));
  EXPECT_THAT(error_of(Ask({}, 1)), HasSubstr("INVALID_ARGUMENT: prompt has 0 tokens"));
  EXPECT_THAT(error_of(Ask({999'999}, 1)),
              HasSubstr("INVALID_ARGUMENT: prompt token id=999999 must be below"));
  ExchangeRequest request = Ask(kPrompt, 1);
  request.stop_token_ids = {999'999};
  EXPECT_THAT(error_of(request), HasSubstr("stop_token_ids=999999 must be below"));
  request = Ask(kPrompt, 1);
  request.allowed_token_ids = {5, 999'999};
  EXPECT_THAT(error_of(request), HasSubstr("allowed_token_ids=999999 must be below"));
  request = Ask(kPrompt, 1);
  request.logit_bias = {{999'999, 1}};
  EXPECT_THAT(error_of(request), HasSubstr("logit_bias token id=999999 must be below"));
  request = Ask(kPrompt, 1);
  request.bad_words = {std::string(200, '\x01')};
  EXPECT_THAT(error_of(request), HasSubstr("bad_words[0] of 200 tokens must have from 1 to 32"));
  request = Ask(kPrompt, std::nullopt);
  request.min_tokens = 16;
  EXPECT_THAT(error_of(request), HasSubstr("min_tokens=16 must be at most 15"));
  request = Ask(kPrompt, 1);
  request.model = "other";
  EXPECT_THAT(error_of(request), HasSubstr("NOT_FOUND: model='other'"));
  EXPECT_EQ(error_of(Ask(std::vector<int32_t>(19, 300), std::nullopt)), "OK");
}

/// Everything that draws depend on.
ExchangeRequest AskWithAllOptions(int32_t max_tokens) {
  ExchangeRequest request = Ask(kPrompt, max_tokens);
  request.min_p = 0.125f;
  request.repetition_penalty = 1.5f;
  request.frequency_penalty = -0.5f;
  request.presence_penalty = 0.25f;
  request.choice = 3;
  request.seed = 77;
  request.logit_bias = {{11, -100}, {12, 2.5f}};
  request.bad_words = {"fox"};
  request.allowed_token_ids = {300, 301};
  request.logprobs = 2;
  request.prompt_logprobs = 1;
  request.priority = -9;
  request.cache_salt = "tenant";
  return request;
}

TEST_F(ExchangeTest, SendsEveryOptionAsAsked) {
  FakeWorker* worker = rig_.AddWorker(rig_.WorkerOptions());
  rig_.Start(1);
  ExchangeClient client(rig_.Rooms(), AskWithAllOptions(2));
  ASSERT_TRUE(client.AwaitEnd());
  ASSERT_FALSE(client.error.has_value()) << *client.error;
  const wire::Submit submit = worker->submits().at(0);
  EXPECT_EQ(submit.generated_before(), 0u);
  EXPECT_EQ(submit.priority(), -9);
  EXPECT_EQ(submit.cache_salt(), "tenant");
  const wire::Sampling& sampling = submit.sampling();
  EXPECT_EQ(sampling.min_p(), 0.125f);
  EXPECT_EQ(sampling.repetition_penalty(), 1.5f);
  EXPECT_EQ(sampling.frequency_penalty(), -0.5f);
  EXPECT_EQ(sampling.presence_penalty(), 0.25f);
  EXPECT_EQ(sampling.choice(), 3u);
  ASSERT_EQ(sampling.logit_bias_size(), 2);
  EXPECT_EQ(sampling.logit_bias(1).id(), 12u);
  EXPECT_EQ(sampling.logit_bias(1).add(), 2.5f);
  ASSERT_EQ(sampling.bad_words_size(), 2);
  EXPECT_THAT(sampling.bad_words(0).ids(),
              ::testing::ElementsAreArray(*rig_.text().EncodePrompt("fox")));
  EXPECT_THAT(sampling.bad_words(1).ids(),
              ::testing::ElementsAreArray(*rig_.text().EncodePrompt(" fox")));
  EXPECT_THAT(sampling.allowed_ids(), ElementsAre(300, 301));
  EXPECT_EQ(sampling.logprobs(), 2u);
  EXPECT_EQ(sampling.prompt_logprobs(), 1u);

  ExchangeClient plain(rig_.Rooms(), Ask(kPrompt, 1));
  ASSERT_TRUE(plain.AwaitEnd());
  const wire::Submit bare = worker->submits().at(1);
  EXPECT_FALSE(bare.sampling().has_logprobs());
  EXPECT_FALSE(bare.sampling().has_prompt_logprobs());
  EXPECT_EQ(bare.sampling().repetition_penalty(), 1.0f);
}

TEST_F(ExchangeTest, TellsLogprobsOfPromptAndAnswer) {
  FakeWorkerOptions options = rig_.WorkerOptions();
  options.tokens_per_step = 3;
  rig_.AddWorker(options);
  rig_.Start(1);
  ExchangeRequest request = Ask(kPrompt, 7);
  request.logprobs = 2;
  request.prompt_logprobs = 1;
  ExchangeClient client(rig_.Rooms(), std::move(request));
  ASSERT_TRUE(client.AwaitEnd());
  ASSERT_FALSE(client.error.has_value()) << *client.error;
  ASSERT_EQ(client.logprobs.size(), 7u);
  for (size_t i = 0; i < 7; ++i) {
    const TokenScore& score = client.logprobs[i];
    const wire::TokenLogprobs said = FakeLogprobs(client.token_ids[i], 2);
    EXPECT_EQ(score.id, client.token_ids[i]);
    EXPECT_EQ(score.logprob, said.logprob());
    EXPECT_EQ(score.rank, static_cast<int32_t>(said.rank()));
    EXPECT_EQ(score.bytes, rig_.text().tokenizer().TokenBytes(score.id));
    ASSERT_EQ(score.top.size(), 2u);
    EXPECT_EQ(score.top[1].id, static_cast<int32_t>(said.top_ids(1)));
    EXPECT_EQ(score.top[1].logprob, said.top_logprobs(1));
    EXPECT_EQ(score.top[1].bytes, rig_.text().tokenizer().TokenBytes(score.top[1].id));
  }
  ASSERT_EQ(client.prompt_logprobs.size(), kPrompt.size());
  EXPECT_EQ(client.prompt_logprobs[0].id, kPrompt[0]);
  EXPECT_EQ(client.prompt_logprobs[0].rank, 0);
  for (size_t i = 1; i < kPrompt.size(); ++i) {
    EXPECT_EQ(client.prompt_logprobs[i].id, kPrompt[i]);
    EXPECT_EQ(client.prompt_logprobs[i].logprob, FakeLogprobs(kPrompt[i], 1).logprob());
    EXPECT_EQ(client.prompt_logprobs[i].top.size(), 1u);
  }
}

TEST_F(ExchangeTest, LogprobsEndWhereTheTextDoes) {
  const std::vector<int32_t> words = *rig_.text().EncodePrompt("one two three four");
  FakeWorkerOptions options = rig_.Scripted(kPrompt.size(), words);
  options.tokens_per_step = 100;
  rig_.AddWorker(options);
  rig_.Start(1);
  ExchangeRequest request = Ask(kPrompt, 100);
  request.ignore_eos = false;
  request.logprobs = 0;
  ExchangeClient whole(rig_.Rooms(), request);
  ASSERT_TRUE(whole.AwaitEnd());
  EXPECT_EQ(whole.token_ids.size(), words.size() + 1);
  EXPECT_EQ(whole.logprobs.size(), words.size()) << "the end id is no text";
  request.stop = {" three"};
  ExchangeClient stopped(rig_.Rooms(), request);
  ASSERT_TRUE(stopped.AwaitEnd());
  EXPECT_EQ(stopped.content, "one two");
  EXPECT_LT(stopped.logprobs.size(), words.size());
  EXPECT_GE(stopped.logprobs.size(), rig_.text().EncodePrompt("one two")->size());
}

TEST_F(ExchangeTest, AReplayCarriesWhatDrawsDependOn) {
  FakeWorkerOptions options = rig_.WorkerOptions();
  options.automatic = false;
  FakeWorker* worker = rig_.AddWorker(options);
  rig_.Start(1);
  ExchangeClient client(rig_.Rooms(), AskWithAllOptions(8));
  ASSERT_TRUE(worker->AwaitLive(1));
  // Lost within the prompt: its logprobs come anew.
  worker->Step();
  worker->DropRequests();
  ASSERT_TRUE(worker->AwaitLive(1));
  worker->Step();
  for (size_t i = 1; i <= 3; ++i) {
    worker->Step();
    ASSERT_TRUE(client.AwaitTokens(i));
  }
  worker->DropRequests();
  ASSERT_TRUE(worker->AwaitSubmits(3));
  worker->SetAutomatic(true);
  ASSERT_TRUE(client.AwaitEnd());
  ASSERT_FALSE(client.error.has_value()) << *client.error;
  EXPECT_EQ(client.token_ids, FakeAnswer(options, kPrompt, 8));
  EXPECT_EQ(client.logprobs.size(), 8u);
  ASSERT_EQ(client.prompt_logprobs.size(), kPrompt.size());
  EXPECT_EQ(client.prompt_logprobs[4].id, kPrompt[4]);

  const wire::Submit first = worker->submits().at(0);
  EXPECT_EQ(worker->submits().at(1).sampling().SerializeAsString(),
            first.sampling().SerializeAsString());
  const wire::Submit replay = worker->submits().at(2);
  EXPECT_EQ(replay.generated_before(), 3u);
  EXPECT_EQ(replay.priority(), -9);
  EXPECT_EQ(replay.cache_salt(), "tenant");
  EXPECT_EQ(replay.stop().max_tokens(), 5u);
  wire::Sampling asked = first.sampling();
  asked.clear_prompt_logprobs();  // all of them are there
  EXPECT_EQ(replay.sampling().SerializeAsString(), asked.SerializeAsString());
}

TEST_F(ExchangeTest, AWorkerThatSendsNoLogprobsIsFound) {
  FakeWorkerOptions options = rig_.WorkerOptions();
  options.scores = false;
  FakeWorker* worker = rig_.AddWorker(options);
  rig_.Start(1);
  ExchangeRequest request = Ask(kPrompt, 100);
  request.logprobs = 1;
  ExchangeClient client(rig_.Rooms(), std::move(request));
  ASSERT_TRUE(client.AwaitEnd());
  ASSERT_TRUE(client.error.has_value());
  EXPECT_EQ(*client.error, absl::InternalError("worker sent 0 logprobs with 1 tokens"));
  EXPECT_TRUE(worker->AwaitLive(0)) << "its request is cancelled";
}

TEST_F(ExchangeTest, TheAnswersToOnePromptShareIt) {
  FakeWorkerOptions options = rig_.WorkerOptions();
  FakeWorker* worker = rig_.AddWorker(options);
  rig_.Start(1);
  ExchangeRequest request;
  request.prompt = std::string("the prompt");
  request.max_tokens = 2;
  request.seed = 5;
  request.prompt_logprobs = 0;
  std::vector<ExchangeRequest> requests = RequestsFor(std::move(request), 3);
  ASSERT_EQ(requests.size(), 3u);
  const std::shared_ptr<EncodedPrompt> shared = requests[0].encoded;
  std::vector<std::unique_ptr<ExchangeClient>> clients;
  for (ExchangeRequest& each : requests) {
    clients.push_back(std::make_unique<ExchangeClient>(rig_.Rooms(), std::move(each)));
  }
  for (const auto& client : clients) {
    ASSERT_TRUE(client->AwaitEnd());
    EXPECT_FALSE(client->error.has_value()) << *client->error;
  }
  EXPECT_EQ(shared->ids, *rig_.text().EncodePrompt("the prompt"));
  ASSERT_EQ(worker->submits().size(), 3u);
  for (uint32_t i = 0; i < 3; ++i) {
    const wire::Submit submit = worker->submits()[i];
    EXPECT_THAT(submit.prompt_ids(), ::testing::ElementsAreArray(shared->ids));
    EXPECT_EQ(submit.sampling().choice(), i);
    EXPECT_EQ(submit.sampling().seed(), 5u);
    EXPECT_EQ(submit.sampling().has_prompt_logprobs(), i == 0);
  }
}

TEST_F(ExchangeTest, TakesNoLongerThanItMay) {
  rig_.exchange_options.timeout_s = 1;
  FakeWorkerOptions options = rig_.WorkerOptions();
  options.automatic = false;
  FakeWorker* worker = rig_.AddWorker(options);
  rig_.Start(1);
  ExchangeClient client(rig_.Rooms(), Ask(kPrompt, 2));
  ASSERT_TRUE(client.AwaitEnd());
  EXPECT_EQ(client.error->code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(client.error->message()), HasSubstr("1 s (--request-timeout-s)"));
  EXPECT_TRUE(worker->AwaitLive(0));
}

TEST_F(ExchangeTest, EchoPutsThePromptFirst) {
  const std::vector<int32_t> prompt = *rig_.text().EncodePrompt("the prompt");
  rig_.AddWorker(rig_.Scripted(prompt.size(), *rig_.text().EncodePrompt(" and answer")));
  rig_.Start(1);
  for (const bool as_text : {true, false}) {
    ExchangeRequest request;
    request.echo = true;
    if (as_text) {
      request.prompt = std::string("the prompt");
    } else {
      request.prompt = prompt;
    }
    ExchangeClient client(rig_.Rooms(), std::move(request));
    ASSERT_TRUE(client.AwaitEnd());
    EXPECT_EQ(client.content, "the prompt and answer");
    EXPECT_EQ(client.end, AnswerEnd::kStop);
  }
}

TEST_F(ExchangeTest, AChatIsRenderedAndItsReasoningSplitOff) {
  Chat chat;
  chat.messages.push_back({.role = ChatMessage::Role::kUser,
                           .content = "hello",
                           .reasoning = std::nullopt,
                           .tool_calls = {}});
  const ChatPrompt prompt = *rig_.text().EncodeChat(chat);
  FakeWorker* worker = rig_.AddWorker(rig_.Scripted(
      prompt.ids.size(), *rig_.text().EncodePrompt("\n<think>let me see</think>\ngood day")));
  rig_.Start(1);
  ExchangeRequest request;
  request.prompt = chat;
  ExchangeClient client(rig_.Rooms(), std::move(request));
  ASSERT_TRUE(client.AwaitEnd());
  ASSERT_FALSE(client.error.has_value()) << *client.error;
  EXPECT_THAT(worker->submits().at(0).prompt_ids(), ::testing::ElementsAreArray(prompt.ids));
  EXPECT_THAT(client.reasoning, HasSubstr("let me see"));
  EXPECT_THAT(client.content, HasSubstr("good day"));
  EXPECT_EQ(client.content.find("think"), std::string::npos);
}

}  // namespace
}  // namespace glm::router
