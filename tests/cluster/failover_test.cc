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
