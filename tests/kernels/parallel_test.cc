#include "kernels/cpu/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

namespace glm::cpu {
namespace {

TEST(ParallelForTest, EveryIndexRunsOnce) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (const int64_t count : {0, 1, 2, 7, 64, 1000}) {
      for (const int64_t grain : {1, 3, 64, 5000}) {
        std::vector<int> runs(count, 0);  // each index is one thread's alone
        ParallelFor(pool, count, grain, [&](int64_t i) { ++runs[i]; });
        for (const int run : runs) ASSERT_EQ(run, 1);
      }
    }
  }
}

TEST(ParallelForTest, LoopsFollowEachOther) {
  ThreadPool pool(3);
  std::vector<int64_t> numbers(64, 0);
  for (int64_t round = 0; round < 2000; ++round) {
    // Each loop reads what another thread may have written in the one before.
    ParallelFor(pool, 64, 1, [&](int64_t i) {
      ASSERT_EQ(numbers[(i + round) % 64], round);
      numbers[(i + round) % 64] = round + 1;
    });
  }
}

TEST(ParallelForTest, ThreadsShareTheWork) {
  ThreadPool pool(2);
  std::mutex mutex;
  std::set<std::thread::id> workers;
  std::atomic<int> arrived{0};
  // Each of the two indices waits for the other, so two threads must be in the loop.
  ParallelFor(pool, 2, 1, [&](int64_t) {
    ++arrived;
    while (arrived < 2) std::this_thread::yield();
    std::lock_guard<std::mutex> lock(mutex);
    workers.insert(std::this_thread::get_id());
  });
  EXPECT_EQ(workers.size(), 2u);
  EXPECT_EQ(workers.count(std::this_thread::get_id()), 1u);
}

}  // namespace
}  // namespace glm::cpu
