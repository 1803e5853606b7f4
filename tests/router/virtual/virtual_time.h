// A virtual clock, and router loops over it: everything runs in the caller's thread, in an order
// that the seed decides, and no time passes but what is jumped over.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <utility>

#include "router/loop.h"

namespace glm::router {

class VirtualTime {
 public:
  using Time = Loop::Clock::time_point;
  using Event = std::pair<Time, uint64_t>;

  explicit VirtualTime(uint64_t seed) : random(seed) {}

  Time now() const { return now_; }
  /// Runs `fn` at `at`, after what was put there before.
  Event At(Time at, absl::AnyInvocable<void()> fn) {
    const Event event{std::max(at, now_), ++made_};
    events_.emplace(event, std::move(fn));
    return event;
  }
  Event After(std::chrono::microseconds wait, absl::AnyInvocable<void()> fn) {
    return At(now_ + wait, std::move(fn));
  }
  void Drop(const Event& event) { events_.erase(event); }

  /// Runs the next event; false when there is none.
  bool RunNext() {
    if (events_.empty()) return false;
    auto node = events_.extract(events_.begin());
    now_ = node.key().first;
    node.mapped()();
    return true;
  }
  /// Runs all events up to `until`.
  void RunUntil(Time until) {
    while (!events_.empty() && events_.begin()->first.first <= until) RunNext();
    now_ = std::max(now_, until);
  }
  /// When the next event is; only while there is one.
  Time next() const { return events_.begin()->first.first; }

  /// In [low, high].
  int64_t Draw(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  }
  bool OneIn(int64_t n) { return Draw(1, n) == 1; }

  std::mt19937_64 random;

 private:
  Time now_{std::chrono::hours(1000)};
  uint64_t made_ = 0;
  std::map<Event, absl::AnyInvocable<void()>> events_;
};

class VirtualLoop final : public Loop {
 public:
  VirtualLoop(VirtualTime* time, int32_t index) : Loop(index), time_(time) {}

  /// Up to 50 us later, as a busy thread would: loops overtake one another, no loop itself.
  void Post(absl::AnyInvocable<void()> fn) override {
    posted_last_ = std::max(posted_last_, time_->now() + Lateness());
    time_->At(posted_last_, Here(std::move(fn)));
  }
  bool OnThread() const override { return running_; }
  Clock::time_point Now() const override { return time_->now(); }
  std::unique_ptr<glm::router::Timer> NewTimer() override {
    return std::make_unique<LateTimer>(this);
  }
  uint64_t Random() override { return time_->random(); }

 private:
  class LateTimer final : public glm::router::Timer {
   public:
    explicit LateTimer(VirtualLoop* loop) : loop_(loop) {}
    ~LateTimer() override { Cancel(); }
    void Set(Clock::time_point at, absl::AnyInvocable<void()> fn) override {
      Cancel();
      is_set_ = true;
      event_ = loop_->time_->At(at + loop_->Lateness(),
                                loop_->Here([this, fn = std::move(fn)]() mutable {
                                  is_set_ = false;
                                  auto run = std::move(fn);  // a timer may die in its own function
                                  run();
                                }));
    }
    void Cancel() override {
      if (is_set_) loop_->time_->Drop(event_);
      is_set_ = false;
    }

   private:
    VirtualLoop* const loop_;
    bool is_set_ = false;
    VirtualTime::Event event_;
  };

  std::chrono::microseconds Lateness() { return std::chrono::microseconds(time_->Draw(0, 50)); }
  absl::AnyInvocable<void()> Here(absl::AnyInvocable<void()> fn) {
    return [this, fn = std::move(fn)]() mutable {
      running_ = true;
      fn();
      running_ = false;
    };
  }
  void AwaitPosted(std::future<void> done) override {
    while (done.wait_for(std::chrono::seconds(0)) != std::future_status::ready) time_->RunNext();
  }

  VirtualTime* const time_;
  Clock::time_point posted_last_;
  bool running_ = false;
};

}  // namespace glm::router
