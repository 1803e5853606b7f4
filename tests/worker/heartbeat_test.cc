// Heartbeats of the worker's service: over a real gRPC channel, with the engine's own loop behind
// it, whose device hangs when told to.
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "engine/engine_loop.h"
#include "tests/support/fake_runner.h"
#include "tests/worker/peer.h"
#include "worker/service.h"

namespace glm::worker {
namespace {

constexpr int32_t kPeriodMs = 20;
constexpr int32_t kVocabulary = 50;

class HeartbeatTest : public testing::Test {
 protected:
  void SetUp() override {
    options_.heartbeat_ms = kPeriodMs;
    service_ = std::make_unique<Service>(options_, &metrics_);
    engine::SchedulerLimits limits;
    limits.block_size = 4;
    limits.kv_blocks = 64;
    limits.length_max = 64;
    limits.sequences_max = 4;
    limits.batched_tokens_max = 16;
    limits.logit_rows_max = 16;
    limits.vocabulary = kVocabulary;
    engine::EngineShape shape;
    shape.vocabulary = kVocabulary;
    shape.length_max = limits.length_max;
    shape.block_size = limits.block_size;
    shape.kv_blocks_total = limits.kv_blocks;
    shape.sequences_max = limits.sequences_max;
    auto runner = std::make_unique<engine::FakeRunner>(limits);
    runner_ = runner.get();
    engine_ = std::make_unique<engine::EngineLoop>(
        shape, limits, 100, std::move(runner),
        [this](engine::StepEvents&& events) { service_->Deliver(std::move(events)); });
    service_->Attach(engine_.get());
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    channel_ = grpc::CreateChannel("127.0.0.1:" + std::to_string(port),
                                   grpc::InsecureChannelCredentials());
  }
  void TearDown() override {
    runner_->OpenGate();
    service_->CloseAll();
    server_->Shutdown(std::chrono::system_clock::now());
    engine_->Stop();
  }

  /// The next heartbeat; steps before it are skipped.
  static pb::Heartbeat ReadHeartbeat(Peer* router) {
    while (true) {
      const pb::WorkerFrame frame = router->Read();
      if (frame.has_heartbeat()) return frame.heartbeat();
      if (!frame.has_step()) return {};  // the stream has ended
    }
  }
  /// Reads until a request has ended.
  static void ReadToFinish(Peer* router) {
    while (true) {
      const pb::WorkerFrame frame = router->Read();
      for (const pb::Output& output : frame.step().outputs()) {
        if (output.finish() != pb::FINISH_NONE) return;
      }
      if (!frame.has_step() && !frame.has_heartbeat()) return;  // the stream has ended
    }
  }
  double HeartbeatsCounted() const {
    for (const prometheus::MetricFamily& family : metrics_.Collect()) {
      if (family.name == "glmserve_worker_heartbeats_total") {
        return family.metric[0].counter.value;
      }
    }
    return -1;
  }

  WorkerOptions options_;
  WorkerMetrics metrics_;
  std::unique_ptr<Service> service_;
  engine::FakeRunner* runner_ = nullptr;
  std::unique_ptr<engine::EngineLoop> engine_;
  std::unique_ptr<grpc::Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
};

TEST_F(HeartbeatTest, AHungDeviceShowsAsAStepThatGrowsOld) {
  Peer router(channel_);
  router.Open();
  router.Submit(1, {1, 2, 3}, 20);
  ReadToFinish(&router);  // the first steps, by which the next ones are judged
  runner_->CloseGate();
  router.Submit(2, {1, 2, 3}, 20);
  pb::Heartbeat last = ReadHeartbeat(&router);
  EXPECT_GE(last.step(), 20u);
  EXPECT_GE(last.step_age_ms(), 1u);
  EXPECT_GE(last.step_expected_ms(), 1u);
  EXPECT_EQ(last.load().requests_running(), 1u);
  const uint32_t first_age = last.step_age_ms();
  for (int i = 0; i < 5; ++i) {
    const pb::Heartbeat beat = ReadHeartbeat(&router);
    EXPECT_EQ(beat.step(), last.step());
    EXPECT_GT(beat.step_age_ms(), last.step_age_ms());
    last = beat;
  }
  EXPECT_GE(last.step_age_ms(), first_age + 5 * kPeriodMs - 10);
  EXPECT_GE(HeartbeatsCounted(), 6);
  // The device goes on: a younger step.
  runner_->PassOne();
  pb::Heartbeat later = ReadHeartbeat(&router);
  while (later.step() == last.step()) {  // one that was on its way
    last = later;
    later = ReadHeartbeat(&router);
  }
  EXPECT_EQ(later.step(), last.step() + 1);
  EXPECT_LT(later.step_age_ms(), last.step_age_ms());
  runner_->OpenGate();
  ReadToFinish(&router);
}

TEST_F(HeartbeatTest, SessionsWithoutRequestsGetNone) {
  Peer idle(channel_);
  Peer router(channel_);
  idle.Open();
  router.Open();
  runner_->CloseGate();
  router.Submit(1, {1, 2, 3}, 5);
  for (int i = 0; i < 5; ++i) ReadHeartbeat(&router);
  runner_->OpenGate();
  ReadToFinish(&router);
  const double counted = HeartbeatsCounted();
  EXPECT_GE(counted, 5);
  // Neither has requests now.
  std::this_thread::sleep_for(std::chrono::milliseconds(5 * kPeriodMs));
  EXPECT_EQ(HeartbeatsCounted(), counted);
  // All that came to the idle one are the steps of the other.
  idle.Submit(2, {1, 2, 3}, 5);
  while (true) {
    const pb::WorkerFrame frame = idle.Read();
    ASSERT_TRUE(frame.has_step());
    if (frame.step().outputs_size() > 0) break;
  }
  ReadToFinish(&idle);
}

TEST_F(HeartbeatTest, NoneComesWhileStepsDo) {
  Peer router(channel_);
  router.Open();
  runner_->CloseGate();
  router.Submit(1, {1, 2, 3}, 40);
  const auto begin = std::chrono::steady_clock::now();
  double steps = 0;
  while (std::chrono::steady_clock::now() - begin < std::chrono::milliseconds(10 * kPeriodMs) &&
         steps < 39) {
    runner_->PassOne();
    runner_->AwaitWaiter();
    ++steps;
    std::this_thread::sleep_for(std::chrono::milliseconds(kPeriodMs / 4));
  }
  // A step every quarter of the period; a machine that stalls may let one or two through.
  EXPECT_LE(HeartbeatsCounted(), 2);
  runner_->OpenGate();
  ReadToFinish(&router);
}

TEST_F(HeartbeatTest, NoneComesAfterCloseAll) {
  Peer router(channel_);
  router.Open();
  runner_->CloseGate();
  router.Submit(1, {1, 2, 3}, 5);
  ReadHeartbeat(&router);
  service_->CloseAll();
  const double counted = HeartbeatsCounted();
  std::this_thread::sleep_for(std::chrono::milliseconds(5 * kPeriodMs));
  EXPECT_EQ(HeartbeatsCounted(), counted);
}

}  // namespace
}  // namespace glm::worker
