// F6: faults of the network between a router and one of its two workers, each in a namespace of its
// own: no client may notice, and the router must know within 5 s.
#include <gtest/gtest.h>
#include <signal.h>

#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/cluster.h"
#include "tests/support/crowd.h"
#include "tests/support/faulty_wire.h"
#include "tests/support/server_process.h"

namespace glm::tests {
namespace {

constexpr int kStreams = 24;
constexpr int kTokens = 150;

std::vector<std::string> Bodies() {
  std::vector<std::string> bodies;
  for (int i = 0; i < kStreams; ++i) {
    bodies.push_back(nlohmann::json{
        {"prompt", "Story number " + std::to_string(i) + ": once upon a time"},
        {"max_tokens", kTokens},
        {"temperature", 0},
        {"ignore_eos", true},
        {"stream", true}}.dump());
  }
  return bodies;
}

class NetworkFaultTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string why_not = FaultyWire::Unavailable();
    if (!why_not.empty()) GTEST_SKIP() << why_not;
    wire_ = std::make_unique<FaultyWire>(getpid() % 250);
    StartFarWorker(0);
    near_ = std::make_unique<WorkerProcess>();
    router_ = std::make_unique<RouterProcess>(
        std::vector<std::string>{"--workers=" + far_->address() + "," + near_->address()});
    ASSERT_TRUE(AwaitWorkers(2, 30));
    right_ = Crowd(router_->http_port(), "/v1/completions", Bodies()).Await();
    ExpectSameAnswers(right_, right_);
  }
  void StartFarWorker(int port) {
    far_ = nullptr;
    wire_->Inside([&] {
      far_ = std::make_unique<WorkerProcess>(std::vector<std::string>{}, port,
                                             wire_->inside_address());
    });
  }
  bool AwaitWorkers(int ready, double seconds) {
    return Eventually(seconds, [&] {
      return router_->Metric("glmserve_router_workers{state=\"ready\"}") == ready;
    });
  }

  /// Streams under way when the fault begins; the fault ends `seconds` later.
  void Disturb(const WireFaults& faults, double seconds, bool is_noticed) {
    const int64_t carried = wire_->packets();
    Crowd crowd(router_->http_port(), "/v1/completions", Bodies());
    ASSERT_TRUE(crowd.AwaitEvents(kStreams * kTokens / 5));
    ASSERT_GT(wire_->packets(), carried) << "the far worker has no work";
    const double begin = MonotonicSeconds();
    wire_->Set(faults);
    if (is_noticed) {
      EXPECT_TRUE(AwaitWorkers(1, 5));
      std::cout << "noticed after " << MonotonicSeconds() - begin << " s\n";
    }
    const double left = begin + seconds - MonotonicSeconds();
    if (left > 0) std::this_thread::sleep_for(std::chrono::duration<double>(left));
    wire_->Set({});
    const std::vector<CrowdAnswer> answers = crowd.Await();
    ExpectSameAnswers(right_, answers);
    std::cout << "longest gap " << GapMax(answers) << " s, undisturbed " << GapMax(right_)
              << " s, retries " << router_->Metric("glmserve_router_retries_total") << "\n";
    EXPECT_TRUE(AwaitWorkers(2, 20)) << "the worker is not taken back";
    ExpectSameAnswers(right_, Crowd(router_->http_port(), "/v1/completions", Bodies()).Await());
  }

  std::unique_ptr<FaultyWire> wire_;
  std::unique_ptr<WorkerProcess> far_;
  std::unique_ptr<WorkerProcess> near_;
  std::unique_ptr<RouterProcess> router_;
  std::vector<CrowdAnswer> right_;
};

TEST_F(NetworkFaultTest, NothingPasses) {
  Disturb({.drop_in = true, .drop_out = true}, 6, /*is_noticed=*/true);
}

TEST_F(NetworkFaultTest, NothingReachesTheWorker) { Disturb({.drop_in = true}, 6, true); }

TEST_F(NetworkFaultTest, NothingComesFromTheWorker) { Disturb({.drop_out = true}, 6, true); }

TEST_F(NetworkFaultTest, ConnectionsAreReset) { Disturb({.reset = true}, 2, true); }

TEST_F(NetworkFaultTest, AThirdIsLost) { Disturb({.loss_percent = 30}, 8, /*is_noticed=*/false); }

TEST_F(NetworkFaultTest, EverythingIsHalfASecondLate) { Disturb({.delay_ms = 500}, 4, false); }

TEST_F(NetworkFaultTest, AWorkerDiesUnheardAndComesBack) {
  Crowd crowd(router_->http_port(), "/v1/completions", Bodies());
  ASSERT_TRUE(crowd.AwaitEvents(kStreams * kTokens / 5));
  wire_->Set({.drop_in = true, .drop_out = true});
  far_->Signal(SIGKILL);
  far_->AwaitExit();
  StartFarWorker(far_->port());
  wire_->Set({});  // the router still holds connections to a process that is gone
  ExpectSameAnswers(right_, crowd.Await());
  EXPECT_TRUE(AwaitWorkers(2, 20));
  ExpectSameAnswers(right_, Crowd(router_->http_port(), "/v1/completions", Bodies()).Await());
}

}  // namespace
}  // namespace glm::tests
