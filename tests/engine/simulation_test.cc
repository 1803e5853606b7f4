// A seeded simulation of the scheduler over a fake device: random arrivals, lengths, priorities,
// sampling rules, cancels, shared prefixes, few blocks, several plans in flight or drafts.
//
//   simulation_test                       300 seeds, as ctest runs it
//   simulation_test --seeds=10000         more of them
//   simulation_test --first=77 --seeds=1  one again
//
// A seed decides all, so one that fails can be run again. After each call the scheduler's state
// must agree in all its parts, and each request's tokens are those of the request alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <map>
#include <random>
#include <set>
#include <string>

#include "tests/support/fake_runner.h"

namespace glm::engine {
namespace {

uint64_t first_seed = 0;
uint64_t seeds = 300;

// Most that DrawSampling asks for.
constexpr int32_t kWordsMax = 12;
constexpr int32_t kEditsMax = 1 + kWordsMax + 3;
constexpr int32_t kContextsMax = 2 * kWordsMax;

/// What ran out, was shared, drafted and so on, over many seeds.
struct Coverage {
  EngineStats stats;
  uint64_t cancels = 0;
  uint64_t requests = 0;
  uint64_t steps = 0;
};

/// Forbids whatever is congruent to the answer's length and last token.
class ParityMask final : public TokenMask {
 public:
  void Restrict(std::span<const int32_t> generated, std::span<uint32_t> words) const override {
    const uint32_t last = generated.empty() ? 1 : static_cast<uint32_t>(generated.back());
    const uint32_t pattern = (last + generated.size()) % 2 == 0 ? 0x55555555u : 0xAAAAAAAAu;
    for (uint32_t& word : words) word &= pattern;
  }
};

class Simulation {
 public:
  explicit Simulation(uint64_t seed)
      : random_(seed),
        limits_(DrawLimits()),
        scheduler_(limits_),
        device_(limits_),
        plans_(limits_.plans_in_flight_max) {
    device_.drafts_right_percent = OneIn(2) ? 100 : Draw(0, 100);
    const double slope = Draw(0, 20) * 0.05;
    device_.seconds = [slope](const StepPlan& plan) {
      return 0.01 + slope * 0.01 * (plan.drafts + static_cast<double>(plan.token_ids.size()) / 64);
    };
    vocabulary_of_prompts_ = Draw(0, 1) == 0 ? 2 : limits_.vocabulary;
  }

  void Run(Coverage* coverage) {
    const int requests = Draw(1, 24);
    const int cancel_percent = Draw(0, 3) == 0 ? Draw(1, 30) : 0;
    while (static_cast<int>(requests_.size()) < requests || scheduler_.has_live() ||
           scheduler_.plans_in_flight() > 0) {
      if (static_cast<int>(requests_.size()) < requests && Draw(0, 3) == 0) AdmitOne();
      if (cancel_percent > 0 && Draw(0, 99) < cancel_percent) CancelOne();
      const bool full = scheduler_.plans_in_flight() == limits_.plans_in_flight_max;
      const bool planned = !full && Draw(0, 4) != 0 && PlanOne();
      if (!planned && scheduler_.plans_in_flight() > 0 && (full || Draw(0, 2) == 0)) ApplyOne();
      ASSERT_LT(planned_, StepsMax()) << "no progress";
      if (testing::Test::HasFailure()) return;
    }
    CheckEnd();
    AddTo(coverage);
  }

 private:
  int Draw(int min, int max) { return std::uniform_int_distribution<int>(min, max)(random_); }
  bool OneIn(int n) { return Draw(1, n) == 1; }
  int DrawId() { return Draw(0, vocabulary_of_prompts_ - 1); }

  SchedulerLimits DrawLimits() {
    SchedulerLimits limits;
    limits.vocabulary = Draw(6, 70);
    limits.block_size = Draw(1, 8);
    limits.kv_blocks = Draw(1, 24);
    limits.length_max =
        static_cast<int32_t>(std::max<int64_t>(2, limits.kv_blocks * limits.block_size));
    if (OneIn(2)) limits.length_max = std::max(2, limits.length_max / Draw(1, 4));
    limits.kv_blocks = std::max<int64_t>(
        limits.kv_blocks, (limits.length_max + limits.block_size - 1) / limits.block_size);
    limits.sequences_max = Draw(1, 8);
    limits.drafts_max = OneIn(2) ? Draw(1, 5) : 0;
    limits.adaptive_drafts = OneIn(2);
    const int32_t least = limits.sequences_max * (1 + limits.drafts_max);
    limits.batched_tokens_max = least + Draw(0, 24);
    limits.logit_rows_max = least + (OneIn(2) ? Draw(0, 24) : 0);
    // Room for one request, and for few of those that want much.
    limits.edits_max = kEditsMax + Draw(0, 16);
    limits.edit_contexts_max = kContextsMax + Draw(0, 24);
    limits.masks_max = 1 + limits.drafts_max + Draw(0, 2);
    limits.plans_in_flight_max = limits.drafts_max > 0 ? 1 : Draw(1, 3);
    limits.prefix_caching = !OneIn(4);
    limits.prefix_hash_key = *ParseHashKey("");
    limits.long_prefill_token_threshold = OneIn(2) ? Draw(1, 12) : 0;
    return limits;
  }

  void AdmitOne() {
    Request request;
    request.id = requests_.size() + 1;
    const int total = Draw(2, limits_.length_max);
    const int prompt = Draw(1, total - 1);
    request.stop.max_tokens = total - prompt;
    for (int i = 0; i < prompt; ++i) request.prompt_ids.push_back(DrawId());
    // Much of what is asked begins like something asked before.
    if (!requests_.empty() && !OneIn(3)) {
      const Request& other = requests_[Draw(0, static_cast<int>(requests_.size()) - 1)];
      std::vector<int32_t> ids = other.prompt_ids;
      const FakeAnswer& answer = AnswerTo(other);
      if (OneIn(2)) ids.insert(ids.end(), answer.token_ids.begin(), answer.token_ids.end());
      const size_t same = std::min<size_t>(ids.size(), prompt) - (OneIn(4) ? 1 : 0);
      std::copy_n(ids.begin(), same, request.prompt_ids.begin());
      request.cache_salt = other.cache_salt;
    }
    if (OneIn(6)) request.cache_salt = std::string(Draw(1, 3), 's');
    if (OneIn(3)) request.priority = Draw(-1, 1);
    if (OneIn(5)) request.generated_before = Draw(0, prompt - 1);
    DrawSampling(&request);
    answers_.push_back(FakeAnswerTo(request, limits_.vocabulary));
    requests_.push_back(request);
    scheduler_.Admit(request);
  }

  void DrawSampling(Request* request) {
    SamplingParams& sampling = request->sampling;
    const int ids_max = limits_.vocabulary - 1;
    sampling.seed = random_();
    sampling.choice = Draw(0, 2);
    const int stop_ids = Draw(0, 3);
    for (int i = 0; i < stop_ids; ++i) request->stop.stop_ids.push_back(Draw(0, ids_max));
    if (OneIn(2)) request->stop.min_tokens = Draw(0, request->stop.max_tokens);
    if (OneIn(4)) {
      sampling.temperature = static_cast<float>(Draw(0, 20)) / 10;
      sampling.top_p = static_cast<float>(Draw(1, 10)) / 10;
      sampling.min_p = static_cast<float>(Draw(0, 10)) / 10;
      sampling.top_k = Draw(0, 5);
    }
    if (OneIn(4)) {
      sampling.repetition_penalty = static_cast<float>(Draw(5, 20)) / 10;
      sampling.frequency_penalty = static_cast<float>(Draw(-20, 20)) / 10;
      sampling.presence_penalty = static_cast<float>(Draw(-20, 20)) / 10;
    }
    if (OneIn(5)) sampling.logit_bias.push_back({Draw(0, ids_max), 2.5f});
    for (int words = OneIn(4) ? Draw(1, kWordsMax) : 0; words > 0; --words) {
      std::vector<int32_t>& word = sampling.bad_words.emplace_back();
      for (int length = Draw(1, 3); length > 0; --length) word.push_back(Draw(0, ids_max));
    }
    for (int i = OneIn(6) ? Draw(1, 12) : 0; i > 0; --i) {
      sampling.allowed_ids.push_back(Draw(0, ids_max));
    }
    if (OneIn(6)) sampling.logprobs = Draw(0, 3);
    if (OneIn(8)) sampling.prompt_logprobs = Draw(0, 3);
    if (OneIn(8)) request->token_mask = std::make_shared<ParityMask>();
  }

  const FakeAnswer& AnswerTo(const Request& request) { return answers_[request.id - 1]; }

  void CancelOne() {
    if (requests_.empty()) return;
    const RequestId id = Draw(1, static_cast<int>(requests_.size()));
    const bool was_live = !ends_.contains(id);
    const int64_t used = scheduler_.Load().kv_blocks_used;
    StepEvents events;
    EXPECT_EQ(scheduler_.Cancel(id, &events), was_live);
    EXPECT_EQ(events.requests.size(), was_live ? 1u : 0u);
    EXPECT_LE(scheduler_.Load().kv_blocks_used, used);
    Note(events);
  }

  bool PlanOne() {
    StepPlan* plan = &plans_[planned_ % plans_.size()];
    if (scheduler_.Plan(plan)) {
      ++planned_;
      scheduler_.CheckConsistent();
      EXPECT_LE(plan->token_ids.size(), static_cast<size_t>(limits_.batched_tokens_max));
      return true;
    }
    scheduler_.CheckConsistent();
    // Unless something is in flight, live requests can always go on.
    if (scheduler_.plans_in_flight() == 0) {
      EXPECT_FALSE(scheduler_.has_live()) << "deadlock";
    }
    return false;
  }

  void ApplyOne() {
    const StepPlan& plan = plans_[applied_++ % plans_.size()];
    StepEvents events;
    scheduler_.Apply(plan, device_.Run(plan), &events);
    scheduler_.CheckConsistent();
    Note(events);
  }

  void Note(StepEvents& events) {
    std::set<RequestId> seen;
    for (const RequestEvent& event : events.requests) {
      EXPECT_TRUE(seen.insert(event.id).second) << "two events of request " << event.id;
      EXPECT_FALSE(ends_.contains(event.id)) << "request " << event.id << " goes on after its end";
      Got& got = got_[event.id];
      got.ids.insert(got.ids.end(), event.token_ids.begin(), event.token_ids.end());
      Append(event.logprobs, &got.logprobs);
      Append(event.prompt_logprobs, &got.prompt_logprobs);
      if (event.finish != FinishReason::kNone) ends_[event.id] = event;
    }
    NoteCache(&events);
  }

  static void Append(const std::vector<TokenLogprobs>& from, std::vector<TokenLogprobs>* to) {
    to->insert(to->end(), from.begin(), from.end());
  }

  /// Follows the cache's changes as a router would.
  void NoteCache(StepEvents* events) {
    scheduler_.TakeCacheChanges(events);
    EXPECT_EQ(events->cache_sequence, cache_sequence_ + 1);
    for (const CacheChange& change : events->cache_changes) {
      ++cache_sequence_;
      const std::pair<uint64_t, uint64_t> key{change.block.high, change.block.low};
      const std::pair<uint64_t, uint64_t> parent{change.parent.high, change.parent.low};
      if (change.stored) {
        EXPECT_TRUE(parent == std::pair(uint64_t{0}, uint64_t{0}) || cached_.contains(parent));
        EXPECT_TRUE(cached_.emplace(key, parent).second);
        digest_.Store(change.block);
      } else {
        EXPECT_EQ(cached_.erase(key), 1u);
        for (const auto& [child, its_parent] : cached_) EXPECT_NE(its_parent, key);
        digest_.Remove(change.block);
      }
    }
    EXPECT_EQ(events->cache_digest, digest_.value());
    EXPECT_LE(cached_.size(), static_cast<size_t>(limits_.kv_blocks));
    if (!OneIn(10)) return;
    const auto snapshot = scheduler_.SnapshotCache();
    EXPECT_EQ(snapshot->sequence, cache_sequence_);
    EXPECT_EQ(snapshot->blocks.size(), cached_.size());
    EXPECT_EQ(snapshot->digest, digest_.value());
  }

  /// Recomputing everything for every token would be no more than this.
  uint64_t StepsMax() const {
    return 100 + requests_.size() * limits_.length_max * (limits_.length_max + 1);
  }

  void CheckEnd() {
    EXPECT_EQ(ends_.size(), requests_.size());
    for (const Request& request : requests_) {
      ASSERT_TRUE(ends_.contains(request.id));
      CheckRequest(request);
    }
    const EngineLoad load = scheduler_.Load();
    EXPECT_EQ(load.kv_blocks_used, 0);
    EXPECT_EQ(load.requests_running, 0);
    EXPECT_EQ(load.requests_waiting, 0);
    EXPECT_EQ(load.tokens_waiting, 0);
  }

  void CheckRequest(const Request& request) {
    SCOPED_TRACE("request " + std::to_string(request.id));
    const RequestEvent& end = ends_.at(request.id);
    const FakeAnswer& answer = AnswerTo(request);
    const Got& got = got_[request.id];
    EXPECT_EQ(end.prompt_tokens, static_cast<int32_t>(request.prompt_ids.size()));
    EXPECT_LT(end.cached_tokens, end.prompt_tokens);
    EXPECT_EQ(end.cached_tokens % limits_.block_size, 0);
    const bool cancelled = end.finish == FinishReason::kCancelled;
    if (!cancelled) {
      EXPECT_EQ(end.finish, answer.finish);
      EXPECT_EQ(end.stop_id, answer.stop_id);
      EXPECT_EQ(got.ids.size(), answer.token_ids.size());
      EXPECT_EQ(got.prompt_logprobs.size(), answer.prompt_logprobs.size());
    }
    ASSERT_LE(got.ids.size(), answer.token_ids.size());
    EXPECT_TRUE(std::equal(got.ids.begin(), got.ids.end(), answer.token_ids.begin()));
    EXPECT_EQ(got.logprobs.size(), request.sampling.logprobs >= 0 ? got.ids.size() : 0);
    ExpectLogprobs(got.logprobs, answer.logprobs);
    ExpectLogprobs(got.prompt_logprobs, answer.prompt_logprobs);
  }

  static void ExpectLogprobs(const std::vector<TokenLogprobs>& got,
                             const std::vector<TokenLogprobs>& expected) {
    ASSERT_LE(got.size(), expected.size());
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_EQ(got[i].id, expected[i].id);
      EXPECT_EQ(got[i].logprob, expected[i].logprob);
      EXPECT_EQ(got[i].rank, expected[i].rank);
      ASSERT_EQ(got[i].top.size(), expected[i].top.size());
      for (size_t j = 0; j < got[i].top.size(); ++j) {
        EXPECT_EQ(got[i].top[j].id, expected[i].top[j].id);
        EXPECT_EQ(got[i].top[j].logprob, expected[i].top[j].logprob);
      }
    }
  }

  void AddTo(Coverage* coverage) {
    EngineStats stats;
    scheduler_.FillStats(&stats);
    coverage->stats.preemptions += stats.preemptions;
    coverage->stats.prompt_tokens_cached += stats.prompt_tokens_cached;
    coverage->stats.cache_blocks_evicted += stats.cache_blocks_evicted;
    coverage->stats.draft_tokens += stats.draft_tokens;
    for (size_t j = 0; j < stats.draft_accepted.size(); ++j) {
      coverage->stats.draft_accepted[j] += stats.draft_accepted[j];
    }
    for (const auto& [id, end] : ends_) {
      coverage->cancels += end.finish == FinishReason::kCancelled ? 1 : 0;
      coverage->stats.requests_finished_stop += end.finish == FinishReason::kStop ? 1 : 0;
    }
    coverage->requests += requests_.size();
    coverage->steps += planned_;
  }

  struct Got {
    std::vector<int32_t> ids;
    std::vector<TokenLogprobs> logprobs;
    std::vector<TokenLogprobs> prompt_logprobs;
  };

  std::mt19937_64 random_;
  const SchedulerLimits limits_;
  Scheduler scheduler_;
  FakeDevice device_;
  std::vector<StepPlan> plans_;
  int vocabulary_of_prompts_ = 0;
  uint64_t planned_ = 0;
  uint64_t applied_ = 0;
  std::vector<Request> requests_;
  std::vector<FakeAnswer> answers_;
  std::map<RequestId, Got> got_;
  std::map<RequestId, RequestEvent> ends_;
  std::map<std::pair<uint64_t, uint64_t>, std::pair<uint64_t, uint64_t>> cached_;
  uint64_t cache_sequence_ = 0;
  Digest digest_;
};

TEST(SimulationTest, InvariantsHoldForEverySeed) {
  Coverage coverage;
  for (uint64_t seed = first_seed; seed < first_seed + seeds; ++seed) {
    SCOPED_TRACE("--first=" + std::to_string(seed) + " --seeds=1");
    Simulation simulation(seed);
    simulation.Run(&coverage);
    if (HasFailure()) return;
  }
  std::cout << coverage.requests << " requests, " << coverage.steps << " steps, "
            << coverage.stats.preemptions << " preemptions, " << coverage.cancels << " cancels, "
            << coverage.stats.requests_finished_stop << " stops, "
            << coverage.stats.prompt_tokens_cached << " tokens from the cache, "
            << coverage.stats.cache_blocks_evicted << " blocks evicted, "
            << coverage.stats.draft_tokens << " drafts, " << coverage.stats.draft_accepted[0]
            << " right at the first place\n";
  if (seeds < 100) return;
  // The simulation is worth something only if all of this does happen, and often.
  EXPECT_GT(coverage.stats.preemptions, seeds / 4);
  EXPECT_GT(coverage.cancels, seeds / 10);
  EXPECT_GT(coverage.stats.requests_finished_stop, seeds);
  EXPECT_GT(coverage.stats.prompt_tokens_cached, seeds * 10);
  EXPECT_GT(coverage.stats.cache_blocks_evicted, seeds * 10);
  EXPECT_GT(coverage.stats.draft_tokens, seeds * 10);
  EXPECT_GT(coverage.stats.draft_accepted[4], seeds / 10);
}

}  // namespace
}  // namespace glm::engine

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    const std::string name = argument.substr(0, equals);
    if (equals == std::string::npos || (name != "--seeds" && name != "--first")) {
      std::cerr << "unknown argument " << argument << "; there are --first=N and --seeds=N\n";
      return 1;
    }
    (name == "--seeds" ? glm::engine::seeds : glm::engine::first_seed) =
        std::strtoull(argument.c_str() + equals + 1, nullptr, 10);
  }
  return RUN_ALL_TESTS();
}
