// Workers that come and go by every way there is, and routers that come late: real processes.
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "tests/support/cluster.h"
#include "tests/support/server_process.h"
#include "tests/support/temp_folder.h"
#include "tests/support/test_certificates.h"

namespace glm::tests {
namespace {

const std::string kPrompt = R"({"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0})";

class MembershipTest : public testing::Test {
 protected:
  MembershipTest() { WriteFile("token", "the-token-of-this-test\n"); }
  std::string Path(const std::string& name) const { return folder_.path() + "/" + name; }
  void WriteFile(const std::string& name, const std::string& text) {
    std::ofstream(Path(name + ".new")) << text;
    std::filesystem::rename(Path(name + ".new"), Path(name));
  }
  static bool AwaitReadyWorkers(const RouterProcess& router, int count) {
    return Eventually(30, [&] {
      return SumOfMetric(Call(router.http_port(), "/metrics").body,
                         "glmserve_router_workers{state=\"ready\"}") == count;
    });
  }
  static int Ask(const RouterProcess& router) {
    return Call(router.http_port(), "/v1/completions", kPrompt).status;
  }

  const test::TempFolder folder_;
};

TEST_F(MembershipTest, AFileIsFollowed) {
  const WorkerProcess first;
  const WorkerProcess second;
  WriteFile("workers", "# one\n" + first.address() + "\n");
  const RouterProcess router({"--workers-file=" + Path("workers")});
  ASSERT_TRUE(AwaitReadyWorkers(router, 1));
  WriteFile("workers", first.address() + "\n" + second.address() + "\n");
  EXPECT_TRUE(AwaitReadyWorkers(router, 2));
  WriteFile("workers", "not an address\n");
  EXPECT_TRUE(router.AwaitLog("the workers known before stay"));
  EXPECT_EQ(Ask(router), 200);
  WriteFile("workers", second.address() + "\n");
  EXPECT_TRUE(router.AwaitLog("worker " + first.address() + " has left"));
  EXPECT_TRUE(AwaitReadyWorkers(router, 1));
  EXPECT_EQ(Ask(router), 200);
}

TEST_F(MembershipTest, ANameIsResolved) {
  const WorkerProcess worker;
  const RouterProcess router({"--workers-dns=localhost:" + std::to_string(worker.port())});
  ASSERT_TRUE(AwaitReadyWorkers(router, 1));
  EXPECT_EQ(Ask(router), 200);
}

TEST_F(MembershipTest, WorkersRegisterThemselvesWithEveryRouter) {
  const std::vector<std::string> flags = {"--registry-listen=127.0.0.1:0",
                                          "--worker-token-file=" + Path("token"),
                                          "--registration-grace-s=1"};
  const RouterProcess one(flags);
  const RouterProcess other(flags);
  const std::string routers =
      "--register-with=127.0.0.1:" + std::to_string(one.NumberAfter("(registry port ")) +
      ",127.0.0.1:" + std::to_string(other.NumberAfter("(registry port "));
  const std::vector<std::string> known = {routers, "--auth-token-file=" + Path("token")};
  WorkerProcess leaves(known);
  WorkerProcess dies(known);
  for (const RouterProcess* router : {&one, &other}) {
    ASSERT_TRUE(AwaitReadyWorkers(*router, 2));
    EXPECT_EQ(Ask(*router), 200);
  }
  leaves.Signal(SIGTERM);
  EXPECT_EQ(leaves.AwaitExit(), 0);
  for (const RouterProcess* router : {&one, &other}) {
    EXPECT_TRUE(router->AwaitLog("worker " + leaves.address() + " has left"));
    EXPECT_EQ(Ask(*router), 200);
  }
  // One that dies is dialled for the grace, and then forgotten; so a router's metrics do not fill
  // with the dead.
  dies.Signal(SIGKILL);
  for (const RouterProcess* router : {&one, &other}) {
    EXPECT_TRUE(Eventually(30, [&] { return router->Metric("glmserve_router_members") == 0; }));
  }
}

TEST_F(MembershipTest, TheLossOfTheRegistryEvictsNobody) {
  test::MakeCertificates(folder_.path(), "node=127.0.0.1");
  const std::vector<std::string> flags = {
      "--registry-listen=127.0.0.1:0",          "--registry-tls-cert=" + Path("node.pem"),
      "--registry-tls-key=" + Path("node.key"), "--registry-tls-client-ca=" + Path("ca.pem"),
      "--worker-tls-ca=" + Path("ca.pem"),      "--worker-tls-cert=" + Path("node.pem"),
      "--worker-tls-key=" + Path("node.key"),   "--registration-grace-s=1"};
  const RouterProcess router(flags);
  const int registry_port = router.NumberAfter("(registry port ");
  const WorkerProcess worker({"--register-with=127.0.0.1:" + std::to_string(registry_port),
                              "--register-tls-ca=" + Path("ca.pem"),
                              "--tls-cert=" + Path("node.pem"), "--tls-key=" + Path("node.key"),
                              "--tls-client-ca=" + Path("ca.pem")});
  ASSERT_TRUE(AwaitReadyWorkers(router, 1));
  // A stranger without a certificate registers nobody.
  const WorkerProcess stranger({"--register-with=127.0.0.1:" + std::to_string(registry_port)});
  EXPECT_TRUE(stranger.AwaitLog("not registered with"));
  EXPECT_EQ(router.Metric("glmserve_router_members"), 1);
  EXPECT_EQ(Ask(router), 200);
}

/// A prompt of its own, long enough for many blocks of cache.
std::string LongPrompt(int number) {
  std::string text;
  for (int i = 0; i < 60; ++i) text += "word " + std::to_string(number * 1000 + i) + " and ";
  return nlohmann::json{{"prompt", text}, {"max_tokens", 1}, {"temperature", 0}}.dump();
}

TEST_F(MembershipTest, ALateRouterIsReadyWithAWarmIndexInTwoSeconds) {
  constexpr int kPrompts = 10;
  const WorkerProcess first;
  const WorkerProcess second;
  const std::string workers = "--workers=" + first.address() + "," + second.address();
  const RouterProcess early({workers});
  ASSERT_TRUE(AwaitReadyWorkers(early, 2));
  for (int i = 0; i < kPrompts; ++i) {
    ASSERT_EQ(Call(early.http_port(), "/v1/completions", LongPrompt(i)).status, 200);
  }
  const double started = MonotonicSeconds();
  const RouterProcess late({workers});
  ASSERT_TRUE(AwaitReadyWorkers(late, 2));
  // Snapshots of the caches follow a worker's first word by a moment.
  const double known = early.Metric("glmserve_router_prefix_index_blocks");
  ASSERT_GT(known, kPrompts);
  EXPECT_TRUE(
      Eventually(2, [&] { return late.Metric("glmserve_router_prefix_index_blocks") == known; }));
  const double ready = MonotonicSeconds();
  // Every prompt goes where its prefix is; by chance that would happen once in 2^10 times.
  for (int i = 0; i < kPrompts; ++i) {
    const HttpAnswer answer = Call(late.http_port(), "/v1/completions", LongPrompt(i));
    ASSERT_EQ(answer.status, 200) << answer.body;
    const nlohmann::json usage = answer.Json()["usage"];
    EXPECT_GT(usage["prompt_tokens_details"]["cached_tokens"].get<int>(),
              usage["prompt_tokens"].get<int>() / 2)
        << "prompt " << i << ": " << usage;
  }
  EXPECT_LT(ready - started, 2) << "from its exec to both workers ready and their caches known";
  RecordProperty("ready_ms", static_cast<int>(1000 * (ready - started)));
}

}  // namespace
}  // namespace glm::tests
