// The loops of the router: one thread and one Asio io_context each, a fixed number of them.
//
// Who calls: main builds the pool first and destroys it last.
#pragma once

#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "router/loop.h"

namespace glm::router {

class ThreadLoop final : public Loop {
 public:
  /// Starts the thread.
  explicit ThreadLoop(int32_t index);
  /// As Stop.
  ~ThreadLoop() override;

  void Post(absl::AnyInvocable<void()> fn) override;
  bool OnThread() const override { return std::this_thread::get_id() == thread_.get_id(); }
  Clock::time_point Now() const override { return Clock::now(); }
  std::unique_ptr<Timer> NewTimer() override;
  uint64_t Random() override { return random_(); }

  /// For sockets; their handlers run on the loop's thread.
  boost::asio::io_context& io_context() { return io_context_; }

  /// Ends the thread after the function it runs now, and joins it. Not from a loop's own thread.
  void Stop();

 private:
  boost::asio::io_context io_context_;
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_;
  std::mt19937_64 random_;
  std::thread thread_;
};

class LoopPool {
 public:
  /// `threads` loops, at least 1.
  explicit LoopPool(int32_t threads);

  /// The next loop in turn: where a new connection goes. Any thread.
  ThreadLoop& Next();
  ThreadLoop& at(int32_t index) { return *loops_[index]; }
  int32_t size() const { return static_cast<int32_t>(loops_.size()); }
  /// All of them, each at its index.
  const std::vector<Loop*>& all() const { return all_; }

  /// Stops every loop. What is posted later is never run.
  void Stop();

 private:
  std::vector<std::unique_ptr<ThreadLoop>> loops_;
  std::vector<Loop*> all_;
  std::atomic<uint32_t> turn_{0};
};

}  // namespace glm::router
