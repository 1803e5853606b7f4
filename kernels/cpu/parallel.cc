#include "kernels/cpu/parallel.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "proto/base/log.h"

namespace glm::cpu {

struct ThreadPool::State {
  std::mutex mutex;
  std::condition_variable start;   // a loop began, or the pool ends
  std::condition_variable finish;  // the last helper left the loop
  uint64_t loop = 0;               // guarded by mutex: number of the newest loop
  bool open = false;               // guarded by mutex: helpers may still enter that loop
  int helpers_inside = 0;          // guarded by mutex
  bool ending = false;             // guarded by mutex

  // The running loop. Written under mutex before it opens, read by helpers inside it.
  LoopBody body = nullptr;
  void* argument = nullptr;
  int64_t count = 0;
  int64_t grain = 1;
  std::atomic<int64_t> next{0};

  std::vector<std::thread> helpers;

  void Work() {
    while (true) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= count) return;
      body(argument, begin, begin + grain < count ? begin + grain : count);
    }
  }

  void HelperMain() {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex);
    while (true) {
      start.wait(lock, [&] { return ending || (open && loop != seen); });
      if (ending) return;
      seen = loop;
      ++helpers_inside;
      lock.unlock();
      Work();
      lock.lock();
      if (--helpers_inside == 0) finish.notify_one();
    }
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  CHECK_GE(threads, 1);
  for (int i = 1; i < threads; ++i) state_->helpers.emplace_back([this] { state_->HelperMain(); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->ending = true;
  }
  state_->start.notify_all();
  for (std::thread& helper : state_->helpers) helper.join();
}

int ThreadPool::threads() const { return static_cast<int>(state_->helpers.size()) + 1; }

void ThreadPool::Run(int64_t count, int64_t grain, LoopBody body, void* argument) {
  CHECK_GE(grain, 1);
  if (count <= grain || state_->helpers.empty()) {
    if (count > 0) body(argument, 0, count);
    return;
  }
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->body = body;
    state_->argument = argument;
    state_->count = count;
    state_->grain = grain;
    state_->next.store(0, std::memory_order_relaxed);
    state_->open = true;
    ++state_->loop;
  }
  state_->start.notify_all();
  state_->Work();
  // Nothing is left to take: a helper that has not woken up yet is not waited for.
  std::unique_lock<std::mutex> lock(state_->mutex);
  state_->open = false;
  state_->finish.wait(lock, [&] { return state_->helpers_inside == 0; });
}

}  // namespace glm::cpu
