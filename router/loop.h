// Where the code of a request runs: a queue of functions that one thread takes in turn, with a
// clock, timers and a source of random numbers.
//
// A connection and its exchanges belong to one loop for life, so what they own needs no lock; other
// threads reach them through Post. In the router each loop is a thread (thread_loop.h); a test may
// run several over one virtual clock.
#pragma once

#include <chrono>
#include <cstdint>
#include <future>
#include <memory>
#include <utility>

#include "absl/functional/any_invocable.h"

namespace glm::router {

/// Calls one function later. Made by a loop, used and destroyed on that loop, before it.
class Timer {
 public:
  /// As Cancel.
  virtual ~Timer() = default;
  /// `fn` is run on the loop at `at` or soon after; what was set before is dropped.
  virtual void Set(std::chrono::steady_clock::time_point at, absl::AnyInvocable<void()> fn) = 0;
  /// From here on `fn` is not run, even if its time has come.
  virtual void Cancel() = 0;
};

class Loop {
 public:
  using Clock = std::chrono::steady_clock;

  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;
  virtual ~Loop() = default;

  /// Runs `fn` on the loop, after everything posted before. Any thread. A posted `fn` is dropped,
  /// unrun, when the loop stops first; it may own objects that only move.
  virtual void Post(absl::AnyInvocable<void()> fn) = 0;

  /// Whether the caller may touch what belongs to the loop.
  virtual bool OnThread() const = 0;

  virtual Clock::time_point Now() const = 0;      // any thread
  virtual std::unique_ptr<Timer> NewTimer() = 0;  // any thread
  virtual uint64_t Random() = 0;                  // all 64 bits; on the loop only

  int32_t index() const { return index_; }

  /// Runs `fn` on the loop and waits for it. Not from a loop's own thread, nor after its end.
  template <typename Fn>
  void Run(Fn&& fn) {
    std::promise<void> done;
    Post([&] {
      fn();
      done.set_value();
    });
    AwaitPosted(done.get_future());
  }

 protected:
  /// `index` is the loop's place among the loops of its process.
  explicit Loop(int32_t index) : index_(index) {}

 private:
  /// Returns once `done` is set by a function that was posted.
  virtual void AwaitPosted(std::future<void> done) { done.wait(); }

  const int32_t index_;
};

/// Milliseconds on the loop's clock, since some fixed moment.
inline int64_t NowMs(const Loop& loop) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(loop.Now().time_since_epoch())
      .count();
}

}  // namespace glm::router
