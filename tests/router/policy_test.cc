#include "router/route/policy.h"

#include <gtest/gtest.h>

#include <map>
#include <vector>

namespace glm::router {
namespace {

int32_t Chosen(const RouteRequest& request, absl::Span<const Candidate> candidates) {
  return ChooseWorker(request, candidates).worker;
}

Candidate Idle() {
  return {.usable = true,
          .requests = 0,
          .sequences_max = 8,
          .tokens_waiting = 0,
          .kv_blocks_free = 100,
          .block_size = 16};
}

TEST(PolicyTest, NoUsableWorkerIsNone) {
  EXPECT_EQ(Chosen({.prompt_tokens = 1}, {}), -1);
  std::vector<Candidate> workers(3, Idle());
  for (Candidate& worker : workers) worker.usable = false;
  EXPECT_EQ(Chosen({.prompt_tokens = 1}, workers), -1);
}

TEST(PolicyTest, TakesTheUsableOneWhateverItsLoad) {
  std::vector<Candidate> workers(3, Idle());
  workers[0].usable = false;
  workers[2].usable = false;
  workers[1].requests = 100;
  workers[1].tokens_waiting = 1'000'000;
  workers[1].kv_blocks_free = 0;
  EXPECT_EQ(Chosen({.prompt_tokens = 1}, workers), 1);
}

TEST(PolicyTest, FewerRequestsWin) {
  std::vector<Candidate> workers(3, Idle());
  workers[0].requests = 2;
  workers[1].requests = 1;
  workers[2].requests = 3;
  for (uint64_t spread = 0; spread < 10; ++spread) {
    EXPECT_EQ(Chosen({.prompt_tokens = 10, .spread = spread}, workers), 1);
  }
}

TEST(PolicyTest, OneLongPromptOutweighsAFewRequests) {
  std::vector<Candidate> workers(2, Idle());
  workers[0].requests = 1;
  workers[0].tokens_waiting = 100'000;
  workers[1].requests = 4;
  EXPECT_EQ(Chosen({.prompt_tokens = 10}, workers), 1);
  workers[0].tokens_waiting = 0;
  EXPECT_EQ(Chosen({.prompt_tokens = 10}, workers), 0);
}

TEST(PolicyTest, AFreeSequenceBeatsLessWork) {
  std::vector<Candidate> workers(2, Idle());
  workers[0].requests = 8;  // full
  workers[1].requests = 7;
  workers[1].tokens_waiting = 50'000;
  EXPECT_EQ(Chosen({.prompt_tokens = 10}, workers), 1);
}

TEST(PolicyTest, RoomForThePromptCountsToTheBlock) {
  std::vector<Candidate> workers(2, Idle());
  workers[0].kv_blocks_free = 2;
  workers[1].requests = 3;
  EXPECT_EQ(Chosen({.prompt_tokens = 32}, workers), 0);
  EXPECT_EQ(Chosen({.prompt_tokens = 33}, workers), 1);
}

TEST(PolicyTest, EqualsAreSpreadEvenly) {
  std::vector<Candidate> workers(5, Idle());
  workers[1].requests = 1;
  workers[3].usable = false;
  std::map<int32_t, int> counts;
  for (uint64_t spread = 0; spread < 300; ++spread) {
    ++counts[Chosen({.prompt_tokens = 10, .spread = spread}, workers)];
  }
  EXPECT_EQ(counts, (std::map<int32_t, int>{{0, 100}, {2, 100}, {4, 100}}));
}

// ---- Prefixes --------------------------------------------------------------------------------

TEST(PolicyTest, APrefixThatIsThereIsWorkSaved) {
  std::vector<Candidate> workers(3, Idle());
  workers[1].cached_tokens = 960;
  EXPECT_EQ(Chosen({.prompt_tokens = 1000}, workers), 1);
  // Its queue costs more than computing the prefix elsewhere: a hot prefix is held twice.
  workers[1].tokens_waiting = 961;
  EXPECT_NE(Chosen({.prompt_tokens = 1000}, workers), 1);
  workers[1].tokens_waiting = 959;
  EXPECT_EQ(Chosen({.prompt_tokens = 1000}, workers), 1);
}

TEST(PolicyTest, CachedBlocksNeedNoRoom) {
  std::vector<Candidate> workers(2, Idle());
  workers[0].cached_tokens = 160;
  workers[0].kv_blocks_free = 2;  // for the 20 tokens that are left
  workers[1].tokens_waiting = 1;
  EXPECT_EQ(Chosen({.prompt_tokens = 180}, workers), 0);
  workers[0].kv_blocks_free = 1;
  EXPECT_EQ(Chosen({.prompt_tokens = 180}, workers), 1);
}

TEST(PolicyTest, LeastLoadDoesNotLookAtPrefixes) {
  std::vector<Candidate> workers(2, Idle());
  workers[0].cached_tokens = 960;
  workers[0].requests = 1;
  EXPECT_EQ(Chosen({.policy = Policy::kLeastLoad, .prompt_tokens = 1000}, workers), 1);
  EXPECT_EQ(Chosen({.policy = Policy::kPrefix, .prompt_tokens = 1000}, workers), 0);
}

// ---- Other policies --------------------------------------------------------------------------

TEST(PolicyTest, RoundRobinGoesAroundTheUsable) {
  std::vector<Candidate> workers(4, Idle());
  workers[2].usable = false;
  std::vector<int32_t> chosen;
  for (uint64_t turn = 0; turn < 6; ++turn) {
    chosen.push_back(Chosen({.policy = Policy::kRoundRobin, .turn = turn}, workers));
  }
  EXPECT_EQ(chosen, (std::vector<int32_t>{0, 1, 3, 0, 1, 3}));
}

TEST(PolicyTest, PowerOfTwoTakesTheLesserOfTwoAndNeverTheWorst) {
  std::vector<Candidate> workers(4, Idle());
  workers[3].requests = 5;
  std::map<int32_t, int32_t> counts;
  for (uint64_t spread = 0; spread < 3000; ++spread) {
    ++counts[Chosen({.policy = Policy::kPowerOfTwo, .spread = spread}, workers)];
  }
  EXPECT_EQ(counts.count(3), 0u);
  for (int32_t worker = 0; worker < 3; ++worker) EXPECT_GT(counts[worker], 800);
  workers.resize(1);
  EXPECT_EQ(Chosen({.policy = Policy::kPowerOfTwo, .spread = 9}, workers), 0);
}

TEST(PolicyTest, SessionsStayAndOnlyThoseOfALostWorkerMove) {
  std::vector<Candidate> workers(5, Idle());
  for (size_t i = 0; i < workers.size(); ++i) workers[i].name_hash = 1000 + i;
  const auto choose = [&](uint64_t session) {
    return Chosen({.policy = Policy::kSession, .spread = session * 7, .session_hash = session},
                  workers);
  };
  std::vector<int32_t> before;
  std::map<int32_t, int32_t> counts;
  for (uint64_t session = 1; session <= 1000; ++session) {
    before.push_back(choose(session));
    ++counts[before.back()];
  }
  for (int32_t worker = 0; worker < 5; ++worker) EXPECT_GT(counts[worker], 120);
  workers[2].usable = false;
  for (uint64_t session = 1; session <= 1000; ++session) {
    if (before[session - 1] == 2) {
      EXPECT_NE(choose(session), 2);
    } else {
      EXPECT_EQ(choose(session), before[session - 1]);
    }
  }
}

TEST(PolicyTest, Names) {
  EXPECT_EQ(ParsePolicy("prefix"), Policy::kPrefix);
  EXPECT_EQ(ParsePolicy("session"), Policy::kSession);
  EXPECT_EQ(ParsePolicy("Prefix"), std::nullopt);
}

}  // namespace
}  // namespace glm::router
