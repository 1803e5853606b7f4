#include "router/fleet/session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "router/fleet/grpc_stream.h"
#include "router/thread_loop.h"
#include "tests/support/fake_worker.h"

namespace glm::router {
namespace {

using ::testing::HasSubstr;

/// What a test hears of a session and its requests, from any thread.
class Heard final : public Receiver {
 public:
  void OnOutput(const wire::Output& output) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const uint32_t id : output.token_ids()) token_ids.push_back(static_cast<int32_t>(id));
    ++outputs;
    if (output.finish() != wire::FINISH_NONE) last = output;
    changed_.notify_all();
  }
  void OnLost(const absl::Status& status) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    lost = status;
    changed_.notify_all();
  }
  Session::Events Events() {
    return {.on_ready = [this] { Set(&ready); },
            .on_draining = [this] { Set(&draining); },
            .on_end =
                [this](const absl::Status& status) {
                  const std::lock_guard<std::mutex> lock(mutex_);
                  end = status;
                  changed_.notify_all();
                }};
  }
  /// Waits until `condition` holds; false after 30 s.
  template <typename Condition>
  bool Await(Condition condition) {
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(30), condition);
  }

  // Read under Await, or when nothing can change any more.
  std::vector<int32_t> token_ids;
  int32_t outputs = 0;
  std::optional<wire::Output> last;
  std::optional<absl::Status> lost;
  std::optional<absl::Status> end;
  bool ready = false;
  bool draining = false;

 private:
  void Set(bool* flag) {
    const std::lock_guard<std::mutex> lock(mutex_);
    *flag = true;
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
};

wire::Submit MakeSubmit(const std::vector<int32_t>& prompt_ids, uint32_t max_tokens) {
  wire::Submit submit;
  for (const int32_t id : prompt_ids) submit.add_prompt_ids(static_cast<uint32_t>(id));
  submit.mutable_sampling()->set_top_p(1);
  submit.mutable_stop()->set_max_tokens(max_tokens);
  return submit;
}

class SessionTest : public ::testing::Test {
 protected:
  void Open(FakeWorkerOptions worker_options) {
    worker_options_ = worker_options;
    worker_ = FakeWorker::Start(std::move(worker_options));
    session_ = Session::Open(worker_->address(), options_, {"tiny", 500}, Rooms(), heard_.Events());
  }
  void OpenReady(FakeWorkerOptions worker_options) {
    Open(std::move(worker_options));
    ASSERT_TRUE(heard_.Await([&] { return heard_.ready || heard_.end.has_value(); }));
    ASSERT_TRUE(heard_.ready) << *heard_.end;
  }
  void TearDown() override {
    if (session_ == nullptr) return;
    session_->Close(absl::CancelledError("test ends"));
    ASSERT_TRUE(heard_.Await([&] { return heard_.end.has_value(); }));
  }
  absl::StatusOr<uint64_t> Submit(int32_t loop_index, wire::Submit submit, Receiver* receiver) {
    absl::StatusOr<uint64_t> id;
    Loop* loop = &loops_.at(loop_index);
    loop->Run([&] { id = session_->Submit(loop, std::move(submit), receiver); });
    return id;
  }

  FleetRooms Rooms() {
    return {.loops = loops_.all(),
            .index = &index_,
            .metrics = &metrics_,
            .dial = DialOverGrpc(options_)};
  }

  FleetOptions options_{.hang_timeout_ms = 600'000};
  RouterMetrics metrics_;
  FakeWorkerOptions worker_options_;
  std::unique_ptr<FakeWorker> worker_;
  Heard heard_;
  PrefixIndex index_{1000};
  LoopPool loops_{3};
  std::shared_ptr<Session> session_;
};

TEST_F(SessionTest, WelcomeGivesTheShape) {
  OpenReady({.incarnation = 77, .length_max = 99, .block_size = 8, .eos_ids = {2, 5}});
  EXPECT_TRUE(session_->accepting());
  EXPECT_EQ(session_->shape().incarnation, 77u);
  EXPECT_EQ(session_->shape().length_max, 99);
  EXPECT_EQ(session_->shape().block_size, 8);
  EXPECT_EQ(session_->shape().eos_ids, (std::vector<int32_t>{2, 5}));
}

TEST_F(SessionTest, AnswersReachTheLoopsTheyWereAskedOn) {
  OpenReady({});
  constexpr int32_t kRequests = 30;
  std::vector<std::unique_ptr<Heard>> heard;
  for (int32_t i = 0; i < kRequests; ++i) {
    heard.push_back(std::make_unique<Heard>());
    ASSERT_TRUE(Submit(i % 3, MakeSubmit({10, i}, 5), heard.back().get()).ok());
  }
  for (int32_t i = 0; i < kRequests; ++i) {
    ASSERT_TRUE(heard[i]->Await([&] { return heard[i]->last.has_value(); }));
    EXPECT_EQ(heard[i]->last->finish(), wire::FINISH_LENGTH);
    EXPECT_EQ(heard[i]->token_ids, FakeAnswer(worker_options_, {10, i}, 5));
    EXPECT_FALSE(heard[i]->lost.has_value());
  }
}

TEST_F(SessionTest, LoadCountsWhatWasSentBeforeTheWorkerSaysIt) {
  OpenReady({.automatic = false});
  Heard first;
  Heard second;
  ASSERT_TRUE(Submit(0, MakeSubmit({1, 2, 3}, 2), &first).ok());
  const absl::StatusOr<uint64_t> id = Submit(1, MakeSubmit({1, 2, 3, 4}, 2), &second);
  ASSERT_TRUE(id.ok());
  EXPECT_EQ(session_->Load().requests, 2);
  EXPECT_EQ(session_->Load().tokens_waiting, 7);

  loops_.at(1).Run([&] { session_->Cancel(&loops_.at(1), *id); });
  ASSERT_TRUE(worker_->AwaitLive(1));
  EXPECT_EQ(session_->Load().tokens_waiting, 3);
  EXPECT_EQ(session_->Load().requests, 1);

  worker_->Step();  // the first token: the prompt is computed
  ASSERT_TRUE(first.Await([&] { return first.token_ids.size() == 1; }));
  EXPECT_EQ(session_->Load().tokens_waiting, 0);
  worker_->Step();
  ASSERT_TRUE(first.Await([&] { return first.last.has_value(); }));
}

TEST_F(SessionTest, LogprobsOfAPromptThatIsNotComputedYetSettleNoLoad) {
  OpenReady({.automatic = false});
  Heard heard;
  wire::Submit submit = MakeSubmit({1, 2, 3, 4}, 1);
  submit.mutable_sampling()->set_prompt_logprobs(0);
  ASSERT_TRUE(Submit(0, submit, &heard).ok());
  ASSERT_TRUE(worker_->AwaitLive(1));
  worker_->Step();
  bool without_tokens = false;
  ASSERT_TRUE(heard.Await([&] {
    without_tokens = heard.token_ids.empty();
    return heard.outputs == 1;
  }));
  EXPECT_TRUE(without_tokens);
  EXPECT_EQ(session_->Load().tokens_waiting, 4);
  worker_->Step();
  ASSERT_TRUE(heard.Await([&] { return heard.last.has_value(); }));
  EXPECT_EQ(session_->Load().tokens_waiting, 0);
}

TEST_F(SessionTest, LoadOfOthersIsHeard) {
  OpenReady({.automatic = false});
  wire::Load load;
  load.set_requests_running(3);
  load.set_requests_waiting(4);
  load.set_tokens_waiting(500);
  load.set_kv_blocks_used(60);
  load.set_kv_blocks_total(100);
  worker_->SayLoad(load);
  Heard heard;  // an answer behind the load says that the load has come
  ASSERT_TRUE(Submit(0, MakeSubmit({1}, 1), &heard).ok());
  ASSERT_TRUE(worker_->AwaitLive(1));
  worker_->Step();
  ASSERT_TRUE(heard.Await([&] { return heard.last.has_value(); }));
  EXPECT_GE(session_->Load().requests, 7);
  EXPECT_EQ(session_->Load().tokens_waiting, 500);
  EXPECT_EQ(session_->Load().kv_blocks_used, 60);
  EXPECT_EQ(session_->Load().kv_blocks_total, 100);
}

TEST_F(SessionTest, CachedTokensOfAPromptAreNoLoad) {
  OpenReady({.automatic = false});
  Heard heard;
  loops_.at(0).Run([&] {
    ASSERT_TRUE(session_->Submit(&loops_.at(0), MakeSubmit({1, 2, 3, 4, 5}, 1), &heard, 3).ok());
  });
  EXPECT_EQ(session_->Load().tokens_waiting, 2);
  ASSERT_TRUE(worker_->AwaitLive(1));
  worker_->Step();
  ASSERT_TRUE(heard.Await([&] { return heard.last.has_value(); }));
  EXPECT_EQ(session_->Load().tokens_waiting, 0);
}

TEST_F(SessionTest, StepTimesAreKeptUntilOthersAreTold) {
  OpenReady({.automatic = false});
  EXPECT_FALSE(session_->Load().step_times.known());
  const auto say = [&](const wire::Load& load) {
    worker_->SayLoad(load);
    Heard heard;  // an answer behind the load says that the load has come
    ASSERT_TRUE(Submit(0, MakeSubmit({1}, 1), &heard).ok());
    ASSERT_TRUE(worker_->AwaitLive(1));
    worker_->Step();
    ASSERT_TRUE(heard.Await([&] { return heard.last.has_value(); }));
  };
  wire::Load load;
  load.set_context_tokens(4321);
  load.mutable_step_times()->set_base_us(8000);
  load.mutable_step_times()->set_sequence_us(100);
  load.mutable_step_times()->set_prompt_token_us(20);
  load.mutable_step_times()->set_context_token_us(0.5f);
  say(load);
  for (int32_t i = 0; i < 2; ++i) {
    const WorkerLoad heard = session_->Load();
    EXPECT_NEAR(heard.step_times.base_s, 8e-3, 1e-9);
    EXPECT_NEAR(heard.step_times.sequence_s, 1e-4, 1e-9);
    EXPECT_NEAR(heard.step_times.prompt_token_s, 2e-5, 1e-9);
    EXPECT_NEAR(heard.step_times.context_token_s, 5e-7, 1e-12);
    EXPECT_EQ(heard.context_tokens, 4321);
    EXPECT_GE(heard.silent_s, 0);
    EXPECT_LT(heard.silent_s, 60);
    load.clear_step_times();  // as said before
    say(load);
  }
  // What is no time counts as none.
  load.mutable_step_times()->set_base_us(std::numeric_limits<float>::quiet_NaN());
  load.mutable_step_times()->set_sequence_us(-5);
  load.mutable_step_times()->set_prompt_token_us(std::numeric_limits<float>::infinity());
  say(load);
  EXPECT_FALSE(session_->Load().step_times.known());
}

TEST_F(SessionTest, CancelReachesTheWorkerAndSilencesTheReceiver) {
  OpenReady({.automatic = false});
  Heard heard;
  const absl::StatusOr<uint64_t> id = Submit(2, MakeSubmit({1}, 100), &heard);
  ASSERT_TRUE(id.ok());
  ASSERT_TRUE(worker_->AwaitLive(1));
  worker_->Step();
  ASSERT_TRUE(heard.Await([&] { return heard.token_ids.size() == 1; }));
  loops_.at(2).Run([&] { session_->Cancel(&loops_.at(2), *id); });
  ASSERT_TRUE(worker_->AwaitLive(0));
  EXPECT_EQ(worker_->seen().cancels, 1);
  loops_.at(2).Run([&] { session_->Cancel(&loops_.at(2), *id); });  // nothing is sent twice
  Heard other;
  ASSERT_TRUE(Submit(2, MakeSubmit({1}, 1), &other).ok());
  ASSERT_TRUE(worker_->AwaitLive(1));
  EXPECT_EQ(worker_->seen().cancels, 1);
  EXPECT_EQ(heard.token_ids.size(), 1u);
  worker_->Step();
  ASSERT_TRUE(other.Await([&] { return other.last.has_value(); }));
}

TEST_F(SessionTest, ABrokenStreamLosesEveryRequestOfEveryLoop) {
  OpenReady({.automatic = false});
  Heard heard[3];
  for (int32_t i = 0; i < 3; ++i) ASSERT_TRUE(Submit(i, MakeSubmit({1}, 100), &heard[i]).ok());
  ASSERT_TRUE(worker_->AwaitLive(3));
  worker_->BreakSessions(absl::InternalError("out of order"));
  for (Heard& one : heard) {
    ASSERT_TRUE(one.Await([&] { return one.lost.has_value(); }));
    EXPECT_EQ(one.lost->code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(one.lost->message()), HasSubstr("out of order"));
    EXPECT_FALSE(one.last.has_value());
  }
  ASSERT_TRUE(heard_.Await([&] { return heard_.end.has_value(); }));
  EXPECT_FALSE(session_->accepting());
  EXPECT_EQ(Submit(0, MakeSubmit({1}, 1), &heard[0]).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(session_->Load().tokens_waiting, 0);
}

TEST_F(SessionTest, ADrainingWorkerFinishesButTakesNothingNew) {
  OpenReady({.automatic = false});
  Heard heard;
  ASSERT_TRUE(Submit(0, MakeSubmit({1}, 2), &heard).ok());
  ASSERT_TRUE(worker_->AwaitLive(1));
  worker_->SetDraining(true);
  ASSERT_TRUE(heard_.Await([&] { return heard_.draining; }));
  EXPECT_FALSE(session_->accepting());
  Heard other;
  EXPECT_FALSE(Submit(0, MakeSubmit({1}, 2), &other).ok());
  worker_->Step();
  worker_->Step();
  ASSERT_TRUE(heard.Await([&] { return heard.last.has_value(); }));
  EXPECT_EQ(heard.token_ids.size(), 2u);
}

TEST_F(SessionTest, AFullOutBufferEndsTheSession) {
  options_.session_out_bytes_max = 1000;
  OpenReady({.automatic = false});
  Heard heard;
  const std::vector<int32_t> long_prompt(2000, 7);
  EXPECT_EQ(Submit(0, MakeSubmit(long_prompt, 1), &heard).status().code(),
            absl::StatusCode::kUnavailable);
  ASSERT_TRUE(heard_.Await([&] { return heard_.end.has_value(); }));
  EXPECT_EQ(heard_.end->code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(heard_.end->message()), HasSubstr("1000"));
}

struct RefusedWelcome {
  std::string name;
  FakeWorkerOptions worker;
  std::string says;
};

class WelcomeTest : public SessionTest, public ::testing::WithParamInterface<RefusedWelcome> {};

TEST_P(WelcomeTest, IsRefused) {
  Open(GetParam().worker);
  ASSERT_TRUE(heard_.Await([&] { return heard_.end.has_value(); }));
  EXPECT_FALSE(heard_.ready);
  EXPECT_EQ(heard_.end->code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(heard_.end->message()), HasSubstr(GetParam().says));
}

INSTANTIATE_TEST_SUITE_P(
    Reasons, WelcomeTest,
    ::testing::Values(
        RefusedWelcome{"Protocol", {.protocol_version = 2}, "speaks protocol version 2"},
        RefusedWelcome{"Model", {.model_name = "other"}, "serves model 'other', not 'tiny'"},
        RefusedWelcome{"Vocabulary", {.vocabulary = 499}, "vocabulary is 499"},
        RefusedWelcome{"Length", {.length_max = 1}, "length_max=1"}),
    [](const auto& info) { return info.param.name; });

TEST(SessionDialTest, NobodyThereEndsUnavailable) {
  int32_t port = 0;
  {
    const std::unique_ptr<FakeWorker> worker = FakeWorker::Start();
    port = worker->port();
  }
  LoopPool loops(1);
  PrefixIndex index(10);
  RouterMetrics metrics;
  Heard heard;
  const auto session = Session::Open(
      "127.0.0.1:" + std::to_string(port), FleetOptions(), {"tiny", 1},
      {.loops = loops.all(), .index = &index, .metrics = &metrics, .dial = DialOverGrpc({})},
      heard.Events());
  ASSERT_TRUE(heard.Await([&] { return heard.end.has_value(); }));
  EXPECT_EQ(heard.end->code(), absl::StatusCode::kUnavailable);
}

TEST_F(SessionTest, TheIndexFollowsTheWorkersCache) {
  FakeWorkerOptions options;
  options.prefix_caching = true;
  OpenReady(options);
  EXPECT_EQ(session_->cache_slot(), 0);
  const auto await_blocks = [&](int64_t blocks) {
    for (int32_t i = 0; i < 3000 && index_.blocks() != blocks; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return index_.blocks();
  };
  ASSERT_TRUE(worker_->Await([](const auto& seen) { return seen.snapshots == 1; }));
  std::vector<int32_t> prompt(40, 5);  // two full blocks of 16
  Heard request;
  ASSERT_TRUE(Submit(0, MakeSubmit(prompt, 1), &request).ok());
  EXPECT_EQ(await_blocks(2), 2);
  ASSERT_TRUE(request.Await([&] { return request.last.has_value(); }));
  // A gap is seen, and mended by a snapshot.
  worker_->StoreInSecret({77, 78});
  prompt.assign(20, 6);
  Heard other;
  ASSERT_TRUE(Submit(0, MakeSubmit(prompt, 1), &other).ok());
  ASSERT_TRUE(other.Await([&] { return other.last.has_value(); }));
  ASSERT_TRUE(worker_->Await([](const auto& seen) { return seen.snapshots == 2; }));
  EXPECT_EQ(await_blocks(4), 4);
  worker_->BreakSessions(absl::UnavailableError("gone"));
  EXPECT_EQ(await_blocks(0), 0);
}

}  // namespace
}  // namespace glm::router
