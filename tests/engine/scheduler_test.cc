#include "engine/schedule/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "tests/support/fake_runner.h"

namespace glm::engine {
namespace {

constexpr int32_t kVocabulary = 50;

SchedulerLimits SmallLimits() {
  SchedulerLimits limits;
  limits.block_size = 4;
  limits.kv_blocks = 16;
  limits.length_max = 64;
  limits.sequences_max = 4;
  limits.batched_tokens_max = 16;
  limits.logit_rows_max = 16;
  limits.vocabulary = kVocabulary;
  limits.plans_in_flight_max = 1;
  return limits;
}

Request MakeRequest(RequestId id, int32_t prompt_tokens, int32_t max_tokens) {
  Request request;
  request.id = id;
  for (int32_t i = 0; i < prompt_tokens; ++i) {
    request.prompt_ids.push_back(static_cast<int32_t>((id * 7 + i * 3) % kVocabulary));
  }
  request.sampling.seed = id;
  request.stop.max_tokens = max_tokens;
  return request;
}

/// A scheduler, a fake device and what came out of them, request by request.
class Bench {
 public:
  explicit Bench(const SchedulerLimits& limits)
      : scheduler(limits), device(limits), plans(limits.plans_in_flight_max) {}

  bool Plan() {
    StepPlan* plan = &plans[planned % plans.size()];
    if (!scheduler.Plan(plan)) return false;
    ++planned;
    scheduler.CheckConsistent();
    return true;
  }
  const StepPlan& newest() const { return plans[(planned - 1) % plans.size()]; }

  StepEvents Apply() {
    const StepPlan& plan = plans[applied++ % plans.size()];
    StepEvents events;
    scheduler.Apply(plan, device.Run(plan), &events);
    scheduler.CheckConsistent();
    Note(events);
    return events;
  }

  StepEvents Cancel(RequestId id) {
    StepEvents events;
    scheduler.Cancel(id, &events);
    scheduler.CheckConsistent();
    Note(events);
    return events;
  }

  void Note(const StepEvents& events) {
    std::set<RequestId> seen;
    for (const RequestEvent& event : events.requests) {
      EXPECT_TRUE(seen.insert(event.id).second) << "two events of request " << event.id;
      EXPECT_FALSE(ends.contains(event.id)) << "request " << event.id << " goes on after its end";
      std::vector<int32_t>& ids = tokens[event.id];
      ids.insert(ids.end(), event.token_ids.begin(), event.token_ids.end());
      if (event.finish != FinishReason::kNone) ends[event.id] = event;
    }
  }

  /// Plans and applies until nothing is left.
  void RunOut() {
    while (true) {
      while (scheduler.plans_in_flight() < scheduler.limits().plans_in_flight_max && Plan()) {
      }
      if (scheduler.plans_in_flight() == 0) return;
      Apply();
    }
  }

  Scheduler scheduler;
  FakeDevice device;
  std::vector<StepPlan> plans;
  uint64_t planned = 0;
  uint64_t applied = 0;
  std::map<RequestId, std::vector<int32_t>> tokens;
  std::map<RequestId, RequestEvent> ends;
};

void ExpectAnswer(const Bench& bench, const Request& request) {
  const FakeAnswer answer = FakeAnswerTo(request, kVocabulary);
  ASSERT_TRUE(bench.ends.contains(request.id)) << "request " << request.id << " did not end";
  const RequestEvent& end = bench.ends.at(request.id);
  EXPECT_EQ(bench.tokens.at(request.id), answer.token_ids) << "request " << request.id;
  EXPECT_EQ(end.finish, answer.finish);
  EXPECT_EQ(end.stop_id, answer.stop_id);
  EXPECT_EQ(end.prompt_tokens, static_cast<int32_t>(request.prompt_ids.size()));
}

TEST(SchedulerTest, PlansNothingWithoutRequests) {
  Bench bench(SmallLimits());
  EXPECT_FALSE(bench.Plan());
}

TEST(SchedulerTest, PlanOfOnePromptSaysWhatTheRanksNeed) {
  Bench bench(SmallLimits());
  const Request request = MakeRequest(3, 6, 2);
  bench.scheduler.Admit(request);
  ASSERT_TRUE(bench.Plan());
  const StepPlan& plan = bench.newest();
  EXPECT_EQ(plan.step, 1u);
  EXPECT_EQ(plan.token_ids, request.prompt_ids);
  EXPECT_EQ(plan.positions, (std::vector<int32_t>{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(plan.token_sequences, (std::vector<int32_t>{0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(plan.query_starts, (std::vector<int32_t>{0, 6}));
  EXPECT_EQ(plan.kv_lengths, (std::vector<int32_t>{6}));
  EXPECT_EQ(plan.blocks_max, 2);
  EXPECT_EQ(plan.block_tables.size(), 2u);
  EXPECT_NE(plan.block_tables[0], plan.block_tables[1]);
  EXPECT_EQ(plan.logit_tokens, (std::vector<int32_t>{5}));
  ASSERT_EQ(plan.sample_rows.size(), 1u);
  EXPECT_EQ(plan.sample_rows[0].position, 6u);
  EXPECT_EQ(plan.sample_rows[0].seed, 3u);
  EXPECT_EQ(plan.sample_rows[0].slot, 0);
}

TEST(SchedulerTest, DecodesGoFirstAndPromptsAreCutIntoChunks) {
  Bench bench(SmallLimits());
  bench.scheduler.Admit(MakeRequest(1, 3, 8));
  ASSERT_TRUE(bench.Plan());
  bench.Apply();
  bench.scheduler.Admit(MakeRequest(2, 20, 8));
  bench.scheduler.Admit(MakeRequest(3, 5, 8));
  ASSERT_TRUE(bench.Plan());
  // 1 decodes; 15 of 2's 20 prompt tokens fill the budget; no logits of 2 yet.
  EXPECT_EQ(bench.newest().query_starts, (std::vector<int32_t>{0, 1, 16}));
  EXPECT_EQ(bench.newest().kv_lengths, (std::vector<int32_t>{4, 15}));
  EXPECT_EQ(bench.newest().logit_tokens, (std::vector<int32_t>{0}));
  EXPECT_EQ(bench.scheduler.Load().requests_waiting, 1);
  EXPECT_EQ(bench.scheduler.Load().tokens_waiting, 5 + 5);
  bench.Apply();
  ASSERT_TRUE(bench.Plan());
  EXPECT_EQ(bench.newest().query_starts, (std::vector<int32_t>{0, 1, 6, 11}));
  EXPECT_EQ(bench.newest().logit_tokens, (std::vector<int32_t>{0, 5, 10}));
  bench.RunOut();
  for (const RequestId id : {1, 2, 3}) EXPECT_EQ(bench.tokens[id].size(), 8u);
}

TEST(SchedulerTest, NewcomersJoinAndFinishedOnesLeaveARunningBatch) {
  Bench bench(SmallLimits());
  bench.scheduler.Admit(MakeRequest(1, 2, 6));
  bench.scheduler.Admit(MakeRequest(2, 2, 2));
  ASSERT_TRUE(bench.Plan());
  bench.Apply();
  bench.scheduler.Admit(MakeRequest(3, 2, 6));
  ASSERT_TRUE(bench.Plan());
  EXPECT_EQ(bench.newest().kv_lengths, (std::vector<int32_t>{3, 3, 2}));
  bench.Apply();
  EXPECT_EQ(bench.ends.at(2).finish, FinishReason::kLength);
  ASSERT_TRUE(bench.Plan());
  EXPECT_EQ(bench.newest().kv_lengths, (std::vector<int32_t>{4, 3}));
}

TEST(SchedulerTest, NoMoreThanSequencesMaxRun) {
  Bench bench(SmallLimits());
  for (RequestId id = 1; id <= 6; ++id) bench.scheduler.Admit(MakeRequest(id, 1, 3));
  ASSERT_TRUE(bench.Plan());
  EXPECT_EQ(bench.newest().kv_lengths.size(), 4u);
  EXPECT_EQ(bench.scheduler.Load().requests_running, 4);
  EXPECT_EQ(bench.scheduler.Load().requests_waiting, 2);
  bench.RunOut();
  EXPECT_EQ(bench.ends.size(), 6u);
}

struct StopCase {
  const char* name;
  int32_t stop_at;  // the id drawn as this token, from 0, is the stop id
  int32_t min_tokens;
  int32_t max_tokens;
  FinishReason finish;
  size_t tokens;
};

TEST(SchedulerTest, EndsAtStopIdOrLength) {
  const StopCase cases[] = {
      {"stop id", 2, 0, 8, FinishReason::kStop, 3},
      {"stop id as the first token", 0, 0, 8, FinishReason::kStop, 1},
      {"stop id as the last token", 7, 0, 8, FinishReason::kStop, 8},
      {"stop id after min_tokens", 2, 2, 8, FinishReason::kStop, 3},
      {"length of one", -1, 0, 1, FinishReason::kLength, 1},
  };
  for (const StopCase& c : cases) {
    for (const int32_t depth : {1, 2}) {
      SCOPED_TRACE(std::string(c.name) + ", depth " + std::to_string(depth));
      SchedulerLimits limits = SmallLimits();
      limits.plans_in_flight_max = depth;
      Bench bench(limits);
      Request request = MakeRequest(1, 5, c.max_tokens);
      std::vector<int32_t> ids;
      do {  // until no id repeats
        ++request.sampling.seed;
        ids = FakeAnswerTo(request, kVocabulary).token_ids;
      } while (std::set<int32_t>(ids.begin(), ids.end()).size() != ids.size());
      if (c.stop_at >= 0) request.stop.stop_ids = {ids[c.stop_at]};
      request.stop.min_tokens = c.min_tokens;
      bench.scheduler.Admit(request);
      bench.RunOut();
      EXPECT_EQ(bench.ends.at(1).finish, c.finish);
      EXPECT_EQ(bench.tokens.at(1).size(), c.tokens);
      EXPECT_EQ(bench.ends.at(1).stop_id, c.finish == FinishReason::kStop ? ids[c.stop_at] : -1);
      ExpectAnswer(bench, request);
      EXPECT_EQ(bench.scheduler.Load().kv_blocks_used, 0);
    }
  }
}

TEST(SchedulerTest, OverlapPlansTheNextStepBeforeTheIdIsKnown) {
  SchedulerLimits limits = SmallLimits();
  limits.plans_in_flight_max = 2;
  Bench bench(limits);
  Request request = MakeRequest(1, 3, 8);
  request.stop.stop_ids = {FakeAnswerTo(request, kVocabulary).token_ids[1]};
  bench.scheduler.Admit(request);
  ASSERT_TRUE(bench.Plan());
  ASSERT_TRUE(bench.Plan());
  EXPECT_EQ(bench.newest().token_ids, (std::vector<int32_t>{~0}));
  EXPECT_EQ(bench.newest().positions, (std::vector<int32_t>{3}));
  bench.Apply();
  ASSERT_TRUE(bench.Plan());  // step 3, which will turn out to be one too many
  EXPECT_EQ(bench.newest().token_ids, (std::vector<int32_t>{~0}));
  bench.Apply();
  EXPECT_EQ(bench.ends.at(1).finish, FinishReason::kStop);
  EXPECT_GT(bench.scheduler.Load().kv_blocks_used, 0) << "step 3 still writes into the blocks";
  EXPECT_FALSE(bench.Plan());
  EXPECT_TRUE(bench.Apply().requests.empty());
  EXPECT_EQ(bench.scheduler.Load().kv_blocks_used, 0);
  ExpectAnswer(bench, request);
}

TEST(SchedulerTest, OverlapPlansNothingBeyondMaxTokens) {
  SchedulerLimits limits = SmallLimits();
  limits.plans_in_flight_max = 2;
  Bench bench(limits);
  bench.scheduler.Admit(MakeRequest(1, 3, 2));
  EXPECT_TRUE(bench.Plan());
  EXPECT_TRUE(bench.Plan());
  bench.Apply();
  EXPECT_FALSE(bench.Plan());
  bench.Apply();
  EXPECT_EQ(bench.planned, 2u);
  EXPECT_EQ(bench.ends.at(1).finish, FinishReason::kLength);
}

TEST(SchedulerTest, CancelFreesBlocksAtOnceOrWithTheLastPlanThatNamesThem) {
  Bench bench(SmallLimits());
  bench.scheduler.Admit(MakeRequest(1, 9, 8));
  ASSERT_TRUE(bench.Plan());
  bench.Apply();
  EXPECT_EQ(bench.scheduler.Load().kv_blocks_used, 3);
  EXPECT_EQ(bench.Cancel(1).requests.at(0).finish, FinishReason::kCancelled);
  EXPECT_EQ(bench.scheduler.Load().kv_blocks_used, 0);
  EXPECT_FALSE(bench.Plan());

  bench.scheduler.Admit(MakeRequest(1, 9, 8));  // an id may be used again
  bench.ends.clear();
  ASSERT_TRUE(bench.Plan());
  bench.Cancel(1);
  EXPECT_EQ(bench.scheduler.Load().kv_blocks_used, 3);
  EXPECT_TRUE(bench.Apply().requests.empty());
  EXPECT_EQ(bench.scheduler.Load().kv_blocks_used, 0);
  EXPECT_TRUE(bench.Cancel(1).requests.empty());
}

TEST(SchedulerTest, CancelOfAWaitingRequest) {
  SchedulerLimits limits = SmallLimits();
  limits.sequences_max = 1;
  Bench bench(limits);
  for (RequestId id = 1; id <= 3; ++id) bench.scheduler.Admit(MakeRequest(id, 2, 2));
  ASSERT_TRUE(bench.Plan());
  bench.Cancel(2);
  EXPECT_EQ(bench.scheduler.LiveIds(), (std::vector<RequestId>{1, 3}));
  bench.RunOut();
  EXPECT_EQ(bench.ends.at(2).finish, FinishReason::kCancelled);
  ExpectAnswer(bench, MakeRequest(1, 2, 2));
  ExpectAnswer(bench, MakeRequest(3, 2, 2));
}

TEST(SchedulerTest, TheYoungestIsPreemptedAndGoesOnWithItsTokens) {
  SchedulerLimits limits = SmallLimits();
  limits.kv_blocks = 4;
  limits.length_max = 16;
  Bench bench(limits);
  const Request older = MakeRequest(1, 4, 12);
  const Request younger = MakeRequest(2, 4, 12);
  bench.scheduler.Admit(older);
  bench.scheduler.Admit(younger);
  bench.RunOut();
  EXPECT_GE(bench.scheduler.preemptions(), 1u);
  ExpectAnswer(bench, older);
  ExpectAnswer(bench, younger);
  EXPECT_EQ(bench.scheduler.Load().kv_blocks_used, 0);
}

TEST(SchedulerTest, PreemptedWhileInFlightKeepsTheTokenThatComesBack) {
  SchedulerLimits limits = SmallLimits();
  limits.kv_blocks = 4;
  limits.length_max = 16;
  limits.plans_in_flight_max = 2;
  Bench bench(limits);
  const Request older = MakeRequest(1, 7, 9);
  const Request younger = MakeRequest(2, 7, 9);
  bench.scheduler.Admit(older);
  bench.scheduler.Admit(younger);
  // Steps 1 and 2 fill the four blocks; step 3 finds none for either.
  ASSERT_TRUE(bench.Plan());
  ASSERT_TRUE(bench.Plan());
  bench.Apply();
  EXPECT_FALSE(bench.Plan());
  EXPECT_EQ(bench.scheduler.preemptions(), 1u);
  EXPECT_EQ(bench.scheduler.Load().kv_blocks_used, 4) << "step 2 still writes into them";
  bench.Apply();
  EXPECT_EQ(bench.tokens[2].size(), 2u);
  EXPECT_EQ(bench.scheduler.Load().kv_blocks_used, 2);
  bench.RunOut();
  ExpectAnswer(bench, older);
  ExpectAnswer(bench, younger);
}

TEST(SchedulerTest, NoMoreArePreemptedWhileBlocksAreComingBack) {
  SchedulerLimits limits = SmallLimits();
  limits.kv_blocks = 6;
  limits.length_max = 24;
  limits.batched_tokens_max = 32;
  limits.plans_in_flight_max = 2;
  Bench bench(limits);
  for (RequestId id = 1; id <= 3; ++id) bench.scheduler.Admit(MakeRequest(id, 7, 9));
  ASSERT_TRUE(bench.Plan());
  ASSERT_TRUE(bench.Plan());
  bench.Apply();
  // 1 and 2 want a block each; 3 gives up two of them, which step 2 still writes into.
  EXPECT_FALSE(bench.Plan());
  EXPECT_EQ(bench.scheduler.preemptions(), 1u);
  bench.Apply();
  ASSERT_TRUE(bench.Plan());
  EXPECT_EQ(bench.newest().kv_lengths, (std::vector<int32_t>{9, 9}));
  EXPECT_EQ(bench.scheduler.preemptions(), 1u);
  bench.RunOut();
  for (RequestId id = 1; id <= 3; ++id) ExpectAnswer(bench, MakeRequest(id, 7, 9));
}

TEST(SchedulerDeathTest, RefusesWhatTheEngineMustHaveRefused) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  Scheduler scheduler(SmallLimits());
  EXPECT_DEATH(scheduler.Admit(MakeRequest(1, 60, 5)), "length_max");
  scheduler.Admit(MakeRequest(1, 60, 4));
  EXPECT_DEATH(scheduler.Admit(MakeRequest(1, 1, 1)), "request 1 is already live");
}

}  // namespace
}  // namespace glm::engine
