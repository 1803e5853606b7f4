// A fixed pool of threads and ParallelFor, for the CPU backend.
//
// Who calls: ops, on the rank thread that owns the CpuDevice. One pool per device, one loop at a
// time.
#pragma once

#include <cstdint>
#include <memory>

namespace glm::cpu {

/// A plain function pointer with its argument, so that a loop allocates nothing.
using LoopBody = void (*)(void* argument, int64_t begin, int64_t end);

class ThreadPool {
 public:
  /// `threads` includes the caller's; at least 1.
  explicit ThreadPool(int threads);
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool();

  int threads() const;

  /// Calls body over [0, count) in ranges of `grain` indices, on all threads; returns when all are
  /// done.
  void Run(int64_t count, int64_t grain, LoopBody body, void* argument);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// for (i in [0, count)) body(i), on the pool, `grain` consecutive indices at a time. Iterations
/// must not depend on each other; the result then does not depend on the number of threads.
template <typename Body>
void ParallelFor(ThreadPool& pool, int64_t count, int64_t grain, const Body& body) {
  pool.Run(
      count, grain,
      [](void* argument, int64_t begin, int64_t end) {
        const Body& loop = *static_cast<const Body*>(argument);
        for (int64_t i = begin; i < end; ++i) loop(i);
      },
      const_cast<Body*>(&body));
}

}  // namespace glm::cpu
