// The event loops of the router: one thread and one Asio io_context each, a fixed number of them.
//
// Who calls: main builds the pool first and destroys it last. A connection and its exchanges belong
// to one loop for life, so what they own needs no lock; other threads reach them through Post.
#pragma once

#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <cstdint>
#include <future>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

namespace glm::router {

class Loop {
 public:
  /// Starts the thread. `index` is the loop's place in its pool.
  explicit Loop(int32_t index);
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;
  /// As Stop.
  ~Loop();

  /// Runs `fn` on the loop's thread, after everything posted before. Any thread. A posted `fn` is
  /// dropped, unrun, when the loop stops first; it may own objects that only move.
  template <typename Fn>
  void Post(Fn&& fn) {
    boost::asio::post(io_context_, std::forward<Fn>(fn));
  }

  /// Runs `fn` on the loop's thread and waits for it. Not from a loop's own thread, nor after Stop.
  template <typename Fn>
  void Run(Fn&& fn) {
    std::promise<void> done;
    Post([&] {
      fn();
      done.set_value();
    });
    done.get_future().wait();
  }

  /// Whether the caller is the loop's thread.
  bool OnThread() const { return std::this_thread::get_id() == thread_.get_id(); }
  int32_t index() const { return index_; }
  /// For sockets and timers; their handlers run on the loop's thread.
  boost::asio::io_context& io_context() { return io_context_; }

  /// Ends the thread after the function it runs now, and joins it. Not from a loop's own thread.
  void Stop();

 private:
  const int32_t index_;
  boost::asio::io_context io_context_;
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_;
  std::thread thread_;
};

class LoopPool {
 public:
  /// `threads` loops, at least 1.
  explicit LoopPool(int32_t threads);

  /// The next loop in turn: where a new connection goes. Any thread.
  Loop& Next();
  Loop& at(int32_t index) { return *loops_[index]; }
  int32_t size() const { return static_cast<int32_t>(loops_.size()); }

  /// Stops every loop. What is posted later is never run.
  void Stop();

 private:
  std::vector<std::unique_ptr<Loop>> loops_;
  std::atomic<uint32_t> turn_{0};
};

}  // namespace glm::router
