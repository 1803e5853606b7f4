#include "router/fleet/fleet.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "router/fleet/grpc_stream.h"
#include "router/thread_loop.h"
#include "tests/support/fake_worker.h"

namespace glm::router {
namespace {

using ::testing::ElementsAre;

class FleetTest : public ::testing::Test {
 protected:
  void StartFleet(std::vector<std::string> addresses) {
    options_.workers = std::move(addresses);
    fleet_ = std::make_unique<Fleet>(options_, WorkerDemand{"tiny", 500},
                                     FleetRooms{.loops = loops_.all(),
                                                .index = &index_,
                                                .metrics = &metrics_,
                                                .dial = DialOverGrpc(options_),
                                                .on_room = [this] { ++rooms_told_; }},
                                     [this](const FleetSnapshot& snapshot) {
                                       const std::lock_guard<std::mutex> lock(mutex_);
                                       states_.clear();
                                       for (const FleetWorker& worker : snapshot.workers) {
                                         states_.push_back(worker.state);
                                         if (worker.state == WorkerState::kConnecting) ++dials_;
                                       }
                                       ejected_ = snapshot.ejected;
                                       changed_.notify_all();
                                     });
    fleet_->Start();
  }
  bool AwaitStates(const std::vector<WorkerState>& states) {
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(30), [&] { return states_ == states; });
  }
  bool AwaitDials(int32_t dials) {
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(30), [&] { return dials_ >= dials; });
  }

  bool AwaitEjected(int32_t ejected) {
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(30), [&] { return ejected_ == ejected; });
  }

  FleetOptions options_{.backoff_initial_ms = 5, .backoff_max_ms = 20};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<WorkerState> states_;
  int32_t dials_ = 0;
  int32_t ejected_ = 0;
  std::atomic<int32_t> rooms_told_{0};
  PrefixIndex index_{1000};
  RouterMetrics metrics_;
  LoopPool loops_{2};
  std::unique_ptr<Fleet> fleet_;
};

TEST_F(FleetTest, ConnectsToAllAndKnowsTheSmallestLength) {
  const auto first = FakeWorker::Start({.length_max = 300});
  const auto second = FakeWorker::Start({.length_max = 200});
  StartFleet({first->address(), second->address()});
  ASSERT_TRUE(AwaitStates({WorkerState::kReady, WorkerState::kReady}));
  const auto snapshot = fleet_->Snapshot();
  EXPECT_EQ(snapshot->ready, 2);
  EXPECT_EQ(snapshot->length_max, 200);
  EXPECT_EQ(snapshot->workers[0].address, first->address());
  EXPECT_EQ(snapshot->workers[1].session->shape().length_max, 200);
  EXPECT_TRUE(fleet_->ready());
}

TEST_F(FleetTest, AWorkerThatDiesIsAvoidedAndTakenBack) {
  auto first = FakeWorker::Start();
  const auto second = FakeWorker::Start();
  const int32_t port = first->port();
  StartFleet({first->address(), second->address()});
  ASSERT_TRUE(AwaitStates({WorkerState::kReady, WorkerState::kReady}));
  const auto before = fleet_->Snapshot();
  first = nullptr;
  ASSERT_TRUE(AwaitStates({WorkerState::kDown, WorkerState::kReady}));
  EXPECT_FALSE(before->workers[0].session->accepting());  // an old snapshot is no trap
  EXPECT_EQ(fleet_->Snapshot()->workers[0].session, nullptr);
  EXPECT_TRUE(fleet_->ready());

  first = FakeWorker::Start({.port = port, .incarnation = 2});
  ASSERT_TRUE(AwaitStates({WorkerState::kReady, WorkerState::kReady}));
  EXPECT_EQ(fleet_->Snapshot()->workers[0].session->shape().incarnation, 2u);
}

TEST_F(FleetTest, DialsAgainAndAgainUntilSomebodyIsThere) {
  auto worker = FakeWorker::Start();
  const int32_t port = worker->port();
  const std::string address = worker->address();
  worker = nullptr;
  StartFleet({address});
  ASSERT_TRUE(AwaitDials(4));
  EXPECT_FALSE(fleet_->ready());
  worker = FakeWorker::Start({.port = port});
  ASSERT_TRUE(AwaitStates({WorkerState::kReady}));
}

TEST_F(FleetTest, AWorkerWithAnotherModelStaysOut) {
  const auto worker = FakeWorker::Start({.model_name = "other"});
  StartFleet({worker->address()});
  ASSERT_TRUE(AwaitDials(3));
  EXPECT_FALSE(fleet_->ready());
}

TEST_F(FleetTest, AWorkerThatNeverWelcomesIsGivenUp) {
  options_.connect_timeout_ms = 50;
  const auto worker = FakeWorker::Start({.welcomes = false});
  StartFleet({worker->address()});
  ASSERT_TRUE(AwaitDials(3));
  EXPECT_FALSE(fleet_->ready());
}

TEST_F(FleetTest, ADrainingWorkerIsNotReady) {
  const auto first = FakeWorker::Start();
  const auto second = FakeWorker::Start();
  StartFleet({first->address(), second->address()});
  ASSERT_TRUE(AwaitStates({WorkerState::kReady, WorkerState::kReady}));
  first->SetDraining(true);
  ASSERT_TRUE(AwaitStates({WorkerState::kDraining, WorkerState::kReady}));
  EXPECT_FALSE(fleet_->Snapshot()->workers[0].session->accepting());
  EXPECT_EQ(fleet_->Snapshot()->ready, 1);
}

TEST_F(FleetTest, SaysHowMuchRoomThereIsAndWhenThereIsMore) {
  options_.worker_queue_requests = 2;
  const FleetRooms nobody{.loops = loops_.all(),
                          .index = &index_,
                          .metrics = &metrics_,
                          .dial = DialOverGrpc(options_)};
  EXPECT_EQ(Fleet(options_, {}, nobody, nullptr).Room(), -1);
  const auto first = FakeWorker::Start({.sequences_max = 3});
  const auto second = FakeWorker::Start({.sequences_max = 4});
  StartFleet({first->address(), second->address()});
  ASSERT_TRUE(AwaitStates({WorkerState::kReady, WorkerState::kReady}));
  EXPECT_EQ(fleet_->Room(), 11);
  EXPECT_GT(rooms_told_, 0);
  first->SetDraining(true);
  ASSERT_TRUE(AwaitStates({WorkerState::kDraining, WorkerState::kReady}));
  EXPECT_EQ(fleet_->Room(), 6);
}

TEST_F(FleetTest, AnEjectedWorkerIsSaidToBeAndIsTakenBack) {
  options_.eject_errors = 2;
  options_.eject_ms = 300;
  options_.worker_queue_requests = 0;
  const auto first = FakeWorker::Start({.sequences_max = 3});
  const auto second = FakeWorker::Start({.sequences_max = 4});
  StartFleet({first->address(), second->address()});
  ASSERT_TRUE(AwaitStates({WorkerState::kReady, WorkerState::kReady}));
  fleet_->TakeFault(first->address(), WorkerFault::kError);
  fleet_->TakeSuccess(first->address());
  fleet_->TakeFault(first->address(), WorkerFault::kError);
  EXPECT_EQ(fleet_->Snapshot()->ejected, 0);
  fleet_->TakeFault(first->address(), WorkerFault::kError);
  ASSERT_TRUE(AwaitEjected(1));
  EXPECT_TRUE(fleet_->Snapshot()->workers[0].ejected);
  EXPECT_EQ(fleet_->Room(), 4);  // the other's
  EXPECT_THAT(metrics_.Text(), ::testing::HasSubstr("glmserve_router_worker_ejections_total 1"));
  EXPECT_THAT(metrics_.Text(), ::testing::HasSubstr("glmserve_router_workers_ejected 1"));
  // Where there is no other it is asked all the same.
  second->SetDraining(true);
  ASSERT_TRUE(AwaitStates({WorkerState::kReady, WorkerState::kDraining}));
  EXPECT_EQ(fleet_->Room(), 3);
  ASSERT_TRUE(AwaitEjected(0));  // by itself
  EXPECT_FALSE(fleet_->Snapshot()->workers[0].ejected);
}

TEST_F(FleetTest, StopEndsEverySession) {
  const auto worker = FakeWorker::Start();
  StartFleet({worker->address()});
  ASSERT_TRUE(AwaitStates({WorkerState::kReady}));
  fleet_->Stop();
  ASSERT_TRUE(worker->AwaitSessions(0));
  fleet_->Stop();  // once is enough, twice is harmless
}

TEST_F(FleetTest, MembersComeAndGoAsTheSourcesSay) {
  const auto first = FakeWorker::Start();
  const auto second = FakeWorker::Start();
  StartFleet({first->address()});
  ASSERT_TRUE(AwaitStates({WorkerState::kReady}));
  ASSERT_TRUE(fleet_->SetMembers(MemberSource::kFile, {second->address()}).ok());
  ASSERT_TRUE(AwaitStates({WorkerState::kReady, WorkerState::kReady}));
  // Named by two, it stays when one of them no longer does.
  ASSERT_TRUE(fleet_->SetMembers(MemberSource::kDns, {second->address()}).ok());
  ASSERT_TRUE(fleet_->SetMembers(MemberSource::kFile, {}).ok());
  ASSERT_TRUE(fleet_->SetMembers(MemberSource::kStatic, {}).ok());
  ASSERT_TRUE(AwaitStates({WorkerState::kReady}));
  EXPECT_EQ(fleet_->Snapshot()->workers[0].address, second->address());
  ASSERT_TRUE(first->AwaitSessions(0));
  ASSERT_TRUE(fleet_->SetMembers(MemberSource::kDns, {}).ok());
  ASSERT_TRUE(AwaitStates({}));
  EXPECT_FALSE(fleet_->ready());
  // And back again.
  ASSERT_TRUE(fleet_->SetMembers(MemberSource::kRegistry, {first->address()}).ok());
  ASSERT_TRUE(AwaitStates({WorkerState::kReady}));
}

/// Submits a request that a fake worker never ends by itself.
class Request final : public Receiver {
 public:
  Request(Loop* loop, const std::shared_ptr<Session>& session) {
    wire::Submit submit;
    submit.add_prompt_ids(7);
    submit.mutable_stop()->set_max_tokens(100);
    loop->Run([&] { EXPECT_TRUE(session->Submit(loop, submit, this).ok()); });
  }
  void OnOutput(const wire::Output&) override {}
  void OnLost(const absl::Status& status) override { lost.set_value(status); }
  std::promise<absl::Status> lost;
};

TEST_F(FleetTest, AWorkerThatLeavesFinishesWhatItHas) {
  const auto worker = FakeWorker::Start({.automatic = false});
  StartFleet({worker->address()});
  ASSERT_TRUE(AwaitStates({WorkerState::kReady}));
  const auto session = fleet_->Snapshot()->workers[0].session;
  const Request request(&loops_.at(1), session);
  ASSERT_TRUE(worker->AwaitLive(1));
  ASSERT_TRUE(fleet_->SetMembers(MemberSource::kStatic, {}).ok());
  ASSERT_TRUE(AwaitStates({WorkerState::kDraining}));
  EXPECT_FALSE(session->accepting());
  EXPECT_EQ(worker->seen().sessions, 1) << "the stream is kept for the request";
  // Named anew, it is dialled when the old session is over, and that takes no more requests.
  ASSERT_TRUE(fleet_->SetMembers(MemberSource::kStatic, {worker->address()}).ok());
  for (int32_t i = 0; i < 100; ++i) worker->Step();
  ASSERT_TRUE(AwaitStates({WorkerState::kReady}));
  EXPECT_NE(fleet_->Snapshot()->workers[0].session, session);
  ASSERT_TRUE(worker->AwaitSessions(1));
}

TEST_F(FleetTest, AWorkerThatLeavesAndDoesNotEndIsCutOff) {
  options_.leave_timeout_s = 0;
  const auto worker = FakeWorker::Start({.automatic = false});
  StartFleet({worker->address()});
  ASSERT_TRUE(AwaitStates({WorkerState::kReady}));
  Request request(&loops_.at(0), fleet_->Snapshot()->workers[0].session);
  ASSERT_TRUE(fleet_->SetMembers(MemberSource::kStatic, {}).ok());
  const absl::Status lost = request.lost.get_future().get();
  EXPECT_EQ(lost.code(), absl::StatusCode::kUnavailable) << "so it is sent elsewhere";
  EXPECT_THAT(std::string(lost.message()), ::testing::HasSubstr("no source names it any more"));
  ASSERT_TRUE(AwaitStates({}));
}

TEST_F(FleetTest, AWorkerThatIsDialledInVainIsForgottenAtOnce) {
  const auto silent = FakeWorker::Start({.welcomes = false});
  auto dead = FakeWorker::Start();
  const std::string nobody = dead->address();
  dead = nullptr;
  StartFleet({silent->address(), nobody});
  ASSERT_TRUE(silent->AwaitSessions(1));
  ASSERT_TRUE(AwaitDials(4));
  ASSERT_TRUE(fleet_->SetMembers(MemberSource::kStatic, {}).ok());
  ASSERT_TRUE(AwaitStates({}));
}

TEST_F(FleetTest, TooManyMembersAreRefusedAndNothingChanges) {
  const auto worker = FakeWorker::Start();
  StartFleet({worker->address()});
  ASSERT_TRUE(AwaitStates({WorkerState::kReady}));
  const std::vector<std::string> many = [] {
    std::vector<std::string> addresses;
    for (int32_t i = 0; i < kMembersMax; ++i) {
      addresses.push_back("127.0.0.1:" + std::to_string(i + 1));
    }
    return addresses;
  }();
  const absl::Status refused = fleet_->SetMembers(MemberSource::kFile, many);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), ::testing::HasSubstr("the limit is 1024"));
  EXPECT_EQ(fleet_->Snapshot()->workers.size(), 1u);
}

TEST(BackoffTest, DoublesUpToTheCapAndJittersByItsShare) {
  const FleetOptions options{
      .backoff_initial_ms = 100, .backoff_max_ms = 1000, .backoff_jitter = 0.2};
  std::vector<int32_t> plain;
  for (int32_t failures = 1; failures <= 6; ++failures) {
    plain.push_back(BackoffMs(options, failures, 0.5));
  }
  EXPECT_THAT(plain, ElementsAre(100, 200, 400, 800, 1000, 1000));
  EXPECT_EQ(BackoffMs(options, 1'000'000, 0.5), 1000);
  EXPECT_EQ(BackoffMs(options, 1, 0), 80);
  EXPECT_EQ(BackoffMs(options, 1, 1), 120);
}

}  // namespace
}  // namespace glm::router
