// A worker is killed: new requests go to the other at once, the launcher restarts it, and it takes
// load again.
#include <gtest/gtest.h>
#include <signal.h>

#include <string>
#include <vector>

#include "tests/support/cluster.h"

namespace glm::tests {
namespace {

const std::string kModel = std::string(GLM_SOURCE_DIR) + "/deploy/demo-model";

std::string Body(int max_tokens, bool stream = false) {
  return nlohmann::json{{"model", "demo-model"},    {"prompt", "Once upon a time"},
                        {"max_tokens", max_tokens}, {"temperature", 0},
                        {"ignore_eos", true},       {"stream", stream}}
      .dump();
}

TEST(Failover, AKilledWorkerIsReplacedAndNoNewRequestFails) {
  Cluster cluster(kModel, 2);
  const HttpAnswer before = Call(cluster.http_port(), "/v1/completions", Body(8));
  ASSERT_EQ(before.status, 200) << before.body;
  const std::string text = before.Json()["choices"][0]["text"];

  const pid_t victim = cluster.WorkerPid(0);
  ASSERT_GT(victim, 0);
  ASSERT_EQ(kill(victim, SIGKILL), 0);
  // From the very moment of the death on, every new request is answered, and alike.
  for (int i = 0; i < 20; ++i) {
    const HttpAnswer answer = Call(cluster.http_port(), "/v1/completions", Body(8));
    ASSERT_EQ(answer.status, 200) << "request " << i << ": " << answer.body;
    EXPECT_EQ(answer.Json()["choices"][0]["text"], text);
  }

  EXPECT_TRUE(Eventually(60, [&] { return cluster.WorkerStarts(0) == 2; }));
  EXPECT_NE(cluster.WorkerPid(0), victim);
  // The new process starts from zero, so any request it counts came after its restart.
  EXPECT_TRUE(Eventually(60, [&] {
    std::vector<std::unique_ptr<EventStream>> streams;
    for (int i = 0; i < 4; ++i) {
      streams.push_back(std::make_unique<EventStream>(cluster.http_port(), "/v1/completions",
                                                      Body(16, /*stream=*/true)));
    }
    for (const auto& stream : streams) {
      while (!stream->Next().empty()) {
      }
    }
    return cluster.WorkerMetric(0, "glmserve_worker_requests_total") > 0;
  })) << "the restarted worker takes load again";
  EXPECT_EQ(cluster.Stop(), 0);
}

/// Two answers that hang on all that was drawn before: text, logprobs and tokens of each.
struct TwoAnswers {
  std::string text[2];
  std::vector<std::string> tokens[2];
  std::vector<double> logprobs[2];
};

void TakeEvent(const std::string& event, TwoAnswers* answers) {
  const nlohmann::json chunk = nlohmann::json::parse(event, nullptr, /*allow_exceptions=*/false);
  ASSERT_TRUE(chunk.contains("choices")) << event;
  for (const nlohmann::json& choice : chunk["choices"]) {
    const size_t index = choice["index"].get<size_t>();
    ASSERT_LT(index, 2u);
    answers->text[index] += choice["text"].get<std::string>();
    if (choice["logprobs"].is_null()) continue;
    for (const nlohmann::json& token : choice["logprobs"]["tokens"]) {
      answers->tokens[index].push_back(token.get<std::string>());
    }
    for (const nlohmann::json& logprob : choice["logprobs"]["token_logprobs"]) {
      answers->logprobs[index].push_back(logprob.get<double>());
    }
  }
}

TEST(Failover, AnAnswerGoesOnAsIfItsWorkerHadNotDied) {
  constexpr size_t kTokens = 600;
  Cluster cluster(kModel, 2);
  const std::string body = nlohmann::json{
      {"prompt", "a b a b a b a b"},
      {"max_tokens", kTokens},
      {"temperature", 1},
      {"seed", 21},
      {"n", 2},
      {"frequency_penalty", 0.25},
      {"presence_penalty", 0.5},
      {"repetition_penalty", 1.1},
      {"min_p", 0.01},
      {"logprobs", 1},
      {"min_tokens", 500},
      {"ignore_eos", true},
      {"stream", true}}.dump();
  TwoAnswers undisturbed;
  EventStream whole(cluster.http_port(), "/v1/completions", body);
  for (std::string event = whole.Next(); event != "[DONE]"; event = whole.Next()) {
    ASSERT_NO_FATAL_FAILURE(TakeEvent(event, &undisturbed));
  }
  ASSERT_EQ(undisturbed.tokens[0].size(), kTokens);
  EXPECT_NE(undisturbed.tokens[0], undisturbed.tokens[1]);

  TwoAnswers answers;
  EventStream events(cluster.http_port(), "/v1/completions", body);
  bool is_killed = false;
  for (std::string event = events.Next(); event != "[DONE]"; event = events.Next()) {
    ASSERT_NO_FATAL_FAILURE(TakeEvent(event, &answers));
    if (is_killed || answers.tokens[0].size() < 50 || answers.tokens[1].size() < 50) continue;
    is_killed = true;
    ASSERT_EQ(kill(cluster.WorkerPid(cluster.BusyWorker()), SIGKILL), 0);
  }
  EXPECT_GE(cluster.RouterMetric("glmserve_router_retries_total"), 1);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(answers.tokens[i], undisturbed.tokens[i]);
    EXPECT_EQ(answers.text[i], undisturbed.text[i]);
    ASSERT_EQ(answers.logprobs[i].size(), undisturbed.logprobs[i].size());
    for (size_t t = 0; t < answers.logprobs[i].size(); ++t) {
      ASSERT_NEAR(answers.logprobs[i][t], undisturbed.logprobs[i][t], 1e-3) << i << ", " << t;
    }
  }
  EXPECT_EQ(cluster.Stop(), 0);
}

TEST(Failover, AKilledRankEndsItsWorkerAndItsAnswersGoOn) {
  Cluster cluster(kModel, 2, /*worker_metrics=*/true, {"--tensor-parallel-size=2"});
  const auto text_of = [&](const std::string& event) -> std::string {
    return nlohmann::json::parse(event)["choices"][0]["text"];
  };
  std::string undisturbed;
  EventStream whole(cluster.http_port(), "/v1/completions", Body(300, /*stream=*/true));
  for (std::string event = whole.Next(); event != "[DONE]"; event = whole.Next()) {
    undisturbed += text_of(event);
  }

  std::string text;
  EventStream events(cluster.http_port(), "/v1/completions", Body(300, /*stream=*/true));
  bool is_killed = false;
  for (std::string event = events.Next(); event != "[DONE]"; event = events.Next()) {
    text += text_of(event);
    if (is_killed || text.size() < undisturbed.size() / 8) continue;
    is_killed = true;
    const int busy = cluster.BusyWorker();
    const pid_t victim = cluster.WorkerPid(busy);
    const pid_t rank = cluster.WorkerThread(busy, "rank 1");
    ASSERT_GT(rank, 0);
    ASSERT_EQ(tgkill(victim, rank, SIGSEGV), 0);
    EXPECT_TRUE(Eventually(5, [&] {
      return cluster.WorkerPid(busy) != victim || kill(victim, 0) != 0;
    })) << "the worker goes with its rank";
  }
  EXPECT_TRUE(is_killed);
  EXPECT_EQ(text, undisturbed);
  EXPECT_GE(cluster.RouterMetric("glmserve_router_retries_total"), 1);
  EXPECT_EQ(cluster.Stop(), 0);
}

TEST(Failover, WorkersMayServeNoMetrics) {
  Cluster cluster(kModel, 1, /*worker_metrics=*/false);
  EXPECT_EQ(Call(cluster.http_port(), "/v1/completions", Body(2)).status, 200);
  EXPECT_EQ(cluster.WorkerMetric(0, "glmserve_worker_steps_total"), -1);
  EXPECT_EQ(cluster.Stop(), 0);
}

TEST(Failover, TheLauncherSaysWhyAClusterDoesNotStart) {
  const std::string command = std::string(GLM_BINARY_DIR) + "/glmserve serve " + kModel +
                              " --host=127.0.0.1 --port=19999 --grpc-port=19998 --metrics-port=0"
                              " --block-size=7 >/dev/null 2>&1";
  EXPECT_NE(system(command.c_str()), 0);
}

}  // namespace
}  // namespace glm::tests
