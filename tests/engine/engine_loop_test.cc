#include "engine/engine_loop.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <random>
#include <set>
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
        EXPECT_FALSE(ends_.contains(event.id)) << "request " << event.id << " goes on after its end";
        std::vector<int32_t>& ids = tokens_[event.id];
        ids.insert(ids.end(), event.token_ids.begin(), event.token_ids.end());
        if (event.finish != FinishReason::kNone) ends_[event.id] = event;
      }
      load_ = events.load;
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
  std::map<RequestId, std::vector<int32_t>> tokens_ ABSL_GUARDED_BY(mutex_);
  std::map<RequestId, RequestEvent> ends_ ABSL_GUARDED_BY(mutex_);
};

struct Setup {
  int32_t kv_blocks = 32;
  int32_t sequences_max = 4;
  int32_t plans_in_flight_max = 1;
  int32_t waiting_max = 100;
};

class EngineLoopTest : public testing::Test {
 protected:
  void Start(const Setup& setup) {
    SchedulerLimits limits;
    limits.block_size = 4;
    limits.kv_blocks = setup.kv_blocks;
    limits.length_max = std::min(64, setup.kv_blocks * 4);
    limits.sequences_max = setup.sequences_max;
    limits.batched_tokens_max = 16;
    limits.plans_in_flight_max = setup.plans_in_flight_max;
    EngineShape shape;
    shape.vocabulary = kVocabulary;
    shape.length_max = limits.length_max;
    shape.block_size = limits.block_size;
    shape.kv_blocks_total = limits.kv_blocks;
    shape.sequences_max = limits.sequences_max;
    auto runner = std::make_unique<FakeRunner>(limits, kVocabulary);
    runner_ = runner.get();
    engine_ = std::make_unique<EngineLoop>(shape, limits, setup.waiting_max, std::move(runner),
                                           listener_.sink());
  }
  ~EngineLoopTest() override {
    if (engine_ != nullptr) runner_->OpenGate();
  }

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

TEST_F(EngineLoopTest, ServesRequestsSubmittedFromManyThreads) {
  for (const int32_t depth : {1, 2}) {
    Start({.kv_blocks = 20, .plans_in_flight_max = depth});
    constexpr int kThreads = 4;
    constexpr int kEach = 25;
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([this, t] {
        for (int i = 0; i < kEach; ++i) {
          const RequestId id = t * kEach + i + 1;
          EXPECT_TRUE(engine_->Submit(MakeRequest(id, 1 + i % 20, 1 + i % 13)).ok());
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (RequestId id = 1; id <= kThreads * kEach; ++id) {
      const int i = static_cast<int>(id - 1) % kEach;
      EXPECT_EQ(listener_.AwaitEnd(id), FinishReason::kLength);
      EXPECT_EQ(listener_.tokens(id),
                FakeAnswerTo(MakeRequest(id, 1 + i % 20, 1 + i % 13), kVocabulary).token_ids);
    }
    const EngineStats stats = engine_->Stats();
    EXPECT_EQ(stats.requests_finished_length, static_cast<uint64_t>(kThreads * kEach));
    EXPECT_GT(stats.steps, 0u);
    EXPECT_GT(stats.step_seconds, 0);
    EXPECT_EQ(stats.load.requests_waiting, 0);
    engine_->Stop();
    EXPECT_EQ(engine_->Stats().load.kv_blocks_used, 0);
    for (RequestId id = 1; id <= kThreads * kEach; ++id) listener_.Forget(id);
    engine_.reset();
    listener_.~Listener();
    new (&listener_) Listener;
  }
}

TEST_F(EngineLoopTest, CancelFreesTheBlocksBeforeTheNextStepRuns) {
  Start({});
  runner_->AwaitWaiter
  ();
}

}  // namespace
}  // namespace glm::engine
