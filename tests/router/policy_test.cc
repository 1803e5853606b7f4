#include "router/route/policy.h"

#include <gtest/gtest.h>

#include <map>
#include <vector>

namespace glm::router {
namespace {

Candidate Idle() {
  return {.usable = true,
          .requests = 0,
          .sequences_max = 8,
          .tokens_waiting = 0,
          .kv_blocks_free = 100,
          .block_size = 16};
}

TEST(PolicyTest, NoUsableWorkerIsNone) {
  EXPECT_EQ(ChooseWorker({.prompt_tokens = 1}, {}), -1);
  std::vector<Candidate> workers(3, Idle());
  for (Candidate& worker : workers) worker.usable = false;
  EXPECT_EQ(ChooseWorker({.prompt_tokens = 1}, workers), -1);
}

TEST(PolicyTest, TakesTheUsableOneWhateverItsLoad) {
  std::vector<Candidate> workers(3, Idle());
  workers[0].usable = false;
  workers[2].usable = false;
  workers[1].requests = 100;
  workers[1].tokens_waiting = 1'000'000;
  workers[1].kv_blocks_free = 0;
  EXPECT_EQ(ChooseWorker({.prompt_tokens = 1}, workers), 1);
}

TEST(PolicyTest, FewerRequestsWin) {
  std::vector<Candidate> workers(3, Idle());
  workers[0].requests = 2;
  workers[1].requests = 1;
  workers[2].requests = 3;
  for (uint64_t spread = 0; spread < 10; ++spread) {
    EXPECT_EQ(ChooseWorker({.prompt_tokens = 10, .spread = spread}, workers), 1);
  }
}

TEST(PolicyTest, OneLongPromptOutweighsAFewRequests) {
  std::vector<Candidate> workers(2, Idle());
  workers[0].requests = 1;
  workers[0].tokens_waiting = 100'000;
  workers[1].requests = 4;
  EXPECT_EQ(ChooseWorker({.prompt_tokens = 10}, workers), 1);
  workers[0].tokens_waiting = 0;
  EXPECT_EQ(ChooseWorker({.prompt_tokens = 10}, workers), 0);
}

TEST(PolicyTest, AFreeSequenceBeatsLessWork) {
  std::vector<Candidate> workers(2, Idle());
  workers[0].requests = 8;  // full
  workers[1].requests = 7;
  workers[1].tokens_waiting = 50'000;
  EXPECT_EQ(ChooseWorker({.prompt_tokens = 10}, workers), 1);
}

TEST(PolicyTest, RoomForThePromptCountsToTheBlock) {
  std::vector<Candidate> workers(2, Idle());
  workers[0].kv_blocks_free = 2;
  workers[1].requests = 3;
  EXPECT_EQ(ChooseWorker({.prompt_tokens = 32}, workers), 0);
  EXPECT_EQ(ChooseWorker({.prompt_tokens = 33}, workers), 1);
}

TEST(PolicyTest, EqualsAreSpreadEvenly) {
  std::vector<Candidate> workers(5, Idle());
  workers[1].requests = 1;
  workers[3].usable = false;
  std::map<int32_t, int> counts;
  for (uint64_t spread = 0; spread < 300; ++spread) {
    ++counts[ChooseWorker({.prompt_tokens = 10, .spread = spread}, workers)];
  }
  EXPECT_EQ(counts, (std::map<int32_t, int>{{0, 100}, {2, 100}, {4, 100}}));
}

}  // namespace
}  // namespace glm::router
