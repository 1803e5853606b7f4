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
    shape_.step_tokens_max = 48;
    shape_.eos_ids = {7, 8};
    shape_.prefix_caching = true;
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
  void AskCacheSnapshot() override {
    MutexLock lock(&mutex_);
    ++snapshots_asked_;
    changed_.SignalAll();
  }
  engine::EngineStats Stats() const override {
    MutexLock lock(&mutex_);
    return stats_;
  }
  const engine::EngineShape& shape() const override { return shape_; }
  void Stop() override {}

  /// What Stats says from now on.
  void SetStats(const engine::EngineStats& stats) {
    MutexLock lock(&mutex_);
    stats_ = stats;
  }

  /// Blocks until `count` requests were submitted; the last of them.
  engine::Request AwaitSubmitted(size_t count) {
    MutexLock lock(&mutex_);
    while (submitted_.size() < count) changed_.Wait(&mutex_);
    return submitted_[count - 1];
  }
  /// Blocks until the cache's snapshot was asked for `count` times.
  void AwaitSnapshotAsked(int32_t count) {
    MutexLock lock(&mutex_);
    while (snapshots_asked_ < count) changed_.Wait(&mutex_);
  }
  /// Blocks until `count` requests were cancelled; their engine ids.
  std::vector<engine::RequestId> AwaitCancelled(size_t count) {
    MutexLock lock(&mutex_);
    while (cancelled_.size() < count) changed_.Wait(&mutex_);
    return cancelled_;
  }

 private:
  engine::EngineShape shape_;
  mutable Mutex mutex_;  // "script"
  engine::EngineStats stats_;
  Condition changed_;
  int32_t snapshots_asked_ = 0;
  std::vector<engine::Request> submitted_;
  std::vector<engine::RequestId> cancelled_;
};

}  // namespace glm::worker
