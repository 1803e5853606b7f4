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
  /// Reads until a request has ended; the heartbeats before that.
  static int32_t ReadToFinish(Peer* router) {
    int32_t heartbeats = 0;
    while (true) {
      const pb::WorkerFrame frame = router->Read();
      heartbeats += frame.has_heartbeat() ? 1 : 0;
      for (const pb::Output& output : frame.step().outputs()) {
        if (output.finish() != pb::FINISH_NONE) return heartbeats;
      }
      if (!frame.has_step() && !frame.has_heartbeat()) return -1;  // the stream has ended
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
  while (last.step_expected_ms() == 0) last = ReadHeartbeat(&router);  // not yet planned
  EXPECT_GE(last.step(), 20u);
  EXPECT_GE(last.step_age_ms(), 1u);
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
  // The device goes on, and hangs in the next step.
  runner_->PassOne();
  pb::Heartbeat later = ReadHeartbeat(&router);
  while (later.step() == last.step()) {  // one that was on its way
    last = later;
    later = ReadHeartbeat(&router);
  }
  EXPECT_EQ(later.step(), last.step() + 1);
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
  const double more = ReadToFinish(&router);
  const double counted = HeartbeatsCounted();
  EXPECT_EQ(counted, 5 + more) << "the idle session got some";
  // Neither has requests now.
  std::this_thread::sleep_for(std::chrono::milliseconds(5 * kPeriodMs));
  EXPECT_EQ(HeartbeatsCounted(), counted);
}

TEST_F(HeartbeatTest, NoneComesWhileStepsDo) {
  Peer router(channel_);
  router.Open();
  runner_->CloseGate();
  router.Submit(1, {1, 2, 3}, 40);
  // A step every quarter of the period; where this machine stalls, heartbeats may come.
  using Clock = std::chrono::steady_clock;
  Clock::time_point last = Clock::now();
  int64_t allowed = 0;
  for (int32_t step = 0; step < 39; ++step) {
    runner_->PassOne();
    runner_->AwaitWaiter();
    std::this_thread::sleep_for(std::chrono::milliseconds(kPeriodMs / 4));
    const auto gap = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - last);
    if (gap.count() > kPeriodMs / 2) allowed += 1 + gap.count() / kPeriodMs;
    last = Clock::now();
  }
  EXPECT_LE(HeartbeatsCounted(), allowed);
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
