#include "engine/schedule/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <tuple>

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
  EXPECT_EQ(bench.scheduler.Load().context_tokens, 4 + 15);
  EXPECT_EQ(bench.newest().work.decodes, 1);
  EXPECT_EQ(bench.newest().work.prompt_tokens, 15);
  EXPECT_EQ(bench.newest().work.context_tokens, 4 + 15);
  bench.Apply();
  ASSERT_TRUE(bench.Plan());
  EXPECT_EQ(bench.newest().query_starts, (std::vector<int32_t>{0, 1, 6, 11}));
  EXPECT_EQ(bench.newest().work.decodes, 1);
  EXPECT_EQ(bench.newest().work.prompt_tokens, 5 + 5);
  EXPECT_EQ(bench.newest().work.context_tokens, 5 + 20 + 5);
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

TEST(SchedulerTest, BetterPriorityGoesFirstAndTakesThePlaceOfAWorse) {
  SchedulerLimits limits = SmallLimits();
  limits.sequences_max = 2;
  Bench bench(limits);
  std::vector<Request> requests;
  for (RequestId id = 1; id <= 4; ++id) requests.push_back(MakeRequest(id, 3, 6));
  requests[1].priority = 5;
  requests[3].priority = -5;
  for (int i = 0; i < 3; ++i) bench.scheduler.Admit(requests[i]);
  ASSERT_TRUE(bench.Plan());
  EXPECT_EQ(bench.scheduler.LiveIds(), (std::vector<RequestId>{1, 3, 2})) << "1 and 3 run";
  bench.Apply();
  bench.scheduler.Admit(requests[3]);
  ASSERT_TRUE(bench.Plan());
  EXPECT_EQ(bench.scheduler.LiveIds(), (std::vector<RequestId>{4, 1, 3, 2})) << "4 and 1 run";
  EXPECT_EQ(bench.scheduler.preemptions(), 1u);
  EXPECT_EQ(bench.scheduler.Load().requests_running, 2);
  bench.RunOut();
  EXPECT_EQ(bench.scheduler.preemptions(), 1u) << "the one that gave way does not take it back";
  for (const Request& request : requests) ExpectAnswer(bench, request);
}

TEST(SchedulerTest, ALongPromptHoldsDecodesUpByNoMoreThanTheThreshold) {
  SchedulerLimits limits = SmallLimits();
  limits.long_prefill_token_threshold = 4;
  Bench bench(limits);
  bench.scheduler.Admit(MakeRequest(1, 9, 20));
  ASSERT_TRUE(bench.Plan());
  EXPECT_EQ(bench.newest().kv_lengths, (std::vector<int32_t>{9})) << "nobody waits for it";
  bench.Apply();
  bench.scheduler.Admit(MakeRequest(2, 20, 4));
  bench.scheduler.Admit(MakeRequest(3, 3, 4));
  for (int32_t step = 1; step <= 5; ++step) {
    ASSERT_TRUE(bench.Plan());
    const StepPlan& plan = bench.newest();
    EXPECT_EQ(plan.kv_lengths[0], 9 + step) << "the one that decodes is in every step";
    EXPECT_LE(plan.token_ids.size(), 2u + 4u + (step == 1 ? 2u : 0u));
    if (step == 1) {
      EXPECT_EQ(plan.query_starts, (std::vector<int32_t>{0, 1, 5, 8})) << "3 is not behind 2";
    }
    bench.Apply();
  }
  EXPECT_EQ(bench.tokens[2].size(), 1u);
  bench.RunOut();
  for (const auto& [id, prompt, max] : {std::tuple{1, 9, 20}, {2, 20, 4}, {3, 3, 4}}) {
    ExpectAnswer(bench, MakeRequest(id, prompt, max));
  }
}

SchedulerLimits CachingLimits() {
  SchedulerLimits limits = SmallLimits();
  limits.prefix_caching = true;
  return limits;
}

TEST(SchedulerTest, ASecondPromptTakesOverAllButItsLastToken) {
  Bench bench(CachingLimits());
  Request request = MakeRequest(1, 12, 3);
  bench.scheduler.Admit(request);
  bench.RunOut();
  EXPECT_EQ(bench.scheduler.Load().kv_blocks_used, 0) << "what is only cached is not in use";
  request.id = 2;
  bench.scheduler.Admit(request);
  ASSERT_TRUE(bench.Plan());
  // Three blocks are cached, but the last token must be computed: so its block is.
  EXPECT_EQ(bench.newest().positions, (std::vector<int32_t>{8, 9, 10, 11}));
  EXPECT_EQ(bench.newest().block_tables.size(), 3u);
  bench.RunOut();
  EXPECT_EQ(bench.ends.at(2).cached_tokens, 8);
  EXPECT_EQ(bench.tokens[1], bench.tokens[2]);
  EngineStats stats;
  bench.scheduler.FillStats(&stats);
  EXPECT_EQ(stats.prompt_tokens_cached, 8u);
  EXPECT_EQ(stats.prompt_tokens_queried, 24u);
  EXPECT_EQ(stats.prompt_tokens, 12u + 4u);
  // Another salt shares nothing.
  request.id = 3;
  request.cache_salt = "tenant";
  bench.scheduler.Admit(request);
  bench.RunOut();
  EXPECT_EQ(bench.ends.at(3).cached_tokens, 0);
}

TEST(SchedulerTest, EqualPromptsComputedAtOnceShareTheirBlocksAfterwards) {
  for (const int32_t depth : {1, 2}) {
    SchedulerLimits limits = CachingLimits();
    limits.batched_tokens_max = 32;
    limits.plans_in_flight_max = depth;
    Bench bench(limits);
    Request request = MakeRequest(1, 9, 6);
    for (RequestId id = 1; id <= 3; ++id) {
      request.id = id;
      request.sampling.choice = static_cast<uint32_t>(id);
      bench.scheduler.Admit(request);
    }
    for (int32_t i = 0; i < depth; ++i) ASSERT_TRUE(bench.Plan());
    EXPECT_EQ(bench.scheduler.Load().kv_blocks_used, 9);
    for (int32_t i = 0; i < depth; ++i) bench.Apply();
    EXPECT_EQ(bench.scheduler.Load().kv_blocks_used, 2 + 3);
    bench.RunOut();
    for (RequestId id = 1; id <= 3; ++id) {
      request.id = id;
      request.sampling.choice = static_cast<uint32_t>(id);
      ExpectAnswer(bench, request);
    }
  }
}

TEST(SchedulerTest, APreemptedSequenceFindsItsBlocksAgain) {
  SchedulerLimits limits = CachingLimits();
  limits.kv_blocks = 6;
  limits.length_max = 24;
  Bench bench(limits);
  bench.scheduler.Admit(MakeRequest(1, 4, 12));
  bench.scheduler.Admit(MakeRequest(2, 8, 12));
  uint64_t computed = 0;
  while (bench.scheduler.has_live()) {
    ASSERT_TRUE(bench.Plan());
    computed += bench.newest().token_ids.size();
    bench.Apply();
  }
  EXPECT_GE(bench.scheduler.preemptions(), 1u);
  ExpectAnswer(bench, MakeRequest(1, 4, 12));
  ExpectAnswer(bench, MakeRequest(2, 8, 12));
  // Each token but the last two is computed once, and few of them again.
  EXPECT_LT(computed, 12u + 22u + 8u);
}

TEST(SchedulerTest, PromptLogprobsComeInChunksAsRowsAreLeftAndReadNoCache) {
  SchedulerLimits limits = CachingLimits();
  limits.logit_rows_max = 5;
  Bench bench(limits);
  Request request = MakeRequest(1, 12, 3);
  bench.scheduler.Admit(request);
  bench.RunOut();
  request.id = 2;
  request.sampling.prompt_logprobs = 1;
  bench.scheduler.Admit(request);
  ASSERT_TRUE(bench.Plan());
  EXPECT_EQ(bench.newest().positions, (std::vector<int32_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(bench.Apply().requests.at(0).prompt_logprobs.size(), 5u);
  bench.RunOut();
  EXPECT_EQ(bench.ends.at(2).cached_tokens, 0);
  ExpectAnswer(bench, request);
}

TEST(SchedulerTest, WhatEditsLeaveNoRoomForWaitsForAnotherStep) {
  SchedulerLimits limits = SmallLimits();
  limits.edits_max = 3;
  Bench bench(limits);
  std::vector<Request> requests{MakeRequest(1, 3, 4), MakeRequest(2, 3, 4)};
  for (Request& request : requests) {
    request.sampling.logit_bias = {{1, 1.0f}, {2, 1.0f}};
    bench.scheduler.Admit(request);
  }
  ASSERT_TRUE(bench.Plan());
  EXPECT_EQ(bench.newest().kv_lengths, (std::vector<int32_t>{3, 2})) << "2 does not draw yet";
  EXPECT_EQ(bench.newest().logit_tokens.size(), 1u);
  bench.RunOut();
  for (const Request& request : requests) ExpectAnswer(bench, request);
}

class EvenMask final : public TokenMask {
 public:
  void Restrict(std::span<const int32_t>, std::span<uint32_t> words) const override {
    for (uint32_t& word : words) word &= 0x55555555u;
  }
};

TEST(SchedulerTest, ASequenceWithATokenMaskIsNotPlannedAheadOfItsTokens) {
  SchedulerLimits limits = SmallLimits();
  limits.plans_in_flight_max = 2;
  Bench bench(limits);
  Request request = MakeRequest(1, 3, 4);
  request.token_mask = std::make_shared<EvenMask>();
  bench.scheduler.Admit(request);
  ASSERT_TRUE(bench.Plan());
  EXPECT_FALSE(bench.Plan());
  bench.RunOut();
  ExpectAnswer(bench, request);
  for (const int32_t id : bench.tokens[1]) EXPECT_EQ(id % 2, 0);
}

SchedulerLimits DraftingLimits(int32_t drafts) {
  SchedulerLimits limits = SmallLimits();
  limits.drafts_max = drafts;
  limits.adaptive_drafts = false;
  limits.batched_tokens_max = 40;
  limits.logit_rows_max = 40;
  return limits;
}

TEST(SchedulerTest, RightDraftsMakeFewerStepsAndTheSameTokens) {
  Bench bench(DraftingLimits(3));
  bench.device.drafts_right_percent = 100;
  const Request request = MakeRequest(1, 5, 21);
  bench.scheduler.Admit(request);
  bench.RunOut();
  ExpectAnswer(bench, request);
  // One token after the prompt, then four a step.
  EXPECT_EQ(bench.applied, 6u);
  EngineStats stats;
  bench.scheduler.FillStats(&stats);
  EXPECT_EQ(stats.draft_rounds, 5u);
  EXPECT_EQ(stats.draft_tokens, 15u);
  EXPECT_EQ(stats.draft_accepted, (std::array<uint64_t, 5>{5, 5, 5, 0, 0}));
  EXPECT_EQ(stats.drafts_now, 3);
}

TEST(SchedulerTest, WrongDraftsCostNothingButTheirRows) {
  Bench bench(DraftingLimits(2));
  bench.device.drafts_right_percent = 0;
  const Request request = MakeRequest(1, 5, 12);
  bench.scheduler.Admit(request);
  bench.RunOut();
  ExpectAnswer(bench, request);
  EXPECT_LE(bench.applied, 12u);
}

TEST(SchedulerTest, DraftsStayBelowMaxTokensAndTheEndOfTheTable) {
  SchedulerLimits limits = DraftingLimits(5);
  limits.kv_blocks = 4;
  limits.length_max = 16;
  Bench bench(limits);
  bench.device.drafts_right_percent = 100;
  const Request request = MakeRequest(1, 4, 12);  // the fake device refuses positions past the end
  bench.scheduler.Admit(request);
  bench.RunOut();
  ExpectAnswer(bench, request);
  EXPECT_LT(bench.applied, 6u);
}

TEST(SchedulerTest, AStopAmongAcceptedDraftsDropsWhatFollows) {
  Bench bench(DraftingLimits(4));
  bench.device.drafts_right_percent = 100;
  Request request = MakeRequest(1, 5, 20);
  const std::vector<int32_t> ids = FakeAnswerTo(request, kVocabulary).token_ids;
  request.stop.stop_ids = {ids[3]};
  bench.scheduler.Admit(request);
  bench.RunOut();
  ExpectAnswer(bench, request);
  EXPECT_EQ(bench.ends.at(1).finish, FinishReason::kStop);
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
