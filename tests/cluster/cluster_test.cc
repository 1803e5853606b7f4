// HTTP to HTTP: the launcher, a router and two CPU workers on the bundled model, real processes.
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>

#include <fstream>
#include <future>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "tests/support/cluster.h"

namespace glm::tests {
namespace {

const std::string kModel = std::string(GLM_SOURCE_DIR) + "/deploy/demo-model";

std::string ChatBody(const std::string& question, bool stream, int max_tokens = 32) {
  return nlohmann::json{{"model", "demo-model"},
                        {"temperature", 0},
                        {"max_tokens", max_tokens},
                        {"stream", stream},
                        {"stream_options", stream ? nlohmann::json{{"include_usage", true}}
                                                  : nlohmann::json(nullptr)},
                        {"chat_template_kwargs", {{"enable_thinking", false}}},
                        {"messages", {{{"role", "user"}, {"content", question}}}}}
      .dump();
}

/// One cluster for all tests of the file: its start is most of the time.
class ClusterTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { cluster_ = new Cluster(kModel, 2); }
  static void TearDownTestSuite() {
    EXPECT_EQ(cluster_->Stop(), 0) << "the launcher drains and exits with 0";
    delete cluster_;
    cluster_ = nullptr;
  }
  static int port() { return cluster_->http_port(); }
  static double BlocksUsed() {
    return cluster_->WorkerMetric(0, "glmserve_worker_kv_blocks_used") +
           cluster_->WorkerMetric(1, "glmserve_worker_kv_blocks_used");
  }

  static Cluster* cluster_;
};

Cluster* ClusterTest::cluster_ = nullptr;

TEST_F(ClusterTest, IsReadyAndListsItsModel) {
  EXPECT_EQ(Call(port(), "/livez").status, 200);
  EXPECT_EQ(Call(port(), "/readyz").status, 200);
  EXPECT_EQ(Call(port(), "/health").status, 200);
  EXPECT_EQ(Call(port(), "/v1/models").Json()["data"][0]["id"], "demo-model");
}

TEST_F(ClusterTest, StreamedAndWholeAnswersAreEqual) {
  const std::string question = "What is the capital of France?";
  const HttpAnswer whole = Call(port(), "/v1/chat/completions", ChatBody(question, false));
  ASSERT_EQ(whole.status, 200) << whole.body;
  const std::string content = whole.Json()["choices"][0]["message"]["content"];
  EXPECT_FALSE(content.empty());

  std::string streamed;
  nlohmann::json usage;
  EventStream events(port(), "/v1/chat/completions", ChatBody(question, true));
  std::string last;
  for (std::string event = events.Next(); !event.empty(); event = events.Next()) {
    last = event;
    if (event == "[DONE]") break;
    const nlohmann::json chunk = nlohmann::json::parse(event);
    if (chunk.contains("usage") && !chunk["usage"].is_null()) usage = chunk["usage"];
    if (chunk["choices"].empty()) continue;
    const nlohmann::json& delta = chunk["choices"][0]["delta"];
    if (delta.contains("content") && delta["content"].is_string()) {
      streamed += delta["content"].get<std::string>();
    }
  }
  EXPECT_EQ(last, "[DONE]");
  EXPECT_EQ(streamed, content);
  EXPECT_EQ(usage["completion_tokens"], whole.Json()["usage"]["completion_tokens"]);
  EXPECT_EQ(usage["prompt_tokens"], whole.Json()["usage"]["prompt_tokens"]);
}

TEST_F(ClusterTest, ManyAtOnceAnswerAsOneByOne) {
  const std::vector<std::string> questions = {"Hello!", "What is glmserve?", "Who are you?",
                                              "Count from 1 to 10.", "What is 7 plus 5?"};
  std::vector<std::string> alone;
  for (const std::string& question : questions) {
    alone.push_back(Call(port(), "/v1/chat/completions", ChatBody(question, false))
                        .Json()["choices"][0]["message"]["content"]);
  }
  std::vector<std::future<HttpAnswer>> answers;
  for (int i = 0; i < 20; ++i) {
    answers.push_back(std::async(std::launch::async, [&, i] {
      return Call(port(), "/v1/chat/completions", ChatBody(questions[i % 5], false));
    }));
  }
  for (int i = 0; i < 20; ++i) {
    const HttpAnswer answer = answers[i].get();
    ASSERT_EQ(answer.status, 200) << answer.body;
    EXPECT_EQ(answer.Json()["choices"][0]["message"]["content"], alone[i % 5]);
  }
  // Least-loaded choice gives both workers something to do.
  EXPECT_GT(cluster_->WorkerMetric(0, "glmserve_worker_requests_total"), 0);
  EXPECT_GT(cluster_->WorkerMetric(1, "glmserve_worker_requests_total"), 0);
}

TEST_F(ClusterTest, ClosingTheConnectionFreesTheBlocks) {
  ASSERT_TRUE(Eventually(30, [] { return BlocksUsed() == 0; }));
  const double cancelled = cluster_->WorkerMetric(0, "glmserve_worker_requests_total") +
                           cluster_->WorkerMetric(1, "glmserve_worker_requests_total");
  {
    const std::string body = nlohmann::json{{"model", "demo-model"}, {"prompt", "Once upon a time"},
                                            {"max_tokens", 3000},    {"ignore_eos", true},
                                            {"stream", true},        {"temperature", 0}}
                                 .dump();
    EventStream events(port(), "/v1/completions", body);
    EXPECT_FALSE(events.Next().empty());
    EXPECT_TRUE(Eventually(30, [] { return BlocksUsed() > 0; }));
  }
  EXPECT_TRUE(Eventually(30, [] { return BlocksUsed() == 0; })) << BlocksUsed() << " blocks used";
  EXPECT_TRUE(Eventually(30, [&] {
    return cluster_->WorkerMetric(0, "glmserve_worker_requests_total") +
               cluster_->WorkerMetric(1, "glmserve_worker_requests_total") ==
           cancelled + 1;
  }));
}

TEST_F(ClusterTest, BadRequestsAreRefusedWithOpenAisErrorObject) {
  const HttpAnswer answer = Call(port(), "/v1/chat/completions", "{\"model\": \"demo-model\"}");
  EXPECT_EQ(answer.status, 400);
  EXPECT_NE(answer.Json()["error"]["message"].get<std::string>().find("messages"),
            std::string::npos);
  EXPECT_EQ(Call(port(), "/v1/chat/completions", "{").status, 400);
  EXPECT_EQ(Call(port(), "/v1/nothing").status, 404);
}

TEST_F(ClusterTest, EveryMetricOfTheDashboardExists) {
  std::ifstream file(std::string(GLM_SOURCE_DIR) + "/deploy/grafana/glmserve.json");
  const std::string dashboard((std::istreambuf_iterator<char>(file)), {});
  const std::regex metric("glmserve_(router|worker)_[a-z_]+");
  std::set<std::string> names;
  for (std::sregex_iterator it(dashboard.begin(), dashboard.end(), metric), end; it != end; ++it) {
    names.insert(it->str());
  }
  EXPECT_GT(names.size(), 15u);
  for (const std::string& name : names) {
    const bool of_router = name.rfind("glmserve_router_", 0) == 0;
    EXPECT_GE(of_router ? cluster_->RouterMetric(name) : cluster_->WorkerMetric(0, name), 0)
        << name;
  }
}

TEST_F(ClusterTest, TheOpenAiClientIsContent) {
  const std::string python = std::string(GLM_SOURCE_DIR) + "/build/python/bin/python";
  if (system((python + " -c 'import openai' 2>/dev/null").c_str()) != 0) {
    GTEST_SKIP() << "no openai package in build/python; tests/run.sh installs it";
  }
  const std::string script = std::string(GLM_SOURCE_DIR) + "/tests/cluster/openai_client_test.py";
  const std::string url = " http://127.0.0.1:" + std::to_string(port()) + "/v1";
  EXPECT_EQ(system((python + " " + script + url).c_str()), 0);
  EXPECT_TRUE(Eventually(30, [] { return BlocksUsed() == 0; }));
}

}  // namespace
}  // namespace glm::tests
