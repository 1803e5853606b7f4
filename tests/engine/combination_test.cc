// One answer to each request, however it is computed: drafts, prefix cache, chunks, preemption and
// ranks in every combination, held to one request at a time without any of it. In float32 on the
// CPU that is equality to the bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "tests/engine/answers.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_model.h"

namespace glm::engine {
namespace {

using test::Answers;
using test::MustCreate;
using test::TempFolder;

const std::string kDemoModel = std::string(GLM_SOURCE_DIR) + "/deploy/demo-model";
constexpr float kInfinity = std::numeric_limits<float>::infinity();

EngineOptions OptionsFor(const std::string& model) {
  EngineOptions options;
  options.model = model;
  options.dtype = "float32";
  options.cpu_threads = 1;
  options.block_size = 16;
  options.kv_blocks = 256;
  options.max_num_seqs = 4;
  options.max_num_batched_tokens = 512;
  options.adaptive_drafts = false;
  return options;
}

/// What a request was answered.
struct Answer {
  std::vector<int32_t> tokens;
  std::vector<TokenLogprobs> logprobs;
  std::vector<TokenLogprobs> prompt_logprobs;
};

/// Empty if the two are equal to the bit.
std::string Difference(const std::vector<TokenLogprobs>& a, const std::vector<TokenLogprobs>& b) {
  if (a.size() != b.size()) return std::to_string(a.size()) + " entries";
  for (size_t i = 0; i < a.size(); ++i) {
    bool same = a[i].id == b[i].id && a[i].logprob == b[i].logprob && a[i].rank == b[i].rank &&
                a[i].top.size() == b[i].top.size();
    for (size_t t = 0; same && t < a[i].top.size(); ++t) {
      same = a[i].top[t].id == b[i].top[t].id && a[i].top[t].logprob == b[i].top[t].logprob;
    }
    if (!same) return "entry " + std::to_string(i);
  }
  return "";
}

/// Every sampling option, alone and among others.
SamplingParams ParamsOf(int32_t i, std::mt19937_64* random) {
  SamplingParams params;
  params.temperature = i % 3 == 0 ? 0.0f : 0.5f + 0.1f * static_cast<float>(i);
  params.seed = (*random)();
  params.choice = static_cast<uint32_t>(i % 2);
  if (i % 4 == 1) params.top_p = 0.9f;
  if (i % 4 == 2) params.top_k = 30;
  if (i % 4 == 3) params.min_p = 0.02f;
  if (i % 5 == 1) params.repetition_penalty = 1.3f;
  if (i % 5 == 2) params.frequency_penalty = 0.6f;
  if (i % 5 == 3) params.presence_penalty = 0.8f;
  if (i % 6 == 2) params.logit_bias = {{5, 3.0f}, {6, -kInfinity}, {7, 2.5f}};
  if (i % 6 == 3) params.bad_words = {{5}, {8, 9}, {7, 7, 7}};
  if (i % 6 == 4) {
    for (int32_t id = 3; id < 90; id += 2) params.allowed_ids.push_back(id);
  }
  if (i % 3 == 1) params.logprobs = i % 5;
  if (i == 5) params.prompt_logprobs = 2;
  return params;
}

/// Prompts of which some begin alike.
std::vector<Request> MixedRequests(int32_t count, int32_t vocabulary) {
  std::mt19937_64 random(4);
  const auto id = [&] {
    return static_cast<int32_t>(random() % static_cast<uint64_t>(vocabulary));
  };
  std::vector<int32_t> shared(48);
  for (int32_t& token : shared) token = id();
  std::vector<Request> requests;
  for (int32_t i = 0; i < count; ++i) {
    Request request;
    request.id = static_cast<RequestId>(i + 1);
    if (i % 2 == 0) request.prompt_ids = shared;
    const auto own = static_cast<int32_t>(1 + random() % (i % 4 == 3 ? 70 : 20));
    for (int32_t t = 0; t < own; ++t) request.prompt_ids.push_back(id());
    request.sampling = ParamsOf(i, &random);
    request.stop.max_tokens = static_cast<int32_t>(8 + random() % 16);
    request.stop.stop_ids = {id(), id()};
    if (i % 3 == 2) request.stop.min_tokens = 5;
    requests.push_back(request);
  }
  return requests;
}

std::map<RequestId, Answer> Collect(const std::vector<Request>& requests, Answers* answers) {
  std::map<RequestId, Answer> all;
  for (const Request& request : requests) {
    answers->AwaitEnd(request.id);
    all[request.id] = {answers->tokens(request.id), answers->logprobs(request.id),
                       answers->prompt_logprobs(request.id)};
  }
  return all;
}

std::map<RequestId, Answer> OneByOne(const std::string& model, int32_t ranks,
                                     const std::vector<Request>& requests) {
  EngineOptions options = OptionsFor(model);
  options.tensor_parallel_size = ranks;
  options.max_num_seqs = 1;
  options.enable_prefix_caching = false;
  Answers answers;
  const auto engine = MustCreate(options, &answers);
  for (const Request& request : requests) {
    EXPECT_TRUE(engine->Submit(request).ok());
    answers.AwaitEnd(request.id);
  }
  return Collect(requests, &answers);
}

struct Combination {
  int32_t drafts;
  bool cache;
  int32_t batched_tokens;
  bool few_blocks;
  int32_t ranks;

  std::string Name() const {
    return std::to_string(drafts) + " drafts, " + (cache ? "" : "no ") +
           "prefix cache, chunks of " + std::to_string(batched_tokens) +
           (few_blocks ? ", few blocks, " : ", ") + std::to_string(ranks) + " ranks";
  }
};

/// Runs all requests at once, twice: the second time what is cached is found.
EngineStats CheckCombination(const std::string& model, const Combination& c,
                             const std::vector<Request>& requests,
                             const std::map<RequestId, Answer>& want) {
  EngineOptions options = OptionsFor(model);
  options.num_speculative_tokens = c.drafts;
  options.enable_prefix_caching = c.cache;
  options.max_num_batched_tokens = c.batched_tokens;
  options.kv_blocks = c.few_blocks ? 7 : 256;
  options.tensor_parallel_size = c.ranks;
  Answers answers;
  const auto engine = MustCreate(options, &answers);
  for (const RequestId round : {0, 1000}) {
    std::vector<Request> copies = requests;
    for (Request& request : copies) {
      request.id += round;
      const absl::Status status = engine->Submit(request);
      EXPECT_TRUE(status.ok()) << status;
    }
    const std::map<RequestId, Answer> got = Collect(copies, &answers);
    for (const Request& request : requests) {
      const Answer& a = got.at(request.id + round);
      const Answer& b = want.at(request.id);
      EXPECT_EQ(a.tokens, b.tokens) << c.Name() << ", request " << request.id;
      EXPECT_EQ(Difference(a.logprobs, b.logprobs), "") << c.Name() << ", " << request.id;
      EXPECT_EQ(Difference(a.prompt_logprobs, b.prompt_logprobs), "")
          << c.Name() << ", " << request.id;
    }
  }
  engine->Stop();
  const EngineStats stats = engine->Stats();
  EXPECT_EQ(stats.load.kv_blocks_used, 0) << c.Name();
  EXPECT_EQ(stats.draft_rounds > 0, c.drafts > 0) << c.Name();
  EXPECT_EQ(stats.prompt_tokens_cached > 0, c.cache) << c.Name();
  EXPECT_EQ(stats.preemptions > 0, c.few_blocks) << c.Name();
  return stats;
}

std::vector<Combination> AllCombinations() {
  std::vector<Combination> all;
  for (const int32_t drafts : {0, 1, 3}) {
    for (const bool cache : {false, true}) {
      for (const int32_t batched_tokens : {16, 64, 512}) {
        for (const bool few_blocks : {false, true}) {
          for (const int32_t ranks : {1, 2}) {
            all.push_back({drafts, cache, batched_tokens, few_blocks, ranks});
          }
        }
      }
    }
  }
  return all;
}

/// The reference for each number of ranks: the tokens are the same, logprobs by their last bits
/// not, since several ranks sum in parts.
std::vector<std::map<RequestId, Answer>> References(const std::string& model,
                                                    const std::vector<Request>& requests) {
  std::vector<std::map<RequestId, Answer>> references;
  for (const int32_t ranks : {1, 2}) references.push_back(OneByOne(model, ranks, requests));
  for (const Request& request : requests) {
    EXPECT_EQ(references[1][request.id].tokens, references[0][request.id].tokens) << request.id;
  }
  return references;
}

TEST(CombinationTest, RandomModelAnswersAlike) {
  TempFolder folder;
  test::WriteTinyModel(folder.path(), {.mtp_layers = 1});
  const std::vector<Request> requests = MixedRequests(12, 128);
  const auto references = References(folder.path(), requests);
  for (const Combination& c : AllCombinations()) {
    CheckCombination(folder.path(), c, requests, references[c.ranks - 1]);
  }
}

/// Whether the demo model runs every combination: --every.
bool every = false;

/// A model whose drafts are right more often than not.
TEST(CombinationTest, DemoModelAnswersAlike) {
  const std::vector<Request> requests = MixedRequests(5, 4096);
  const auto references = References(kDemoModel, requests);
  for (const Combination& c : AllCombinations()) {
    // Some of them, unless told otherwise: this model takes its time.
    const int32_t sum = (c.drafts + 1) / 2 + (c.cache ? 1 : 0) +
                        (c.batched_tokens == 16   ? 0
                         : c.batched_tokens == 64 ? 1
                                                  : 2) +
                        (c.few_blocks ? 1 : 0);
    if (!every && (sum % 4 != 1 || c.ranks != 1 + (c.cache != c.few_blocks ? 1 : 0))) continue;
    CheckCombination(kDemoModel, c, requests, references[c.ranks - 1]);
  }
}

// ---- Distribution
// ---------------------------------------------------------------------------------

constexpr int32_t kFewIds = 16;  // few enough that logprobs tell the whole distribution

Request OneToken(RequestId id, const std::vector<int32_t>& prompt) {
  Request request;
  request.id = id;
  request.prompt_ids = prompt;
  request.sampling.logprobs = kFewIds;
  request.stop.max_tokens = 1;
  return request;
}

/// The model's probabilities of the token after `prompt`, at this temperature.
std::vector<double> Exact(Engine* engine, Answers* answers, RequestId id,
                          const std::vector<int32_t>& prompt, double temperature) {
  EXPECT_TRUE(engine->Submit(OneToken(id, prompt)).ok());
  answers->AwaitEnd(id);
  std::vector<double> shares(kFewIds, 0.0);
  const std::vector<TokenLogprobs> logprobs = answers->logprobs(id);
  EXPECT_EQ(logprobs.size(), 1u);
  EXPECT_EQ(logprobs[0].top.size(), static_cast<size_t>(kFewIds));
  double total = 0;
  for (const auto& [token, logprob] : logprobs[0].top) {
    shares[token] = std::exp(logprob / temperature);
    total += shares[token];
  }
  for (double& share : shares) share /= total;
  return shares;
}

/// Pearson's statistic and its degrees of freedom; cells that expect less than 5 count together.
std::pair<double, int> ChiSquare(const std::map<std::pair<int32_t, int32_t>, double>& shares,
                                 const std::map<std::pair<int32_t, int32_t>, int>& counts,
                                 double draws) {
  double statistic = 0, rest_expected = 0, rest = 0;
  int cells = 0;
  for (const auto& [cell, share] : shares) {
    const double expected = share * draws;
    const auto found = counts.find(cell);
    const double count = found == counts.end() ? 0 : found->second;
    if (expected < 5) {
      rest_expected += expected;
      rest += count;
      continue;
    }
    statistic += (count - expected) * (count - expected) / expected;
    ++cells;
  }
  if (rest_expected > 5) {
    statistic += (rest - rest_expected) * (rest - rest_expected) / rest_expected;
    ++cells;
  }
  return {statistic, cells - 1};
}

// The second and third token, both judged by drafts, given the first one: as the model has them.
TEST(CombinationTest, DraftedTokensFollowTheModelsDistribution) {
  TempFolder folder;
  test::WriteTinyModel(folder.path(), {.vocabulary = kFewIds, .mtp_layers = 1});
  EngineOptions options = OptionsFor(folder.path());
  options.num_speculative_tokens = 3;
  options.max_num_seqs = 64;
  constexpr int32_t kDraws = 6000;
  constexpr float kTemperature = 0.7f;
  options.max_waiting_requests = kDraws;
  Answers answers;
  const auto engine = MustCreate(options, &answers);
  const std::vector<int32_t> prompt = {3, 14, 1, 5, 9, 2, 6};

  std::map<std::pair<int32_t, int32_t>, int> counts;
  for (RequestId id = 1; id <= kDraws; ++id) {
    Request request;
    request.id = id;
    request.prompt_ids = prompt;
    request.sampling.temperature = kTemperature;
    request.sampling.seed = id;
    request.stop.max_tokens = 4;  // so that the second one is judged
    ASSERT_TRUE(engine->Submit(request).ok());
  }
  for (RequestId id = 1; id <= kDraws; ++id) {
    answers.AwaitEnd(id);
    const std::vector<int32_t> tokens = answers.tokens(id);
    ++counts[{tokens[0], tokens[1]}];
  }
  const EngineStats stats = engine->Stats();
  EXPECT_GT(stats.draft_accepted[0], kDraws / 30u) << "hardly a draft was right";

  std::map<std::pair<int32_t, int32_t>, double> shares;
  const std::vector<double> first = Exact(engine.get(), &answers, 100000, prompt, kTemperature);
  for (int32_t a = 0; a < kFewIds; ++a) {
    std::vector<int32_t> longer = prompt;
    longer.push_back(a);
    const std::vector<double> second =
        Exact(engine.get(), &answers, 100001 + static_cast<RequestId>(a), longer, kTemperature);
    for (int32_t b = 0; b < kFewIds; ++b) shares[{a, b}] = first[a] * second[b];
  }
  const auto [statistic, freedom] = ChiSquare(shares, counts, kDraws);
  EXPECT_GT(freedom, 50);
  // Wilson and Hilferty's approximation of the quantile p = 0.001.
  const double spread = 2.0 / (9 * freedom);
  EXPECT_LT(statistic, freedom * std::pow(1 - spread + 3.09 * std::sqrt(spread), 3)) << freedom;
}

// ---- A prompt that comes again
// --------------------------------------------------------------------

TEST(CombinationTest, ARepeatedLongPromptIsServedFromTheCache) {
  TempFolder folder;
  test::WriteTinyModel(folder.path(), {.mtp_layers = 1});
  for (const int32_t drafts : {0, 2}) {
    EngineOptions options = OptionsFor(folder.path());
    options.num_speculative_tokens = drafts;
    Answers answers;
    const auto engine = MustCreate(options, &answers);
    Request request;
    std::mt19937_64 random(2);
    for (int32_t t = 0; t < 2000; ++t) {
      request.prompt_ids.push_back(static_cast<int32_t>(random() % 128));
    }
    request.sampling.temperature = 0.9f;
    request.stop.max_tokens = 20;
    std::vector<double> seconds;
    for (request.id = 1; request.id <= 2; ++request.id) {
      const auto begin = std::chrono::steady_clock::now();
      ASSERT_TRUE(engine->Submit(request).ok());
      answers.AwaitTokens(request.id, 1);
      seconds.push_back(
          std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
      // All full blocks, but for the last token of the prompt, which is computed.
      EXPECT_EQ(answers.AwaitEnd(request.id).cached_tokens, request.id == 1 ? 0 : 1984);
    }
    EXPECT_EQ(answers.tokens(2), answers.tokens(1));
    EXPECT_LT(seconds[1], seconds[0] / 4);
    std::printf("time to the first token of 2,000, %d drafts: %.1f ms, again %.1f ms\n", drafts,
                seconds[0] * 1e3, seconds[1] * 1e3);
  }
}

}  // namespace
}  // namespace glm::engine

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) != "--every") {
      std::cerr << "unknown argument " << argv[i] << "; there is --every\n";
      return 1;
    }
    glm::engine::every = true;
  }
  return RUN_ALL_TESTS();
}
