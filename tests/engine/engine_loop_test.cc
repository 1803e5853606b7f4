#include "engine/engine_loop.h"

#include "engine/schedule/step_time.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <memory>
#include <thread>

#include "tests/support/fake_runner.h"

namespace glm::engine {
namespace {

constexpr int32_t kVocabulary = 50;

/// A sink that keeps what it hears, and lets a test wait for it.
class Listener {
 public:
  Engine::Sink sink() {
    return [this](StepEvents&& events) {
      MutexLock lock(&mutex_);
      for (const RequestEvent& event : events.requests) {
        EXPECT_FALSE(ends_.contains(event.id))
            << "request " << event.id << " goes on after its end";
        std::vector<int32_t>& ids = tokens_[event.id];
        ids.insert(ids.end(), event.token_ids.begin(), event.token_ids.end());
        if (event.finish != FinishReason::kNone) ends_[event.id] = event;
      }
      load_ = events.load;
      EXPECT_EQ(events.cache_sequence, cache_changes_ + 1);
      cache_changes_ += events.cache_changes.size();
      cache_digest_ = events.cache_digest;
      if (events.cache_snapshot != nullptr) snapshots_.push_back(events.cache_snapshot);
      EXPECT_GE(events.step, step_) << "events come in step order";
      step_ = events.step;
      changed_.SignalAll();
    };
  }
  FinishReason AwaitEnd(RequestId id) {
    MutexLock lock(&mutex_);
    while (!ends_.contains(id)) changed_.Wait(&mutex_);
    return ends_.at(id).finish;
  }
  void AwaitTokens(RequestId id, size_t count) {
    MutexLock lock(&mutex_);
    while (tokens_[id].size() < count) changed_.Wait(&mutex_);
  }
  std::vector<int32_t> tokens(RequestId id) {
    MutexLock lock(&mutex_);
    return tokens_[id];
  }
  size_t ends() {
    MutexLock lock(&mutex_);
    return ends_.size();
  }
  EngineLoad load() {
    MutexLock lock(&mutex_);
    return load_;
  }
  RequestEvent end(RequestId id) {
    MutexLock lock(&mutex_);
    return ends_.at(id);
  }
  std::shared_ptr<const CacheSnapshot> AwaitSnapshot(size_t count) {
    MutexLock lock(&mutex_);
    while (snapshots_.size() < count) changed_.Wait(&mutex_);
    return snapshots_[count - 1];
  }
  uint64_t cache_changes() {
    MutexLock lock(&mutex_);
    return cache_changes_;
  }
  uint64_t cache_digest() {
    MutexLock lock(&mutex_);
    return cache_digest_;
  }
  /// Before another engine.
  void Restart() {
    MutexLock lock(&mutex_);
    step_ = 0;
    cache_changes_ = 0;
  }
  /// Before an id is used again.
  void Forget(RequestId id) {
    MutexLock lock(&mutex_);
    ends_.erase(id);
    tokens_.erase(id);
  }

 private:
  Mutex mutex_;
  Condition changed_;
  uint64_t step_ ABSL_GUARDED_BY(mutex_) = 0;
  EngineLoad load_ ABSL_GUARDED_BY(mutex_);
  uint64_t cache_changes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t cache_digest_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<std::shared_ptr<const CacheSnapshot>> snapshots_ ABSL_GUARDED_BY(mutex_);
  std::map<RequestId, std::vector<int32_t>> tokens_ ABSL_GUARDED_BY(mutex_);
  std::map<RequestId, RequestEvent> ends_ ABSL_GUARDED_BY(mutex_);
};

struct Sizes {
  int32_t kv_blocks = 32;
  int32_t sequences_max = 4;
  int32_t plans_in_flight_max = 1;
  int32_t waiting_max = 100;
  bool prefix_caching = false;
  int32_t drafts_max = 0;
};

class EngineLoopTest : public testing::Test {
 protected:
  void Start(const Sizes& sizes) {
    SchedulerLimits limits;
    limits.block_size = 4;
    limits.kv_blocks = sizes.kv_blocks;
    limits.length_max = std::min(64, sizes.kv_blocks * 4);
    limits.sequences_max = sizes.sequences_max;
    limits.batched_tokens_max = 16;
    limits.logit_rows_max = 16;
    limits.vocabulary = kVocabulary;
    limits.prefix_caching = sizes.prefix_caching;
    limits.drafts_max = sizes.drafts_max;
    limits.plans_in_flight_max = sizes.plans_in_flight_max;
    EngineShape shape;
    shape.vocabulary = kVocabulary;
    shape.length_max = limits.length_max;
    shape.block_size = limits.block_size;
    shape.kv_blocks_total = limits.kv_blocks;
    shape.sequences_max = limits.sequences_max;
    shape.prefix_caching = limits.prefix_caching;
    shape.drafts_max = limits.drafts_max;
    auto runner = std::make_unique<FakeRunner>(limits);
    runner_ = runner.get();
    engine_ = std::make_unique<EngineLoop>(shape, limits, sizes.waiting_max, std::move(runner),
                                           listener_.sink());
  }
  // A test that failed before a closed gate must still end.
  void TearDown() override { runner_->OpenGate(); }

  static Request MakeRequest(RequestId id, int32_t prompt_tokens, int32_t max_tokens) {
    Request request;
    request.id = id;
    for (int32_t i = 0; i < prompt_tokens; ++i) {
      request.prompt_ids.push_back(static_cast<int32_t>((id * 11 + i * 5) % kVocabulary));
    }
    request.sampling.seed = id;
    request.stop.max_tokens = max_tokens;
    return request;
  }

  Listener listener_;
  FakeRunner* runner_ = nullptr;
  std::unique_ptr<EngineLoop> engine_;
};

class EngineLoopDepthTest : public EngineLoopTest, public testing::WithParamInterface<int32_t> {};
INSTANTIATE_TEST_SUITE_P(StepsInFlight, EngineLoopDepthTest, testing::Values(1, 2));

TEST_P(EngineLoopDepthTest, ServesRequestsSubmittedFromManyThreads) {
  Start({.kv_blocks = 20, .plans_in_flight_max = GetParam()});
  constexpr int kThreads = 4;
  constexpr int kEach = 25;
  const auto request_of = [](RequestId id) {
    return MakeRequest(id, static_cast<int32_t>(1 + id % 20), static_cast<int32_t>(1 + id % 13));
  };
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([this, t, &request_of] {
      for (int i = 1; i <= kEach; ++i) {
        EXPECT_TRUE(engine_->Submit(request_of(t * kEach + i)).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  uint64_t generated = 0;
  for (RequestId id = 1; id <= kThreads * kEach; ++id) {
    EXPECT_EQ(listener_.AwaitEnd(id), FinishReason::kLength);
    const FakeAnswer answer = FakeAnswerTo(request_of(id), kVocabulary);
    EXPECT_EQ(listener_.tokens(id), answer.token_ids) << "request " << id;
    generated += answer.token_ids.size();
  }
  engine_->Stop();
  const EngineStats stats = engine_->Stats();
  EXPECT_EQ(stats.requests_finished_length, static_cast<uint64_t>(kThreads * kEach));
  EXPECT_EQ(stats.requests_finished_stop + stats.requests_cancelled, 0u);
  EXPECT_EQ(stats.generated_tokens, generated);
  EXPECT_GE(stats.prompt_tokens, static_cast<uint64_t>(kThreads * kEach));
  EXPECT_GT(stats.steps, 0u);
  EXPECT_GT(stats.step_seconds, 0);
  EXPECT_EQ(stats.load.requests_waiting, 0);
  EXPECT_EQ(stats.load.kv_blocks_used, 0);
  EXPECT_EQ(stats.load.kv_blocks_total, 20);
}

TEST_F(EngineLoopTest, CancelFreesTheBlocksBeforeTheNextStepRuns) {
  Start({});
  runner_->CloseGate();
  ASSERT_TRUE(engine_->Submit(MakeRequest(1, 9, 50)).ok());
  runner_->AwaitWaiter();
  EXPECT_EQ(engine_->Stats().load.kv_blocks_used, 3);
  ASSERT_TRUE(engine_->Submit(MakeRequest(2, 3, 50)).ok());
  engine_->Cancel(1);
  engine_->Cancel(1);
  engine_->Cancel(77);  // not live: ignored
  runner_->PassOne();
  EXPECT_EQ(listener_.AwaitEnd(1), FinishReason::kCancelled);
  runner_->AwaitWaiter();
  // Step 2 stands before the gate: it holds one block for request 2, and none for request 1.
  const EngineStats stats = engine_->Stats();
  EXPECT_EQ(stats.steps, 1u);
  EXPECT_EQ(stats.load.kv_blocks_used, 1);
  EXPECT_EQ(stats.requests_cancelled, 1u);
  EXPECT_EQ(listener_.tokens(1).size(), 1u);
  runner_->OpenGate();
  EXPECT_EQ(listener_.AwaitEnd(2), FinishReason::kLength);
}

TEST_F(EngineLoopTest, TwoStepsAreHandedOverBeforeTheFirstResult) {
  Start({.plans_in_flight_max = 2});
  runner_->CloseGate();
  ASSERT_TRUE(engine_->Submit(MakeRequest(1, 4, 3)).ok());
  runner_->AwaitWaiter();
  // The first step needs one block, the second one more for its token: both are planned.
  EXPECT_EQ(engine_->Stats().load.kv_blocks_used, 2);
  EXPECT_EQ(engine_->Stats().steps, 0u);
  runner_->OpenGate();
  EXPECT_EQ(listener_.AwaitEnd(1), FinishReason::kLength);
}

TEST_F(EngineLoopTest, ALateCancelDoesNotHitTheNextRequestOfThatId) {
  Start({});
  runner_->CloseGate();
  ASSERT_TRUE(engine_->Submit(MakeRequest(1, 2, 1)).ok());
  runner_->AwaitWaiter();
  engine_->Cancel(1);
  runner_->PassOne();
  EXPECT_EQ(listener_.AwaitEnd(1), FinishReason::kLength);
  listener_.Forget(1);
  runner_->OpenGate();
  ASSERT_TRUE(engine_->Submit(MakeRequest(1, 2, 5)).ok());
  EXPECT_EQ(listener_.AwaitEnd(1), FinishReason::kLength);
  EXPECT_EQ(listener_.tokens(1).size(), 5u);
}

TEST_F(EngineLoopTest, RefusesMoreThanWaitingMax) {
  Start({.sequences_max = 1, .waiting_max = 2});
  runner_->CloseGate();
  ASSERT_TRUE(engine_->Submit(MakeRequest(1, 2, 2)).ok());
  runner_->AwaitWaiter();  // 1 runs
  EXPECT_TRUE(engine_->Submit(MakeRequest(2, 2, 2)).ok());
  EXPECT_TRUE(engine_->Submit(MakeRequest(3, 2, 2)).ok());
  const absl::Status refusal = engine_->Submit(MakeRequest(4, 2, 2));
  EXPECT_EQ(refusal.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(refusal.message(), "2 requests are waiting, max_waiting_requests is 2");
  EXPECT_EQ(engine_->Stats().load.requests_waiting, 2);
  runner_->OpenGate();
  for (const RequestId id : {1, 2, 3}) {
    EXPECT_EQ(listener_.AwaitEnd(id), FinishReason::kLength);
  }
  EXPECT_TRUE(engine_->Submit(MakeRequest(4, 2, 2)).ok());
  EXPECT_EQ(listener_.AwaitEnd(4), FinishReason::kLength);
}

TEST_F(EngineLoopTest, StopEndsEverythingOnce) {
  Start({.plans_in_flight_max = 2});
  runner_->CloseGate();
  for (RequestId id = 1; id <= 6; ++id) {
    ASSERT_TRUE(engine_->Submit(MakeRequest(id, 3, 50)).ok());
  }
  runner_->AwaitWaiter();
  std::thread stopper([this] { engine_->Stop(); });
  // An id that is live is refused as such until the stop is known.
  while (engine_->Submit(MakeRequest(1, 3, 50)).code() != absl::StatusCode::kUnavailable) {
    std::this_thread::yield();
  }
  runner_->OpenGate();
  stopper.join();
  EXPECT_EQ(listener_.ends(), 6u);
  for (RequestId id = 1; id <= 6; ++id) {
    EXPECT_EQ(listener_.AwaitEnd(id), FinishReason::kCancelled);
  }
  EXPECT_EQ(listener_.load().kv_blocks_used, 0);
  EXPECT_EQ(engine_->Submit(MakeRequest(7, 3, 5)).message(), "the engine is stopped");
  engine_->Cancel(1);
  engine_->Stop();
  EXPECT_EQ(listener_.ends(), 6u);
}

TEST_F(EngineLoopTest, StopOfAnIdleEngine) {
  Start({});
  engine_->Stop();
  EXPECT_EQ(listener_.ends(), 0u);
}

TEST_F(EngineLoopTest, TheCachesChangesAndItsSnapshotComeInOrder) {
  Start({.prefix_caching = true});
  engine_->AskCacheSnapshot();  // of an idle engine: it comes at once
  EXPECT_EQ(listener_.AwaitSnapshot(1)->blocks.size(), 0u);
  Request request = MakeRequest(1, 9, 4);
  ASSERT_TRUE(engine_->Submit(request).ok());
  listener_.AwaitEnd(1);
  request.id = 2;
  ASSERT_TRUE(engine_->Submit(request).ok());
  listener_.AwaitEnd(2);
  EXPECT_EQ(listener_.end(2).cached_tokens, 8);
  engine_->AskCacheSnapshot();
  const auto snapshot = listener_.AwaitSnapshot(2);
  // Nine tokens, and three of the answer that were computed: three blocks.
  EXPECT_EQ(snapshot->blocks.size(), 3u);
  EXPECT_EQ(snapshot->sequence, 3u);
  EXPECT_EQ(listener_.cache_changes(), 3u);
  EXPECT_EQ(listener_.cache_digest(), snapshot->digest);
  const EngineStats stats = engine_->Stats();
  EXPECT_EQ(stats.prompt_tokens_cached, 8u);
  EXPECT_EQ(stats.prompt_tokens_queried, 18u);
  EXPECT_EQ(stats.load.kv_blocks_used, 0);
}

TEST_F(EngineLoopTest, DraftsAreCounted) {
  Start({.drafts_max = 2});
  const Request request = MakeRequest(1, 5, 30);
  ASSERT_TRUE(engine_->Submit(request).ok());
  EXPECT_EQ(listener_.AwaitEnd(1), FinishReason::kLength);
  EXPECT_EQ(listener_.tokens(1), FakeAnswerTo(request, kVocabulary).token_ids);
  engine_->Stop();
  const EngineStats stats = engine_->Stats();
  EXPECT_GT(stats.draft_rounds, 0u);
  EXPECT_GE(stats.draft_tokens, stats.draft_rounds);
  EXPECT_GE(stats.draft_accepted[0], stats.draft_accepted[1]);
  EXPECT_GT(stats.draft_accepted[1], 0u);
  EXPECT_EQ(stats.generated_tokens, 30u);
  EXPECT_LT(stats.steps, 30u);
}

TEST_F(EngineLoopTest, StepsAreTimedAndTheOneUnderWayIsTold) {
  for (const int32_t depth : {1, 2}) {
    Start({.plans_in_flight_max = depth});
    EXPECT_EQ(engine_->Stats().step_age_s, 0) << "no step is under way";
    // As many steps as it takes until times are told.
    const RequestId first = 100 * static_cast<RequestId>(depth);
    for (RequestId id = first; id <= first + StepTimeModel::kToldSteps / 30; ++id) {
      ASSERT_TRUE(engine_->Submit(MakeRequest(id, 5, 30)).ok());
      EXPECT_EQ(listener_.AwaitEnd(id), FinishReason::kLength);
    }
    // The device hangs in the first step of the next request.
    runner_->CloseGate();
    ASSERT_TRUE(engine_->Submit(MakeRequest(2, 5, 30)).ok());
    runner_->AwaitWaiter();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const EngineStats hung = engine_->Stats();
    EXPECT_GE(hung.step_age_s, 0.02);
    EXPECT_GT(hung.load.step_times.base_us + hung.load.step_times.sequence_us, 0);
    EXPECT_GT(hung.step_expected_s, 0);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_GE(engine_->Stats().step_age_s, hung.step_age_s + 0.02) << "it grows";
    runner_->PassOne();
    listener_.AwaitTokens(2, 1);
    runner_->AwaitWaiter();
    const EngineStats next = engine_->Stats();
    EXPECT_EQ(next.steps, hung.steps + 1);
    EXPECT_GT(next.step_age_s, 0);
    EXPECT_GE(next.load.context_tokens, 5);
    runner_->OpenGate();
    EXPECT_EQ(listener_.AwaitEnd(2), FinishReason::kLength);
    engine_->Stop();
    EXPECT_EQ(engine_->Stats().step_age_s, 0);
    EXPECT_EQ(engine_->Stats().load.context_tokens, 0);
    listener_.Forget(1);
    listener_.Forget(2);
    listener_.Restart();
  }
}

struct Refusal {
  const char* message;
  void (*change)(Request* request);
};

TEST_F(EngineLoopTest, RefusalsNameFieldValueAndLimit) {
  Start({});
  const Refusal refusals[] = {
      {"prompt_ids is empty, must have at least 1 token",
       [](Request* r) { r->prompt_ids.clear(); }},
      {"prompt_ids[2] is 50, must be in [0, 49], the vocabulary",
       [](Request* r) { r->prompt_ids[2] = 50; }},
      {"prompt_ids[0] is -1, must be in [0, 49], the vocabulary",
       [](Request* r) { r->prompt_ids[0] = -1; }},
      {"prompt_ids has 5 tokens and max_tokens is 60, 65 together, must be at most 64",
       [](Request* r) { r->stop.max_tokens = 60; }},
      {"prompt_ids has 5 tokens and max_tokens is 2147483647, 2147483652 together, must be at most "
       "64",
       [](Request* r) { r->stop.max_tokens = std::numeric_limits<int32_t>::max(); }},
      {"max_tokens is 0, must be at least 1", [](Request* r) { r->stop.max_tokens = 0; }},
      {"max_tokens is -3, must be at least 1", [](Request* r) { r->stop.max_tokens = -3; }},
      {"min_tokens is 9, must be in [0, 8], max_tokens",
       [](Request* r) { r->stop.min_tokens = 9; }},
      {"min_tokens is -1, must be in [0, 8], max_tokens",
       [](Request* r) { r->stop.min_tokens = -1; }},
      {"stop_ids[1] is 99, must be in [0, 49], the vocabulary",
       [](Request* r) {
         r->stop.stop_ids = {1, 99};
       }},
      {"stop_ids has 129 entries, must have at most 128",
       [](Request* r) { r->stop.stop_ids.assign(129, 1); }},
      {"temperature is -0.5, must be in [0, 100]",
       [](Request* r) { r->sampling.temperature = -0.5f; }},
      {"temperature is 101, must be in [0, 100]",
       [](Request* r) { r->sampling.temperature = 101; }},
      {"temperature is nan, must be in [0, 100]",
       [](Request* r) { r->sampling.temperature = std::numeric_limits<float>::quiet_NaN(); }},
      {"top_p is 0, must be above 0 and at most 1", [](Request* r) { r->sampling.top_p = 0; }},
      {"min_p is -0.5, must be in [0, 1]", [](Request* r) { r->sampling.min_p = -0.5f; }},
      {"repetition_penalty is 0, must be above 0 and at most 10",
       [](Request* r) { r->sampling.repetition_penalty = 0; }},
      {"frequency_penalty is 2.5, must be in [-2, 2]",
       [](Request* r) { r->sampling.frequency_penalty = 2.5f; }},
      {"presence_penalty is -3, must be in [-2, 2]",
       [](Request* r) { r->sampling.presence_penalty = -3; }},
      {"logit_bias[1].id is 50, must be in [0, 49], the vocabulary",
       [](Request* r) {
         r->sampling.logit_bias = {{1, 1.0f}, {50, 1.0f}};
       }},
      {"logit_bias[0].add is 101, must be in [-100, 100], or minus infinity",
       [](Request* r) {
         r->sampling.logit_bias = {{1, 101.0f}};
       }},
      {"logit_bias[0].add is nan, must be in [-100, 100], or minus infinity",
       [](Request* r) {
         r->sampling.logit_bias = {{1, std::numeric_limits<float>::quiet_NaN()}};
       }},
      {"logit_bias has 1025 entries, must have at most 1024",
       [](Request* r) { r->sampling.logit_bias.resize(1025); }},
      {"bad_words has 257 entries, must have at most 256",
       [](Request* r) { r->sampling.bad_words.assign(257, {1}); }},
      {"bad_words[1] is empty, must have at least 1 token",
       [](Request* r) {
         r->sampling.bad_words = {{1}, {}};
       }},
      {"bad_words[0] has 33 entries, must have at most 32",
       [](Request* r) { r->sampling.bad_words.assign(1, std::vector<int32_t>(33, 1)); }},
      {"bad_words[0][1] is -2, must be in [0, 49], the vocabulary",
       [](Request* r) {
         r->sampling.bad_words = {{1, -2}};
       }},
      {"allowed_ids[0] is 77, must be in [0, 49], the vocabulary",
       [](Request* r) { r->sampling.allowed_ids = {77}; }},
      {"allowed_ids has 51 entries, must have at most 50",
       [](Request* r) { r->sampling.allowed_ids.assign(51, 1); }},
      {"logprobs is 21, must be in [-1, 20]", [](Request* r) { r->sampling.logprobs = 21; }},
      {"prompt_logprobs is -2, must be in [-1, 20]",
       [](Request* r) { r->sampling.prompt_logprobs = -2; }},
      {"priority is 1001, must be in [-1000, 1000]", [](Request* r) { r->priority = 1001; }},
      {"cache_salt has 257 bytes, must have at most 256",
       [](Request* r) { r->cache_salt.assign(257, 's'); }},
      {"generated_before is 5, must be in [0, 4], below prompt_ids's tokens",
       [](Request* r) { r->generated_before = 5; }},
      {"generated_before is -1, must be in [0, 4], below prompt_ids's tokens",
       [](Request* r) { r->generated_before = -1; }},
      {"min_tokens is 11, must be in [0, 10], generated_before + max_tokens",
       [](Request* r) {
         r->generated_before = 2;
         r->stop.min_tokens = 11;
       }},
      {"top_p is 1.5, must be above 0 and at most 1", [](Request* r) { r->sampling.top_p = 1.5f; }},
      {"top_k is -1, must be at least 0", [](Request* r) { r->sampling.top_k = -1; }},
  };
  for (const Refusal& refusal : refusals) {
    Request request = MakeRequest(1, 5, 8);
    refusal.change(&request);
    const absl::Status status = engine_->Submit(request);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message(), refusal.message);
  }
  runner_->CloseGate();
  ASSERT_TRUE(engine_->Submit(MakeRequest(1, 5, 8)).ok());
  EXPECT_EQ(engine_->Submit(MakeRequest(1, 5, 8)).message(),
            "id is 1, must differ from those of live requests");
  runner_->OpenGate();
  EXPECT_EQ(listener_.AwaitEnd(1), FinishReason::kLength);
}

}  // namespace
}  // namespace glm::engine
