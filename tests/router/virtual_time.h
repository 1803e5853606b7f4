// A virtual clock and loops on it: what is posted or set runs in the order of its time, on the
// test's own thread, and an hour passes as fast as its events run.
#pragma once

#include <chrono>
#include <cstdint>
#include <future>
#include <map>
#include <memory>
#include <utility>

#include "proto/base/log.h"
#include "router/loop.h"

namespace glm::router {

class VirtualTime {
 public:
  using Clock = Loop::Clock;

  Clock::time_point now() const { return now_; }
  int64_t now_ms() const {
    return std::chrono::duration_cast<std::chrono::milliseconds>(now_.time_since_epoch()).count();
  }

  /// Runs `fn` at `at`, after all that was put in for the same time before.
  void At(Clock::time_point at, absl::AnyInvocable<void()> fn) {
    events_.emplace(std::make_pair(std::max(at, now_), ++events_made_), std::move(fn));
  }
  void After(std::chrono::microseconds wait, absl::AnyInvocable<void()> fn) {
    At(now_ + wait, std::move(fn));
  }

  /// Runs the next event. False if there is none.
  bool Step() {
    if (events_.empty()) return false;
    auto first = events_.extract(events_.begin());
    now_ = first.key().first;
    first.mapped()();
    return true;
  }
  void RunFor(std::chrono::microseconds time) {
    const Clock::time_point end = now_ + time;
    while (!events_.empty() && events_.begin()->first.first <= end) Step();
    now_ = end;
  }

 private:
  Clock::time_point now_{std::chrono::hours(1)};
  std::map<std::pair<Clock::time_point, uint64_t>, absl::AnyInvocable<void()>> events_;
  uint64_t events_made_ = 0;
};

class VirtualLoop final : public Loop {
 public:
  VirtualLoop(VirtualTime* time, int32_t index) : Loop(index), time_(time), random_(index) {}

  void Post(absl::AnyInvocable<void()> fn) override { time_->At(time_->now(), std::move(fn)); }
  bool OnThread() const override { return true; }
  Clock::time_point Now() const override { return time_->now(); }
  std::unique_ptr<Timer> NewTimer() override { return std::make_unique<VirtualTimer>(time_); }
  /// SplitMix64.
  uint64_t Random() override {
    uint64_t x = random_ += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
  }

 private:
  class VirtualTimer final : public Timer {
   public:
    explicit VirtualTimer(VirtualTime* time) : time_(time) {}
    ~VirtualTimer() override { Cancel(); }
    void Set(std::chrono::steady_clock::time_point at, absl::AnyInvocable<void()> fn) override {
      set_ = std::make_shared<absl::AnyInvocable<void()>>(std::move(fn));
      time_->At(at, [set = std::weak_ptr(set_)] {
        if (const auto held = set.lock()) (*held)();
      });
    }
    void Cancel() override { set_ = nullptr; }

   private:
    VirtualTime* const time_;
    std::shared_ptr<absl::AnyInvocable<void()>> set_;
  };

  void AwaitPosted(std::future<void> done) override {
    while (done.wait_for(std::chrono::seconds(0)) != std::future_status::ready) {
      CHECK(time_->Step()) << "what is awaited never comes";
    }
  }

  VirtualTime* const time_;
  uint64_t random_;
};

}  // namespace glm::router
