// An Engine for tests of the service: it records what it is asked, and says what the test tells it
// to.
#pragma once

#include <utility>
#include <vector>

#include "engine/engine.h"
#include "proto/base/mutex.h"

namespace glm::worker {

class ScriptedEngine : public engine::Engine {
 public:
  ScriptedEngine() {
    shape_.model_name = "scripted";
    shape_.vocabulary = 100;
    shape_.length_max = 64;
    shape_.block_size = 16;
    shape_.kv_blocks_total = 8;
    shape_.sequences_max = 4;
    shape_.eos_ids = {7, 8};
  }

  absl::Status Submit(engine::Request request) override {
    MutexLock lock(&mutex_);
    if (request.prompt_ids.empty()) return absl::InvalidArgumentError("prompt_ids is empty");
    submitted_.push_back(std::move(request));
    changed_.SignalAll();
    return absl::OkStatus();
  }
  void Cancel(engine::RequestId id) override {
    MutexLock lock(&mutex_);
    cancelled_.push_back(id);
    changed_.SignalAll();
  }
  void AskCacheSnapshot() override {}
  engine::EngineStats Stats() const override { return {}; }
  const engine::EngineShape& shape() const override { return shape_; }
  void Stop() override {}

  /// Blocks until `count` requests were submitted; the last of them.
  engine::Request AwaitSubmitted(size_t count) {
    MutexLock lock(&mutex_);
    while (submitted_.size() < count) changed_.Wait(&mutex_);
    return submitted_[count - 1];
  }
  /// Blocks until `count` requests were cancelled; their engine ids.
  std::vector<engine::RequestId> AwaitCancelled(size_t count) {
    MutexLock lock(&mutex_);
    while (cancelled_.size() < count) changed_.Wait(&mutex_);
    return cancelled_;
  }

 private:
  engine::EngineShape shape_;
  Mutex mutex_;  // "script"
  Condition changed_;
  std::vector<engine::Request> submitted_;
  std::vector<engine::RequestId> cancelled_;
};

}  // namespace glm::worker
