#include "router/thread_loop.h"

#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <utility>

#include "proto/base/log.h"

namespace glm::router {
namespace {

class AsioTimer final : public Timer {
 public:
  explicit AsioTimer(boost::asio::io_context* io_context) : timer_(*io_context) {}
  ~AsioTimer() override { Cancel(); }

  void Set(std::chrono::steady_clock::time_point at, absl::AnyInvocable<void()> fn) override {
    // A handler whose time has come can no longer be cancelled: it asks whether it is still the
    // one.
    set_ = std::make_shared<absl::AnyInvocable<void()>>(std::move(fn));
    timer_.expires_at(at);
    timer_.async_wait([set = std::weak_ptr(set_)](const boost::system::error_code& error) {
      if (error) return;
      if (const auto held = set.lock()) (*held)();
    });
  }
  void Cancel() override {
    set_ = nullptr;
    timer_.cancel();
  }

 private:
  boost::asio::steady_timer timer_;
  std::shared_ptr<absl::AnyInvocable<void()>> set_;
};

std::mt19937_64 SeededAtRandom() {
  std::random_device device;
  std::seed_seq seed{device(), device(), device(), device()};
  return std::mt19937_64(seed);
}

}  // namespace

ThreadLoop::ThreadLoop(int32_t index)
    : Loop(index),
      io_context_(1),
      work_(boost::asio::make_work_guard(io_context_)),
      random_(SeededAtRandom()) {
  thread_ = std::thread([this] { io_context_.run(); });
}

ThreadLoop::~ThreadLoop() { Stop(); }

void ThreadLoop::Post(absl::AnyInvocable<void()> fn) {
  boost::asio::post(io_context_, std::move(fn));
}

std::unique_ptr<Timer> ThreadLoop::NewTimer() { return std::make_unique<AsioTimer>(&io_context_); }

void ThreadLoop::Stop() {
  CHECK(!OnThread()) << "a loop cannot join itself";
  io_context_.stop();
  if (thread_.joinable()) thread_.join();
}

LoopPool::LoopPool(int32_t threads) {
  CHECK_GE(threads, 1) << "loop threads";
  for (int32_t i = 0; i < threads; ++i) {
    loops_.push_back(std::make_unique<ThreadLoop>(i));
    all_.push_back(loops_.back().get());
  }
}

ThreadLoop& LoopPool::Next() {
  return *loops_[turn_.fetch_add(1, std::memory_order_relaxed) % loops_.size()];
}

void LoopPool::Stop() {
  for (const std::unique_ptr<ThreadLoop>& loop : loops_) loop->Stop();
}

}  // namespace glm::router
