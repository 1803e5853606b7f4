#include "router/thread_loop.h"

#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <thread>
#include <vector>

namespace glm::router {
namespace {

TEST(ThreadLoopTest, RunsWhatIsPostedInOrderOnItsThread) {
  ThreadLoop loop(0);
  std::vector<int> order;
  bool all_on_thread = true;
  for (int i = 0; i < 1000; ++i) {
    loop.Post([&, i] {
      order.push_back(i);
      all_on_thread = all_on_thread && loop.OnThread();
    });
  }
  loop.Run([] {});
  ASSERT_EQ(order.size(), 1000u);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(order[i], i);
  EXPECT_TRUE(all_on_thread);
  EXPECT_FALSE(loop.OnThread());
}

TEST(ThreadLoopTest, TakesFunctionsThatOnlyMove) {
  ThreadLoop loop(0);
  int got = 0;
  loop.Post([&got, value = std::make_unique<int>(7)] { got = *value; });
  loop.Run([] {});
  EXPECT_EQ(got, 7);
}

TEST(ThreadLoopTest, DropsWhatIsPostedAfterStop) {
  ThreadLoop loop(0);
  loop.Stop();
  auto held = std::make_shared<int>(1);
  loop.Post([held] { FAIL() << "a stopped loop ran a function"; });
}

TEST(LoopPoolTest, TurnsThroughItsLoops) {
  LoopPool loops(3);
  std::set<int32_t> seen;
  for (int i = 0; i < 3; ++i) seen.insert(loops.Next().index());
  EXPECT_EQ(seen, (std::set<int32_t>{0, 1, 2}));
}

TEST(LoopPoolTest, ManyThreadsPostToOneLoop) {
  LoopPool loops(1);
  int count = 0;  // the loop's own, so no lock
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 500; ++i) loops.at(0).Post([&] { ++count; });
    });
  }
  for (std::thread& thread : threads) thread.join();
  int result = 0;
  loops.at(0).Run([&] { result = count; });
  EXPECT_EQ(result, 2000);
}

}  // namespace
}  // namespace glm::router
