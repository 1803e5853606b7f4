#include "router/route/policy.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
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

// ---- Seconds ---------------------------------------------------------------------------------

constexpr StepTimes kTimes = {
    .base_s = 10e-3, .sequence_s = 0.1e-3, .prompt_token_s = 20e-6, .context_token_s = 1e-8};

StepTimes Slower(double times) {
  return {.base_s = times * kTimes.base_s,
          .sequence_s = times * kTimes.sequence_s,
          .prompt_token_s = times * kTimes.prompt_token_s,
          .context_token_s = times * kTimes.context_token_s};
}

Candidate Timed() {
  Candidate worker = Idle();
  worker.sequences_max = 64;
  worker.kv_blocks_free = 4000;
  worker.step_tokens_max = 1000;
  worker.times = kTimes;
  return worker;
}

/// Seconds to the first token at this worker, alone in its fleet.
double FirstToken(const RouteRequest& request, const Candidate& worker) {
  return ChooseWorker(request, {&worker, 1}).first_token_s;
}

TEST(PolicySecondsTest, NothingIsPredictedWithoutTimes) {
  EXPECT_EQ(FirstToken({.prompt_tokens = 100}, Idle()), 0);
  EXPECT_EQ(ChooseWorker({.prompt_tokens = 100}, {}).first_token_s, 0);
}

TEST(PolicySecondsTest, TheFirstTokenIsTheQueueAndThenTheOwnPrompt) {
  Candidate worker = Timed();
  // One step of 500 tokens.
  EXPECT_NEAR(FirstToken({.prompt_tokens = 500}, worker), 10e-3 + 500 * 20e-6, 1e-9);
  // Three steps.
  EXPECT_NEAR(FirstToken({.prompt_tokens = 3000}, worker), 3 * 10e-3 + 3000 * 20e-6, 1e-9);
  // 2000 tokens before it.
  worker.tokens_waiting = 2000;
  EXPECT_NEAR(FirstToken({.prompt_tokens = 500}, worker), 3 * 10e-3 + 2500 * 20e-6, 1e-9);
  // With 50 that decode, steps take longer and have less room for prompts.
  worker.requests = 50;
  worker.context_tokens = 50'000;
  const double batch = 10e-3 + 50 * 0.1e-3 + 50'000 * 1e-8;
  EXPECT_NEAR(FirstToken({.prompt_tokens = 500}, worker),
              2000.0 / 950 * batch + batch + 2500 * 20e-6, 1e-9);
  // What is cached is not computed; the last token is.
  worker.tokens_waiting = 0;
  worker.cached_tokens = 496;
  EXPECT_NEAR(FirstToken({.prompt_tokens = 500}, worker), batch + 4 * 20e-6, 1e-9);
  worker.cached_tokens = 512;
  EXPECT_NEAR(FirstToken({.prompt_tokens = 512}, worker), batch + 20e-6, 1e-9);
  EXPECT_NEAR(FirstToken({.policy = Policy::kLeastLoad, .prompt_tokens = 512}, worker),
              batch + 512 * 20e-6, 1e-9);
}

TEST(PolicySecondsTest, WithoutRoomItWaitsForOthersToEnd) {
  Candidate worker = Timed();
  worker.requests = 63;
  worker.context_tokens = 63'000;
  const double free = FirstToken({.prompt_tokens = 500}, worker);
  worker.requests = 64;  // one must end
  const double full = FirstToken({.prompt_tokens = 500}, worker);
  EXPECT_GT(full, free + 0.5 * kAnswerTokens * 16e-3 / 64);
  worker.requests = 74;  // eleven must
  EXPECT_GT(FirstToken({.prompt_tokens = 500}, worker), full + 9 * kAnswerTokens * 16e-3 / 64);
  worker.requests = 63;
  worker.kv_blocks_free = 2;  // of 32; each of the others has some 62
  EXPECT_GT(FirstToken({.prompt_tokens = 500}, worker), free + 0.3 * kAnswerTokens * 16e-3 / 63);
}

TEST(PolicySecondsTest, LongAnswersLookAtTheBatchAndShortOnesAtTheQueue) {
  std::vector<Candidate> workers(2, Timed());
  workers[0].requests = 40;  // a wide batch, no queue
  workers[0].context_tokens = 40'000;
  workers[1].requests = 2;  // a long prompt before it: 0.1 s
  workers[1].tokens_waiting = 4000;
  EXPECT_EQ(Chosen({.prompt_tokens = 100, .answer_tokens = 1}, workers), 0);
  EXPECT_EQ(Chosen({.prompt_tokens = 100, .answer_tokens = 250}, workers), 1);
  EXPECT_EQ(Chosen({.prompt_tokens = 100}, workers), 1) << "not known: it may be long";
}

TEST(PolicySecondsTest, APrefixCountsMoreWhereManyWaitForItsComputing) {
  // 2000 tokens more to compute, or 4 sequences more beside it.
  std::vector<Candidate> workers(2, Timed());
  workers[0].cached_tokens = 1984;
  workers[0].requests = 4;
  EXPECT_EQ(Chosen({.prompt_tokens = 2100}, workers), 1) << "nobody is there to be disturbed";
  for (Candidate& worker : workers) worker.requests += 30;
  EXPECT_EQ(Chosen({.prompt_tokens = 2100}, workers), 0);
  // Where the owner is much fuller, the prefix is held twice.
  workers[0].requests = 60;
  EXPECT_EQ(Chosen({.prompt_tokens = 2100}, workers), 1);
}

TEST(PolicySecondsTest, ASlowWorkerGetsLess) {
  std::vector<Candidate> workers(4, Timed());
  workers[0].times = Slower(5);
  for (size_t i = 1; i < workers.size(); ++i) {
    workers[i].requests = 20;
    workers[i].context_tokens = 20'000;
  }
  EXPECT_NE(Chosen({.prompt_tokens = 500}, workers), 0);
  for (size_t i = 1; i < workers.size(); ++i) {
    workers[i].requests = 64;
    workers[i].tokens_waiting = 400'000;
  }
  EXPECT_EQ(Chosen({.prompt_tokens = 500}, workers), 0) << "slow is better than late";
}

TEST(PolicySecondsTest, ASlowWorkerThatIsSilentIsTrustedAgainInTime) {
  std::vector<Candidate> workers(3, Timed());
  workers[1].times = Slower(5);
  const auto gets_some = [&](double age_s) {
    workers[1].times_age_s = age_s;
    std::vector<Candidate> now = workers;
    for (Candidate& worker : now) worker.requests += &worker == &now[1] ? 0 : 3;
    return Chosen({.prompt_tokens = 500}, now) == 1;
  };
  EXPECT_FALSE(gets_some(0));
  EXPECT_FALSE(gets_some(kForgetS));
  EXPECT_TRUE(gets_some(8 * kForgetS));
}

TEST(PolicySecondsTest, AWorkerWithoutTimesIsTakenAtTheFleets) {
  std::vector<Candidate> workers(3, Timed());
  workers[1].times = {};
  std::map<int32_t, int32_t> counts;
  for (uint64_t spread = 0; spread < 300; ++spread) {
    ++counts[Chosen({.prompt_tokens = 10, .spread = spread}, workers)];
  }
  EXPECT_EQ(counts, (std::map<int32_t, int32_t>{{0, 100}, {1, 100}, {2, 100}}));
  EXPECT_GT(ChooseWorker({.prompt_tokens = 10, .spread = 1}, workers).first_token_s, 0);
  workers[1].requests = 1;
  EXPECT_NE(Chosen({.prompt_tokens = 10, .spread = 1}, workers), 1);
}

TEST(PolicySecondsTest, NoiseOfFitsBreaksNoTies) {
  // Chi-square of 8,000 requests over eight equal workers whose fits differ by a few percent.
  std::vector<Candidate> workers(8, Timed());
  for (size_t i = 0; i < workers.size(); ++i) workers[i].times = Slower(0.94 + 0.02 * i);
  std::mt19937_64 random(7);
  std::vector<double> counts(workers.size(), 0);
  for (int32_t i = 0; i < 8000; ++i) {
    counts[Chosen({.prompt_tokens = 900, .spread = random()}, workers)] += 1;
  }
  double chi_square = 0;
  for (const double count : counts) chi_square += (count - 1000) * (count - 1000) / 1000;
  EXPECT_LT(chi_square, 24.3) << "7 degrees of freedom, one in a thousand";
}

TEST(PolicySecondsTest, FullWorkersAreLeftToReplays) {
  for (const Policy policy : {Policy::kPrefix, Policy::kLeastLoad, Policy::kRoundRobin,
                              Policy::kPowerOfTwo, Policy::kSession}) {
    std::vector<Candidate> workers(3, Timed());
    workers[0].full = true;
    workers[0].cached_tokens = 480;
    workers[2].ejected = true;
    const auto chosen = [&](bool takes_full) {
      return Chosen({.policy = policy, .prompt_tokens = 500, .takes_full = takes_full}, workers);
    };
    EXPECT_EQ(chosen(false), 1);
    EXPECT_EQ(chosen(true), 1) << "one has room";
    workers[1].full = true;
    EXPECT_EQ(chosen(false), -1) << "full ones are waited for, not those that were ejected";
    EXPECT_NE(chosen(true), -1);
    EXPECT_NE(chosen(true), 2);
  }
}

TEST(PolicySecondsTest, EjectedWorkersAreTheLastResort) {
  for (const Policy policy : {Policy::kPrefix, Policy::kLeastLoad, Policy::kRoundRobin,
                              Policy::kPowerOfTwo, Policy::kSession}) {
    std::vector<Candidate> workers(4, Timed());
    for (size_t i = 0; i < workers.size(); ++i) workers[i].name_hash = 10 + i;
    workers[1].ejected = true;
    workers[1].cached_tokens = 480;
    workers[3].ejected = true;
    std::map<int32_t, int32_t> counts;
    const auto choose_many = [&] {
      counts.clear();
      for (uint64_t i = 0; i < 100; ++i) {
        ++counts[Chosen(
            {.policy = policy, .prompt_tokens = 500, .spread = i, .turn = i, .session_hash = 1 + i},
            workers)];
      }
    };
    choose_many();
    EXPECT_EQ(counts.count(1) + counts.count(3), 0u);
    EXPECT_EQ(counts.count(0) + counts.count(2), 2u);
    workers[0].usable = workers[2].usable = false;
    choose_many();
    EXPECT_EQ(counts.count(0) + counts.count(2), 0u);
    EXPECT_GE(counts.count(1) + counts.count(3), 1u);
  }
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
