// What an engine's sink heard, and ways to wait for it.
//
// Who calls: tests that run a whole engine. Must outlive the engine.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "proto/base/mutex.h"

namespace glm::test {

class Answers {
 public:
  engine::Engine::Sink sink() {
    return [this](engine::StepEvents&& events) {
      MutexLock lock(&mutex_);
      for (const engine::RequestEvent& event : events.requests) Take(event);
      step_ = events.step;
      changed_.SignalAll();
    };
  }
  /// Blocks until step `step` was heard of, or `ends` requests have ended.
  void AwaitStepOrEnds(uint64_t step, size_t ends) {
    MutexLock lock(&mutex_);
    while (step_ < step && ends_.size() < ends) changed_.Wait(&mutex_);
  }
  engine::RequestEvent AwaitEnd(engine::RequestId id) {
    MutexLock lock(&mutex_);
    while (!ends_.contains(id)) changed_.Wait(&mutex_);
    return ends_.at(id);
  }
  void AwaitTokens(engine::RequestId id, size_t count) {
    MutexLock lock(&mutex_);
    while (tokens_[id].size() < count) changed_.Wait(&mutex_);
  }
  uint64_t step() {
    MutexLock lock(&mutex_);
    return step_;
  }
  std::vector<int32_t> tokens(engine::RequestId id) {
    MutexLock lock(&mutex_);
    return tokens_[id];
  }
  /// Of the tokens, and of the prompt.
  std::vector<engine::TokenLogprobs> logprobs(engine::RequestId id) {
    MutexLock lock(&mutex_);
    return logprobs_[id];
  }
  std::vector<engine::TokenLogprobs> prompt_logprobs(engine::RequestId id) {
    MutexLock lock(&mutex_);
    return prompt_logprobs_[id];
  }

 private:
  void Take(const engine::RequestEvent& event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    EXPECT_FALSE(ends_.contains(event.id)) << "request " << event.id << " goes on after its end";
    const auto append = [](const auto& from, auto* to) {
      to->insert(to->end(), from.begin(), from.end());
    };
    append(event.token_ids, &tokens_[event.id]);
    append(event.logprobs, &logprobs_[event.id]);
    append(event.prompt_logprobs, &prompt_logprobs_[event.id]);
    if (event.finish != engine::FinishReason::kNone) ends_[event.id] = event;
  }

  Mutex mutex_;
  Condition changed_;
  uint64_t step_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<engine::RequestId, std::vector<int32_t>> tokens_ ABSL_GUARDED_BY(mutex_);
  std::map<engine::RequestId, std::vector<engine::TokenLogprobs>> logprobs_ ABSL_GUARDED_BY(mutex_);
  std::map<engine::RequestId, std::vector<engine::TokenLogprobs>> prompt_logprobs_
      ABSL_GUARDED_BY(mutex_);
  std::map<engine::RequestId, engine::RequestEvent> ends_ ABSL_GUARDED_BY(mutex_);
};

inline std::unique_ptr<engine::Engine> MustCreate(const engine::EngineOptions& options,
                                                  Answers* answers) {
  absl::StatusOr<std::unique_ptr<engine::Engine>> engine =
      engine::Engine::Create(options, answers->sink());
  EXPECT_TRUE(engine.ok()) << engine.status();
  return engine.ok() ? *std::move(engine) : nullptr;
}

}  // namespace glm::test
