#include "router/loop.h"

#include "proto/base/log.h"

namespace glm::router {

Loop::Loop(int32_t index)
    : index_(index), io_context_(1), work_(boost::asio::make_work_guard(io_context_)) {
  thread_ = std::thread([this] { io_context_.run(); });
}

Loop::~Loop() { Stop(); }

void Loop::Stop() {
  CHECK(!OnThread()) << "a loop cannot join itself";
  io_context_.stop();
  if (thread_.joinable()) thread_.join();
}

LoopPool::LoopPool(int32_t threads) {
  CHECK_GE(threads, 1) << "loop threads";
  for (int32_t i = 0; i < threads; ++i) loops_.push_back(std::make_unique<Loop>(i));
}

Loop& LoopPool::Next() {
  return *loops_[turn_.fetch_add(1, std::memory_order_relaxed) % loops_.size()];
}

void LoopPool::Stop() {
  for (const std::unique_ptr<Loop>& loop : loops_) loop->Stop();
}

}  // namespace glm::router
