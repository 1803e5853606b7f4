// The worker's service over a real gRPC channel, with a scripted engine behind it.
#include "worker/service.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "tests/worker/peer.h"
#include "tests/worker/scripted_engine.h"
#include "worker/wire.h"

namespace glm::worker {
namespace {

class ServiceTest : public testing::Test {
 protected:
  void SetUp() override {
    options_.session_frames_max = 32;
    options_.sessions_max = 2;
    options_.heartbeat_ms = heartbeat_ms_;
    service_ = std::make_unique<Service>(options_, &metrics_);
    service_->Attach(&engine_);
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    address_ = "127.0.0.1:" + std::to_string(port);
    channel_ = grpc::CreateChannel(address_, grpc::InsecureChannelCredentials());
  }
  void TearDown() override { server_->Shutdown(std::chrono::system_clock::now()); }

  /// A step in which `id` got `token`, and ended if `finish` says so.
  void DeliverToken(engine::RequestId id, int32_t token,
                    engine::FinishReason finish = engine::FinishReason::kNone) {
    engine::StepEvents events;
    events.step = ++step_;
    events.load.requests_running = 3;
    events.load.kv_blocks_used = 2;
    engine::RequestEvent& event = events.requests.emplace_back();
    event.id = id;
    event.token_ids = {token};
    event.finish = finish;
    event.prompt_tokens = 3;
    service_->Deliver(std::move(events));
  }

  int32_t heartbeat_ms_ = 60'000;  // none, however slow this machine is
  WorkerOptions options_;
  WorkerMetrics metrics_;
  ScriptedEngine engine_;
  std::unique_ptr<Service> service_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
  std::shared_ptr<grpc::Channel> channel_;
  uint64_t step_ = 0;
};

TEST_F(ServiceTest, WelcomesWithTheEnginesShape) {
  Peer router(channel_);
  const pb::Welcome welcome = router.Open();
  EXPECT_EQ(welcome.protocol_version(), kProtocolVersion);
  EXPECT_NE(welcome.incarnation(), 0u);
  EXPECT_EQ(welcome.model_name(), "scripted");
  EXPECT_EQ(welcome.vocabulary(), 100u);
  EXPECT_EQ(welcome.length_max(), 64u);
  EXPECT_EQ(welcome.step_tokens_max(), 48u);
  EXPECT_EQ(welcome.eos_ids_size(), 2);
}

TEST_F(ServiceTest, CarriesARequestAndItsTokens) {
  Peer router(channel_);
  router.Open();
  router.Submit(41, {1, 2, 3});
  const engine::Request request = engine_.AwaitSubmitted(1);
  EXPECT_EQ(request.prompt_ids, (std::vector<int32_t>{1, 2, 3}));
  EXPECT_EQ(request.stop.max_tokens, 5);
  EXPECT_EQ(request.sampling.seed, 0xFFFFFFFFFFFFFFFFull);

  DeliverToken(request.id, 9);
  pb::Step step = router.Read().step();
  ASSERT_EQ(step.outputs_size(), 1);
  EXPECT_EQ(step.outputs(0).request_id(), 41u);
  EXPECT_EQ(step.outputs(0).token_ids(0), 9u);
  EXPECT_EQ(step.outputs(0).finish(), pb::FINISH_NONE);
  EXPECT_EQ(step.load().requests_running(), 3u);

  DeliverToken(request.id, 7, engine::FinishReason::kStop);
  step = router.Read().step();
  EXPECT_EQ(step.outputs(0).finish(), pb::FINISH_STOP);
  EXPECT_EQ(step.outputs(0).prompt_tokens(), 3u);
  EXPECT_TRUE(service_->AwaitIdle(std::chrono::milliseconds(0)));
}

TEST_F(ServiceTest, TwoSessionsMayUseTheSameNumberAndSeeOnlyTheirOwn) {
  Peer first(channel_);
  Peer second(channel_);
  first.Open();
  second.Open();
  first.Submit(1, {10});
  const engine::Request of_first = engine_.AwaitSubmitted(1);
  second.Submit(1, {20});
  const engine::Request of_second = engine_.AwaitSubmitted(2);
  EXPECT_NE(of_first.id, of_second.id);
  DeliverToken(of_second.id, 55);
  EXPECT_EQ(first.Read().step().outputs_size(), 0) << "load only";
  const pb::Step step = second.Read().step();
  ASSERT_EQ(step.outputs_size(), 1);
  EXPECT_EQ(step.outputs(0).token_ids(0), 55u);
}

TEST_F(ServiceTest, RefusalNamesWhatTheEngineSaid) {
  Peer router(channel_);
  router.Open();
  router.Submit(5, {});
  const pb::Step step = router.Read().step();
  ASSERT_EQ(step.outputs_size(), 1);
  EXPECT_EQ(step.outputs(0).request_id(), 5u);
  EXPECT_EQ(step.outputs(0).finish(), pb::FINISH_REFUSED);
  EXPECT_EQ(step.outputs(0).error(), "prompt_ids is empty");
  EXPECT_EQ(step.outputs(0).error_code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
}

TEST_F(ServiceTest, ALiveNumberIsNotTakenTwice) {
  Peer router(channel_);
  router.Open();
  router.Submit(5, {1});
  engine_.AwaitSubmitted(1);
  router.Submit(5, {2});
  const pb::Step step = router.Read().step();
  EXPECT_EQ(step.outputs(0).finish(), pb::FINISH_REFUSED);
  EXPECT_EQ(step.outputs(0).error_code(), static_cast<int>(absl::StatusCode::kAlreadyExists));
}

TEST_F(ServiceTest, CancelReachesTheEngine) {
  Peer router(channel_);
  router.Open();
  router.Submit(5, {1});
  const engine::Request request = engine_.AwaitSubmitted(1);
  router.Cancel(6);  // unknown: ignored
  router.Cancel(5);
  EXPECT_EQ(engine_.AwaitCancelled(1), std::vector<engine::RequestId>{request.id});
}

TEST_F(ServiceTest, ABrokenStreamCancelsItsRequests) {
  engine::Request request;
  {
    Peer router(channel_);
    router.Open();
    router.Submit(5, {1});
    request = engine_.AwaitSubmitted(1);
  }
  EXPECT_EQ(engine_.AwaitCancelled(1), std::vector<engine::RequestId>{request.id});
  EXPECT_TRUE(service_->AwaitIdle(std::chrono::seconds(10)));
  DeliverToken(request.id, 3);  // late events of it go nowhere
}

TEST_F(ServiceTest, RefusesAnotherProtocolVersion) {
  Peer router(channel_);
  router.Hello(99);
  const grpc::Status status = router.Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_NE(status.error_message().find("99"), std::string::npos);
}

TEST_F(ServiceTest, RefusesAStreamThatDoesNotSayHello) {
  Peer router(channel_);
  router.Submit(1, {1});
  EXPECT_EQ(router.Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(ServiceTest, RefusesMoreSessionsThanItsBound) {
  Peer first(channel_);
  Peer second(channel_);
  Peer third(channel_);
  first.Open();
  second.Open();
  third.Hello();
  EXPECT_EQ(third.Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(ServiceTest, DrainingRefusesNewRequestsAndSaysSo) {
  Peer router(channel_);
  router.Open();
  router.Submit(1, {1});
  const engine::Request request = engine_.AwaitSubmitted(1);
  service_->StartDraining();
  EXPECT_TRUE(router.Read().step().draining());
  router.Submit(2, {1});
  const pb::Step refused = router.Read().step();
  EXPECT_EQ(refused.outputs(0).finish(), pb::FINISH_REFUSED);
  EXPECT_EQ(refused.outputs(0).error_code(), static_cast<int>(absl::StatusCode::kUnavailable));
  Peer late(channel_);
  late.Hello();
  EXPECT_EQ(late.Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_FALSE(service_->AwaitIdle(std::chrono::milliseconds(1)));
  DeliverToken(request.id, 7, engine::FinishReason::kStop);
  EXPECT_EQ(router.Read().step().outputs(0).finish(), pb::FINISH_STOP);
  EXPECT_TRUE(service_->AwaitIdle(std::chrono::seconds(10)));
  service_->CloseAll();
  EXPECT_EQ(router.Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(ServiceTest, ARouterThatDoesNotReadIsCutOff) {
  Peer router(channel_);
  router.Open();
  router.Submit(1, {1});
  const engine::Request request = engine_.AwaitSubmitted(1);
  // Far more than the transport's windows hold, so the out-buffer of 32 frames must overflow.
  engine::StepEvents large;
  large.requests.resize(1);
  large.requests[0].id = request.id;
  large.requests[0].token_ids.assign(20'000, 99);
  for (int i = 0; i < 2'000; ++i) {
    engine::StepEvents events = large;
    service_->Deliver(std::move(events));
  }
  EXPECT_EQ(engine_.AwaitCancelled(1), std::vector<engine::RequestId>{request.id});
}

TEST_F(ServiceTest, SessionsAreRefusedWhileTheModelLoads) {
  Service loading(options_, &metrics_);
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&loading);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  Peer router(
      grpc::CreateChannel("127.0.0.1:" + std::to_string(port), grpc::InsecureChannelCredentials()));
  router.Hello();
  EXPECT_EQ(router.Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  server->Shutdown(std::chrono::system_clock::now());
}

TEST_F(ServiceTest, LatenciesAreObserved) {
  Peer router(channel_);
  router.Open();
  router.Submit(41, {1, 2, 3});
  const engine::Request request = engine_.AwaitSubmitted(1);
  DeliverToken(request.id, 9);
  DeliverToken(request.id, 9);
  DeliverToken(request.id, 7, engine::FinishReason::kStop);
  std::map<std::string, uint64_t> counts;
  for (const prometheus::MetricFamily& family : metrics_.Collect()) {
    for (const prometheus::ClientMetric& metric : family.metric) {
      counts[family.name] += metric.histogram.sample_count;
    }
  }
  EXPECT_EQ(counts["glmserve_worker_time_to_first_token_seconds"], 1u);
  EXPECT_EQ(counts["glmserve_worker_inter_token_seconds"], 2u);
  EXPECT_EQ(counts["glmserve_worker_request_seconds"], 1u);
}

TEST_F(ServiceTest, ASubmitThatDoesNotFitIsRefusedByName) {
  Peer router(channel_);
  router.Open();
  router.Submit(5, {0x8000'0000u});
  const pb::Step step = router.Read().step();
  ASSERT_EQ(step.outputs_size(), 1);
  EXPECT_EQ(step.outputs(0).finish(), pb::FINISH_REFUSED);
  EXPECT_EQ(step.outputs(0).error(), "prompt_ids[0]=2147483648 must be at most 2147483647");
  EXPECT_EQ(step.outputs(0).error_code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
  EXPECT_TRUE(service_->AwaitIdle(std::chrono::milliseconds(0)));
}

class CountingEngine : public ScriptedEngine {
 public:
  engine::EngineStats Stats() const override { return stats; }
  engine::EngineStats stats;
};

TEST(WorkerMetricsTest, TellsCacheAndDrafts) {
  CountingEngine engine;
  engine.stats.preemptions = 2;
  engine.stats.prompt_tokens_queried = 100;
  engine.stats.prompt_tokens_cached = 64;
  engine.stats.cache_blocks_evicted = 3;
  engine.stats.draft_rounds = 50;
  engine.stats.draft_tokens = 90;
  engine.stats.draft_accepted = {40, 20, 0, 0, 0};
  engine.stats.drafts_now = 2;
  engine.stats.load.step_times = {.base_us = 4000, .sequence_us = 80, .prompt_token_us = 20};
  engine.stats.load.context_tokens = 77;
  engine.stats.step_age_s = 0.25;
  engine.stats.step_expected_s = 0.125;
  WorkerMetrics metrics;
  metrics.Attach(&engine);
  std::map<std::string, double> values;
  for (const prometheus::MetricFamily& family : metrics.Collect()) {
    for (const prometheus::ClientMetric& metric : family.metric) {
      const std::string label = metric.label.empty() ? "" : metric.label[0].value;
      values[family.name + label] = metric.counter.value + metric.gauge.value;
    }
  }
  EXPECT_EQ(values["glmserve_worker_preemptions_total"], 2);
  EXPECT_EQ(values["glmserve_worker_prefix_cache_queried_tokens_total"], 100);
  EXPECT_EQ(values["glmserve_worker_prefix_cache_hit_tokens_total"], 64);
  EXPECT_EQ(values["glmserve_worker_prefix_cache_evicted_blocks_total"], 3);
  EXPECT_EQ(values["glmserve_worker_draft_rounds_total"], 50);
  EXPECT_EQ(values["glmserve_worker_draft_tokens_total"], 90);
  EXPECT_EQ(values["glmserve_worker_draft_accepted_tokens_total1"], 40);
  EXPECT_EQ(values["glmserve_worker_draft_accepted_tokens_total2"], 20);
  EXPECT_EQ(values["glmserve_worker_drafts"], 2);
  EXPECT_DOUBLE_EQ(values["glmserve_worker_step_time_secondsbase"], 4e-3);
  EXPECT_DOUBLE_EQ(values["glmserve_worker_step_time_secondssequence"], 80e-6);
  EXPECT_DOUBLE_EQ(values["glmserve_worker_step_time_secondsprompt_token"], 20e-6);
  EXPECT_EQ(values["glmserve_worker_context_tokens"], 77);
  EXPECT_EQ(values["glmserve_worker_step_age_seconds"], 0.25);
  EXPECT_EQ(values["glmserve_worker_step_expected_seconds"], 0.125);
}

class QuietTest : public ServiceTest {
 protected:
  void SetUp() override {
    heartbeat_ms_ = 20;
    ServiceTest::SetUp();
  }
};

TEST_F(QuietTest, TheCachesDigestIsToldOnceWhenAllIsQuiet) {
  Peer router(channel_);
  router.Open();
  for (uint64_t sequence : {8, 9}) {
    engine::StepEvents events;
    events.cache_sequence = sequence;
    events.cache_changes = {{.stored = true, .block = {1, sequence}, .parent = {}}};
    events.cache_digest = 90 + sequence;
    service_->Deliver(std::move(events));
  }
  int32_t heartbeats = 0;
  uint64_t digest = 0;
  while (digest != 99) {  // a machine that stalls may find it quiet between the two
    const pb::WorkerFrame frame = router.Read();
    if (!frame.has_heartbeat()) continue;
    ++heartbeats;
    EXPECT_TRUE(frame.heartbeat().has_load());
    EXPECT_EQ(frame.heartbeat().step_age_ms(), 0u);
    digest = frame.heartbeat().cache().digest();
    EXPECT_EQ(frame.heartbeat().cache().sequence(), digest - 90 + 1);
    EXPECT_EQ(frame.heartbeat().cache().blocks_size(), 0);
  }
  EXPECT_LE(heartbeats, 2);
  // Then nothing more.
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  service_->Deliver({});
  EXPECT_TRUE(router.Read().has_step());
}

TEST_F(ServiceTest, StepTimesAreToldWhenTheyAreNews) {
  Peer router(channel_);
  router.Open();
  const auto deliver = [&](double base_us) {
    engine::StepEvents events;
    events.load.step_times.base_us = base_us;
    service_->Deliver(std::move(events));
    return router.Read().step().load();
  };
  EXPECT_FALSE(deliver(0).has_step_times()) << "nothing is known";
  EXPECT_EQ(deliver(1000).step_times().base_us(), 1000);
  EXPECT_FALSE(deliver(1020).has_step_times()) << "as said before";
  EXPECT_EQ(deliver(1100).step_times().base_us(), 1100);
  Peer second(channel_);
  second.Open();
  EXPECT_FALSE(deliver(1100).has_step_times());
  EXPECT_EQ(second.Read().step().load().step_times().base_us(), 1100) << "news to this one";
}

TEST_F(ServiceTest, CacheChangesGoToAllAndASnapshotToWhoAsked) {
  Peer first(channel_);
  Peer second(channel_);
  EXPECT_TRUE(first.Open().prefix_caching());
  second.Open();
  engine::StepEvents events;
  events.cache_sequence = 8;
  events.cache_changes = {{.stored = true, .block = {1, 2}, .parent = {}},
                          {.stored = false, .block = {3, 4}, .parent = {}}};
  events.cache_digest = 99;
  service_->Deliver(std::move(events));
  for (Peer* peer : {&first, &second}) {
    const pb::CacheChanges changes = peer->Read().step().cache();
    EXPECT_EQ(changes.sequence(), 8u);
    EXPECT_EQ(changes.digest(), 99u);
    EXPECT_THAT(changes.stored(), testing::ElementsAre(true, false));
    EXPECT_THAT(changes.blocks(), testing::ElementsAre(1, 2, 3, 4));
  }

  first.AskCacheSnapshot();
  engine_.AwaitSnapshotAsked(1);
  auto snapshot = std::make_shared<engine::CacheSnapshot>();
  snapshot->sequence = 9;
  snapshot->digest = 7;
  const size_t blocks = kSnapshotFrameBlocks + 5;
  for (uint64_t i = 0; i < blocks; ++i) {
    snapshot->blocks.push_back({.stored = true, .block = {i, i + 1}, .parent = {}});
  }
  engine::StepEvents with_snapshot;
  with_snapshot.cache_snapshot = snapshot;
  service_->Deliver(std::move(with_snapshot));
  service_->Deliver({});
  EXPECT_FALSE(first.Read().step().has_cache());
  const pb::WorkerFrame head = first.Read();
  EXPECT_TRUE(head.cache_snapshot().first());
  EXPECT_FALSE(head.cache_snapshot().last());
  const pb::WorkerFrame tail = first.Read();
  EXPECT_FALSE(tail.cache_snapshot().first());
  EXPECT_TRUE(tail.cache_snapshot().last());
  EXPECT_EQ(tail.cache_snapshot().sequence(), 9u);
  EXPECT_EQ(tail.cache_snapshot().digest(), 7u);
  EXPECT_EQ(head.cache_snapshot().blocks_size() + tail.cache_snapshot().blocks_size(),
            static_cast<int>(2 * blocks));
  EXPECT_TRUE(second.Read().has_step());
  EXPECT_TRUE(second.Read().has_step()) << "no snapshot for who did not ask";
}

}  // namespace
}  // namespace glm::worker
