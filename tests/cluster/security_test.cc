// Routers and workers that must know each other: TLS, mTLS and tokens, real processes.
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

class SecurityTest : public testing::Test {
 protected:
  SecurityTest() {
    test::MakeCertificates(folder_.path(), "worker=127.0.0.1 router=router.test");
    test::MakeCertificates(stranger_.path(), "router=router.test");
    WriteToken("token", "the-first-token-of-all");
    WriteToken("other-token", "another-token-altogether");
  }
  void WriteToken(const std::string& name, const std::string& text) {
    std::ofstream(Path(name + ".new")) << text << "\n";
    std::filesystem::rename(Path(name + ".new"), Path(name));
  }
  std::string Path(const std::string& name) const { return folder_.path() + "/" + name; }

  const test::TempFolder folder_;
  const test::TempFolder stranger_;
};

TEST_F(SecurityTest, MutualTlsAndATokenLetTheRightRouterIn) {
  const WorkerProcess worker({"--tls-cert=" + Path("worker.pem"), "--tls-key=" + Path("worker.key"),
                              "--tls-client-ca=" + Path("ca.pem"),
                              "--auth-token-file=" + Path("token")});
  const std::vector<std::string> keys = {
      "--workers=" + worker.address(), "--worker-tls-ca=" + Path("ca.pem"),
      "--worker-tls-cert=" + Path("router.pem"), "--worker-tls-key=" + Path("router.key"),
      "--worker-token-file=" + Path("token")};
  const RouterProcess router(keys);
  ASSERT_TRUE(router.AwaitReady());
  const HttpAnswer answer = Call(router.http_port(), "/v1/completions", kPrompt);
  EXPECT_EQ(answer.status, 200) << answer.body;
  EXPECT_EQ(router.Metric("glmserve_router_workers_unauthenticated"), 0);

  // A router with a certificate of a stranger's making never gets through the handshake.
  std::vector<std::string> strange = keys;
  strange[2] = "--worker-tls-cert=" + stranger_.path() + "/router.pem";
  strange[3] = "--worker-tls-key=" + stranger_.path() + "/router.key";
  const RouterProcess stranger(strange);
  EXPECT_TRUE(stranger.AwaitLog("is down"));
  EXPECT_EQ(Call(stranger.http_port(), "/readyz").status, 503);

  // Nor does one that takes the worker for somebody else.
  std::vector<std::string> mistaken = keys;
  mistaken.push_back("--worker-tls-name=router.test");
  const RouterProcess misled(mistaken);
  EXPECT_TRUE(misled.AwaitLog("is down"));
  EXPECT_EQ(Call(misled.http_port(), "/readyz").status, 503);
}

TEST_F(SecurityTest, AWrongTokenIsSaidOnceAndMendedWithoutARestart) {
  const WorkerProcess worker({"--auth-token-file=" + Path("token")});
  const RouterProcess router({"--workers=" + worker.address(), "--backoff-max-ms=200",
                              "--worker-token-file=" + Path("other-token")});
  EXPECT_TRUE(router.AwaitLog("wrong token"));
  EXPECT_TRUE(worker.AwaitLog("wrong token"));
  EXPECT_TRUE(router.AwaitLog("in the clear")) << "a token without TLS";
  EXPECT_TRUE(Eventually(
      10, [&] { return router.Metric("glmserve_router_workers_unauthenticated") == 1; }));
  const HttpAnswer health = Call(router.http_port(), "/readyz");
  EXPECT_EQ(health.status, 503);
  EXPECT_EQ(health.Json()["workers_unauthenticated"], 1);

  WriteToken("other-token", "the-first-token-of-all");
  EXPECT_TRUE(router.AwaitReady());
  EXPECT_EQ(Call(router.http_port(), "/v1/completions", kPrompt).status, 200);
  EXPECT_EQ(router.Metric("glmserve_router_workers_unauthenticated"), 0);
  const std::string log = router.Log();
  EXPECT_EQ(log.find("wrong token"), log.rfind("wrong token")) << "the same failure is said once";
  for (const std::string& text : {log, worker.Log()}) {
    EXPECT_EQ(text.find("the-first-token-of-all"), std::string::npos) << "no log has the token";
  }
}

TEST_F(SecurityTest, BadFilesEndTheProcessByName) {
  const auto ends_with = [&](const std::string& program, const std::vector<std::string>& flags,
                             const std::string& says) {
    ServerProcess process(program, flags, /*ready=*/"");
    EXPECT_NE(process.AwaitExit(), 0);
    EXPECT_NE(process.Log().find(says), std::string::npos) << process.Log();
  };
  const std::string model = std::string("--model=") + GLM_SOURCE_DIR + "/deploy/demo-model";
  ends_with("glmserve-worker", {model, "--tls-cert=" + Path("none")}, "needs --tls-key too");
  ends_with("glmserve-worker", {model, "--auth-token-file=" + Path("none")},
            "--auth-token-file: " + Path("none"));
  ends_with("glmserve-router", {model, "--workers=a:1", "--worker-tls-ca=" + Path("token")},
            "--worker-tls-ca='" + Path("token") + "': no certificate in PEM form");
  ends_with("glmserve-router",
            {model, "--workers=a:1", "--port=0", "--grpc-tls-cert=" + Path("worker.pem"),
             "--grpc-tls-key=" + Path("router.key")},
            "--grpc-tls-key='" + Path("router.key") + "': it is not the key of");
}

TEST_F(SecurityTest, TheGrpcServiceSpeaksTls) {
  const WorkerProcess worker;
  const RouterProcess router({"--workers=" + worker.address(),
                              "--grpc-tls-cert=" + Path("worker.pem"),
                              "--grpc-tls-key=" + Path("worker.key")});
  ASSERT_TRUE(router.AwaitReady());
  const std::string handshake =
      "openssl s_client -connect 127.0.0.1:" + std::to_string(router.grpc_port()) +
      " -alpn h2 -verify_return_error -verify_ip 127.0.0.1 -CAfile ";
  const std::string quiet = " </dev/null >/dev/null 2>&1";
  EXPECT_EQ(system((handshake + Path("ca.pem") + quiet).c_str()), 0);
  EXPECT_NE(system((handshake + stranger_.path() + "/ca.pem" + quiet).c_str()), 0);
}

}  // namespace
}  // namespace glm::tests
