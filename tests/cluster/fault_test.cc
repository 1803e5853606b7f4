// Workers that die, hang, restart and lose their clients under load, as real processes: no client
// may notice. The letters are those of the fault list that operators of such clusters wrote for us
// (F1 a killed worker, F2 with all kinds of state, F3 again and again, F4 one that stands still, F9
// a rolling restart, F12 clients that leave).
#include <gtest/gtest.h>
#include <signal.h>

#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/cluster.h"
#include "tests/support/crowd.h"
#include "tests/support/server_process.h"

namespace glm::tests {
namespace {

std::string Completion(int number, int max_tokens) {
  return nlohmann::json{{"prompt", "Story number " + std::to_string(number) + ": once upon a time"},
                        {"max_tokens", max_tokens},
                        {"temperature", 0},
                        {"ignore_eos", true},
                        {"stream", true}}
      .dump();
}

std::vector<std::string> Completions(int count, int max_tokens) {
  std::vector<std::string> bodies;
  for (int i = 0; i < count; ++i) bodies.push_back(Completion(i, max_tokens));
  return bodies;
}

/// A few workers and a router, each a process that a test may do anything to.
class FaultTest : public ::testing::Test {
 protected:
  void StartCluster(int workers, std::vector<std::string> router_flags = {}) {
    std::string addresses;
    for (int i = 0; i < workers; ++i) {
      workers_.push_back(std::make_unique<WorkerProcess>(WorkerFlags()));
      addresses += (i == 0 ? "" : ",") + workers_.back()->address();
    }
    router_flags.push_back("--workers=" + addresses);
    router_ = std::make_unique<RouterProcess>(router_flags);
    ASSERT_TRUE(AwaitWorkers(workers));
  }
  static std::vector<std::string> WorkerFlags() { return {"--max-num-seqs=128"}; }

  bool AwaitWorkers(int ready, double seconds = 30) {
    return Eventually(seconds, [&] {
      return router_->Metric("glmserve_router_workers{state=\"ready\"}") == ready;
    });
  }
  /// Starts a worker again where it was.
  void Restart(size_t index) {
    const int port = workers_[index]->port();
    workers_[index] = nullptr;
    workers_[index] = std::make_unique<WorkerProcess>(WorkerFlags(), port);
  }
  std::vector<CrowdAnswer> Ask(const std::vector<std::string>& bodies,
                               const std::string& target = "/v1/completions") {
    return Crowd(router_->http_port(), target, bodies).Await();
  }
  /// After all has ended nothing is left anywhere.
  void ExpectQuiet() {
    EXPECT_TRUE(Eventually(10, [&] {
      return router_->Metric("glmserve_router_requests_running") == 0 &&
             router_->Metric("glmserve_router_requests_waiting") == 0;
    }));
  }

  std::vector<std::unique_ptr<WorkerProcess>> workers_;
  std::unique_ptr<RouterProcess> router_;
};

TEST_F(FaultTest, F1AKilledWorkerIsNotNoticedByTwoHundredStreams) {
  StartCluster(3);
  const std::vector<std::string> bodies = Completions(200, 40);
  const std::vector<CrowdAnswer> right = Ask(bodies);
  ExpectSameAnswers(right, right);
  Crowd crowd(router_->http_port(), "/v1/completions", bodies);
  ASSERT_TRUE(crowd.AwaitEvents(200 * 40 / 4));
  workers_[0]->Signal(SIGKILL);
  const std::vector<CrowdAnswer> answers = crowd.Await();
  ExpectSameAnswers(right, answers);
  std::cout << "retries " << router_->Metric("glmserve_router_retries_total") << ", longest gap "
            << GapMax(answers) << " s, undisturbed " << GapMax(right) << " s\n";
  EXPECT_GT(router_->Metric("glmserve_router_retries_total"), 0);
  ExpectQuiet();
}

/// Requests whose next token hangs on all that was drawn before.
std::vector<std::string> RequestsOfAllKinds() {
  std::vector<std::string> bodies;
  for (int i = 0; i < 12; ++i) {
    nlohmann::json body = {{"prompt", "a b a b a b " + std::to_string(i)},
                           {"max_tokens", 200},
                           {"temperature", 0.5 + 0.1 * i},
                           {"seed", 100 + i},
                           {"n", 1 + i % 4},
                           {"ignore_eos", true},
                           {"stream", true}};
    if (i % 2 == 0) body["logprobs"] = 2;
    if (i % 3 == 0) body["frequency_penalty"] = 0.3;
    if (i % 3 == 1) body["presence_penalty"] = 0.5;
    if (i % 3 == 2) body["repetition_penalty"] = 1.2;
    if (i % 4 == 1) body["logit_bias"] = {{"300", 2.5}};
    if (i % 4 == 2) body["stop"] = {"zzzz", "qqqq"};
    if (i % 4 == 3) body["top_p"] = 0.9;
    bodies.push_back(body.dump());
  }
  return bodies;
}

TEST_F(FaultTest, F2AnswersOfAllKindsGoOnAsIfTheirWorkerLived) {
  StartCluster(2, {"--policy=round-robin"});  // so that each has some to lose
  const std::vector<std::string> bodies = RequestsOfAllKinds();
  const std::vector<CrowdAnswer> right = Ask(bodies);
  ExpectSameAnswers(right, right);
  Crowd crowd(router_->http_port(), "/v1/completions", bodies);
  // Early: on a busy machine what was heard is long behind what was said.
  ASSERT_TRUE(crowd.AwaitEvents(400));
  workers_[0]->Signal(SIGKILL);
  ExpectSameAnswers(right, crowd.Await());
  EXPECT_GT(router_->Metric("glmserve_router_retries_total"), 0);
  ExpectQuiet();
}

TEST_F(FaultTest, F2ReasoningGoesOnInTheMiddle) {
  StartCluster(2, {"--policy=round-robin"});  // so that each has some to lose
  std::vector<std::string> bodies;
  for (int i = 0; i < 16; ++i) {
    bodies.push_back(nlohmann::json{
        {"messages", {{{"role", "user"}, {"content", "What is " + std::to_string(i) + "?"}}}},
        {"max_tokens", 300},
        {"temperature", 1},
        {"seed", i},
        {"logprobs", true},
        {"ignore_eos", true},
        {"stream", true}}.dump());
  }
  const std::vector<CrowdAnswer> right = Ask(bodies, "/v1/chat/completions");
  ExpectSameAnswers(right, right);
  Crowd crowd(router_->http_port(), "/v1/chat/completions", bodies);
  ASSERT_TRUE(crowd.AwaitEvents(200));
  workers_[0]->Signal(SIGKILL);
  ExpectSameAnswers(right, crowd.Await());
  EXPECT_GT(router_->Metric("glmserve_router_retries_total"), 0);
}

TEST_F(FaultTest, F3AnAnswerSurvivesTwoWorkers) {
  StartCluster(3);
  const std::vector<std::string> bodies = Completions(60, 120);
  const std::vector<CrowdAnswer> right = Ask(bodies);
  Crowd crowd(router_->http_port(), "/v1/completions", bodies);
  ASSERT_TRUE(crowd.AwaitEvents(60 * 20));
  workers_[0]->Signal(SIGKILL);
  ASSERT_TRUE(crowd.AwaitEvents(60 * 60));
  workers_[1]->Signal(SIGKILL);
  ExpectSameAnswers(right, crowd.Await());
  ExpectQuiet();
}

TEST_F(FaultTest, F3ABudgetThatIsUsedUpEndsInACleanError) {
  StartCluster(2, {"--attempts-max=1", "--policy=round-robin"});
  const std::vector<std::string> bodies = Completions(8, 200);
  const std::vector<CrowdAnswer> right = Ask(bodies);
  Crowd crowd(router_->http_port(), "/v1/completions", bodies);
  ASSERT_TRUE(crowd.AwaitEvents(8 * 20));
  workers_[0]->Signal(SIGKILL);
  const std::vector<CrowdAnswer> answers = crowd.Await();
  int failed = 0;
  for (size_t i = 0; i < answers.size(); ++i) {
    if (answers[i].error.empty()) continue;
    ++failed;
    EXPECT_NE(answers[i].error.find("attempt 1 of at most 1"), std::string::npos)
        << answers[i].error;
    // What came before is right, and nothing of it is missing.
    ASSERT_EQ(answers[i].choices.size(), 1u);
    const std::string& text = answers[i].choices[0].text;
    EXPECT_EQ(right[i].choices[0].text.substr(0, text.size()), text);
  }
  EXPECT_GT(failed, 0);
  EXPECT_LT(failed, 8);
  ExpectQuiet();
}

TEST_F(FaultTest, F4AWorkerThatStandsStillIsLeftWithinThreeSeconds) {
  StartCluster(2);
  const std::vector<std::string> bodies = Completions(40, 150);
  const std::vector<CrowdAnswer> right = Ask(bodies);
  Crowd crowd(router_->http_port(), "/v1/completions", bodies);
  ASSERT_TRUE(crowd.AwaitEvents(40 * 30));
  workers_[0]->Signal(SIGSTOP);
  const std::vector<CrowdAnswer> answers = crowd.Await();
  ExpectSameAnswers(right, answers);
  EXPECT_EQ(router_->Metric("glmserve_router_worker_hangs_total"), 1);
  std::cout << "longest gap " << GapMax(answers) << " s, undisturbed " << GapMax(right) << " s\n";
  EXPECT_LT(GapMax(answers), 3 + 2 * GapMax(right) + 1);
  // Its late tokens reach nobody, and it is taken back.
  workers_[0]->Signal(SIGCONT);
  EXPECT_TRUE(AwaitWorkers(2));
  ExpectSameAnswers(right, Ask(bodies));
  ExpectQuiet();
}

TEST_F(FaultTest, ALongPrefillIsNoHang) {
  // Steps of about a second each, one after the other.
  workers_.push_back(std::make_unique<WorkerProcess>(
      std::vector<std::string>{"--max-num-batched-tokens=4096", "--kv-blocks=1024"}));
  router_ = std::make_unique<RouterProcess>(
      std::vector<std::string>{"--workers=" + workers_[0]->address(), "--hang-timeout-ms=1000"});
  ASSERT_TRUE(AwaitWorkers(1));
  std::string prompt;
  for (int i = 0; i < 1900; ++i) prompt += " " + std::to_string(i % 10);
  const std::string body = nlohmann::json{
      {"prompt", prompt},
      {"max_tokens", 4},
      {"ignore_eos", true},
      {"stream", true}}.dump();
  const std::vector<CrowdAnswer> answers = Ask({body});
  EXPECT_TRUE(answers[0].is_whole) << answers[0].error;
  EXPECT_EQ(router_->Metric("glmserve_router_worker_hangs_total"), 0);
}

TEST_F(FaultTest, F9ARollingRestartUnderLoadFailsNobody) {
  StartCluster(3);
  const std::vector<std::string> bodies = Completions(60, 60);
  const std::vector<CrowdAnswer> right = Ask(bodies);
  for (size_t i = 0; i < workers_.size(); ++i) {
    Crowd crowd(router_->http_port(), "/v1/completions", bodies);
    ASSERT_TRUE(crowd.AwaitEvents(60 * 10));
    workers_[i]->Signal(SIGTERM);
    EXPECT_EQ(workers_[i]->AwaitExit(), 0);
    Restart(i);
    ExpectSameAnswers(right, crowd.Await());
    ASSERT_TRUE(AwaitWorkers(3));
  }
  ExpectQuiet();
}

TEST_F(FaultTest, F12WhoLeavesFreesWhatItHeld) {
  // One request runs at a time, a prompt in many steps.
  workers_.push_back(std::make_unique<WorkerProcess>(std::vector<std::string>{
      "--max-num-seqs=1", "--max-num-batched-tokens=64", "--no-enable-prefix-caching"}));
  router_ = std::make_unique<RouterProcess>(
      std::vector<std::string>{"--workers=" + workers_[0]->address()});
  ASSERT_TRUE(AwaitWorkers(1));
  const auto running = [&] { return router_->Metric("glmserve_router_requests_running"); };
  std::string long_prompt;
  for (int i = 0; i < 1900; ++i) long_prompt += " " + std::to_string(i % 7);
  const std::string prefill = nlohmann::json{
      {"prompt", long_prompt},
      {"max_tokens", 4},
      {"ignore_eos", true},
      {"stream", true}}.dump();
  const auto expect_free = [&](const char* phase) {
    const double left = MonotonicSeconds();
    EXPECT_TRUE(Eventually(10, [&] { return running() == 0; })) << phase;
    // The next one begins at once: nothing is computed for nobody.
    const std::vector<CrowdAnswer> next = Ask(Completions(1, 2));
    EXPECT_TRUE(next[0].is_whole) << phase;
    std::cout << phase << ": answered " << MonotonicSeconds() - left << " s after it left\n";
    EXPECT_LT(MonotonicSeconds() - left, 2) << phase;
  };
  {
    HastyClient client(router_->http_port(), "/v1/completions", prefill);
    ASSERT_TRUE(Eventually(10, [&] { return running() == 1; }));
  }
  expect_free("in its prompt");
  {
    EventStream client(router_->http_port(), "/v1/completions", Completion(1, 1000));
    ASSERT_FALSE(client.Next().empty());
  }
  expect_free("in its answer");
  {
    EventStream first(router_->http_port(), "/v1/completions", Completion(1, 1000));
    ASSERT_FALSE(first.Next().empty());
    {
      HastyClient second(router_->http_port(), "/v1/completions", Completion(2, 1000));
      ASSERT_TRUE(Eventually(10, [&] {
        return running() + router_->Metric("glmserve_router_requests_waiting") == 2;
      }));
    }
    EXPECT_TRUE(Eventually(5, [&] { return running() == 1; }));
    EXPECT_FALSE(first.Next().empty());
  }
  expect_free("behind another");
  ExpectQuiet();
}

}  // namespace
}  // namespace glm::tests
