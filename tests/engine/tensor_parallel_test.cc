// Ranks that share a model answer as one rank does: logits apart by the rounding of sums that are
// taken in another order, greedy tokens the same. And what sharing refuses, and what it takes.
#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "engine/engine.h"
#include "engine/rank/rank_group.h"
#include "engine/rank/start_plans.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/base/mutex.h"
#include "tests/engine/counting_communicator.h"
#include "tests/engine/rank_steppers.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_model.h"

namespace glm::engine {
namespace {

using test::Chunk;
using test::CountingMeeting;
using test::Expected;
using test::Gathered;
using test::Ids;
using test::kGolden;
using test::MaxDifference;
using test::MedianDifference;
using test::RankSteppers;
using test::Rows;
using test::Stepper;
using test::TempFolder;
using test::TinyFloat8;
using test::TinyModelOptions;
using testing::HasSubstr;

const std::string kDemoModel = std::string(GLM_SOURCE_DIR) + "/deploy/demo-model";

// ---- Logits ------------------------------------------------------------------------------------

struct GoldenCase {
  const char* checkpoint;
  int32_t ranks;
  bool mtp;
};

class GoldenRanksTest : public testing::TestWithParam<GoldenCase> {};

// In float32: against transformers, and against one rank, from which they may differ by the order
// of sums only.
TEST_P(GoldenRanksTest, LogitsAreThoseOfOneRank) {
  const GoldenCase& c = GetParam();
  Expected expected(c.checkpoint);
  const Ids& prompt = expected.integers["prompt_ids"];
  const bool both = expected.rows.count("logits_f32") != 0;
  RankSteppers ranks(kGolden + c.checkpoint, DType::kF32, c.ranks, {.threads = 1, .mtp = c.mtp});
  Stepper one(kGolden + c.checkpoint, DType::kF32, {.mtp = c.mtp});
  const Ids head(prompt.begin(), prompt.begin() + 11);
  const Ids tail(prompt.begin() + 11, prompt.end());
  Rows logits = ranks.Step({{1, head}, {0, prompt}});
  EXPECT_LT(MaxDifference(logits, one.Step({{1, head}, {0, prompt}})), 2e-5);
  logits.erase(logits.begin(), logits.begin() + 11);
  EXPECT_LT(MaxDifference(logits, expected.rows[both ? "logits_f32" : "logits"]), 1e-4);
  if (c.mtp) {
    const Ids& next = expected.integers["mtp_ids"];
    Ids all(next.begin(), next.begin() + 11);
    all.insert(all.end(), next.begin(), next.end());
    EXPECT_LT(MaxDifference(ranks.Draft(all), one.Draft(all)), 2e-5);
  }
  logits = ranks.Step({{1, tail}});
  for (size_t i = 0; i < 12; ++i) {
    const int32_t id = Stepper::ArgMax(logits.back());
    EXPECT_EQ(id, expected.integers["greedy_ids"][i]) << "token " << i;
    logits = ranks.Step({{1, {id}}});
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, GoldenRanksTest,
                         testing::Values(GoldenCase{"glm4_moe/norm_bias", 2, false},
                                         GoldenCase{"glm4_moe/tied", 4, false},
                                         GoldenCase{"glm4_moe/mtp_own", 2, true},
                                         GoldenCase{"glm4_moe/bfloat16", 2, false},
                                         GoldenCase{"glm4_moe_lite/bfloat16", 2, true},
                                         GoldenCase{"glm4_moe_lite/bfloat16", 4, true}),
                         [](const auto& param) {
                           std::string name = param.param.checkpoint;
                           std::replace(name.begin(), name.end(), '/', '_');
                           return name + "_" + std::to_string(param.param.ranks);
                         });

// Sums beside products are those behind them, to the bit: with all kinds of weights, in BF16 too,
// in steps above and below the bound, and in the draft layer.
TEST(TensorParallelTest, OverlapChangesNoBit) {
  const std::vector<TinyModelOptions> models = {
      {.query_heads = 8, .kv_heads = 4, .mtp_layers = 1},
      {.query_heads = 8, .kv_heads = 4, .mtp_layers = 1, .float8 = TinyFloat8::kChannel},
      {.hidden_size = 256,
       .layers = 2,
       .query_heads = 16,
       .kv_heads = 16,
       .dense_width = 336,
       .experts = 4,
       .expert_width = 176,
       .mtp_layers = 1,
       .float8 = TinyFloat8::kBlock}};
  TempFolder folders[3];
  std::vector<std::string> paths = {kGolden + "glm4_moe_lite/bfloat16"};
  for (size_t i = 0; i < models.size(); ++i) {
    test::WriteTinyModel(folders[i].path(), models[i]);
    paths.push_back(folders[i].path());
  }
  Ids prompt, next;
  for (int32_t i = 0; i < 40; ++i) {
    prompt.push_back(i * 37 % 60);
    next.push_back((i + 1) * 37 % 60);
  }
  for (const std::string& path : paths) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      for (const int32_t size : {2, 4}) {
        RankSteppers beside(path, dtype, size,
                            {.threads = 1, .mtp = true, .overlap_tokens_min = 10});
        RankSteppers behind(
            path, dtype, size,
            {.threads = 1, .mtp = true, .overlap_tokens_min = GlmOptions::kNoOverlap});
        EXPECT_TRUE(beside.Step({{0, prompt}}) == behind.Step({{0, prompt}})) << path;
        EXPECT_TRUE(beside.Draft(next) == behind.Draft(next)) << path;
        const std::vector<Chunk> mixed = {{0, {7}}, {1, prompt}};
        EXPECT_TRUE(beside.Step(mixed) == behind.Step(mixed)) << path;
        const std::vector<Chunk> few = {{0, {7}}, {1, {9}}};
        EXPECT_TRUE(beside.Step(few) == behind.Step(few)) << path;
      }
    }
  }
}

// In BF16 each rank's part of a sum is rounded before the parts are summed, so the distance to
// float32 may grow, but not past one and a half times that of one
// rank.
TEST(TensorParallelTest, BFloat16IsAsNearToFloat32) {
  for (const std::string name : {"glm4_moe/bfloat16", "glm4_moe_lite/bfloat16"}) {
    Expected expected(name);
    const std::vector<Chunk> chunks = {{0, expected.integers["prompt_ids"]}};
    const Rows one = Stepper(kGolden + name, DType::kBF16).Step(chunks);
    const Rows two = RankSteppers(kGolden + name, DType::kBF16, 2).Step(chunks);
    const Rows& exact = expected.rows["logits_f32"];
    const double error = MedianDifference(one, exact);
    EXPECT_LT(MedianDifference(two, exact), 1.5 * error) << name;
    EXPECT_LT(MedianDifference(two, one), 1.5 * error) << name;
  }
}

// In blocks of 128 x 128 that two ranks share without cutting one, and four do not.
TinyModelOptions BlockModel() {
  return {.hidden_size = 128,
          .layers = 2,
          .query_heads = 16,
          .kv_heads = 16,
          .dense_width = 256,
          .experts = 4,
          .expert_width = 256,
          .float8 = TinyFloat8::kBlock};
}

// Ranks quantise their own part of a token's row, with a scale of its own: they may not be farther
// from one rank than FP8 itself is from the weights that it was made of.
TEST(TensorParallelTest, Float8WeightsAreSharedWithTheirScales) {
  TinyModelOptions channel = {.query_heads = 8, .kv_heads = 4, .float8 = TinyFloat8::kChannel};
  TinyModelOptions cut = BlockModel();
  cut.dense_width = 336;  // 2.6 blocks, cut between gate and up, and by ranks
  cut.expert_width = 176;
  for (TinyModelOptions options : {channel, BlockModel(), cut}) {
    TempFolder quantized, plain;
    test::WriteTinyModel(quantized.path(), options);
    options.float8 = TinyFloat8::kNone;
    test::WriteTinyModel(plain.path(), options);
    std::vector<Chunk> chunks = {{0, {}}};
    for (int32_t i = 0; i < 60; ++i) chunks[0].ids.push_back(i * 37 % options.vocabulary);
    const Rows exact = Stepper(plain.path(), DType::kF32).Step(chunks);
    const Rows one = Stepper(quantized.path(), DType::kF32).Step(chunks);
    const double error = MedianDifference(one, exact);
    EXPECT_GT(error, 0);
    for (const int32_t size : {2, 4}) {
      RankSteppers ranks(quantized.path(), DType::kF32, size);
      const Rows shared = ranks.Step(chunks);
      EXPECT_LT(MedianDifference(shared, one), error) << options.dense_width << " on " << size;
      EXPECT_LT(MedianDifference(shared, exact), 1.5 * error)
          << options.dense_width << " on " << size;
      EXPECT_LT(ranks.weight_bytes(1),
                Stepper(quantized.path(), DType::kF32).model().weight_bytes() * 0.7);
    }
  }
}

// ---- Engines -----------------------------------------------------------------------------------

EngineOptions OptionsFor(const std::string& folder, int32_t ranks) {
  EngineOptions options;
  options.model = folder;
  options.tensor_parallel_size = ranks;
  options.dtype = "float32";
  options.cpu_threads = 2;
  options.block_size = 16;
  options.kv_blocks = 400;
  options.max_num_seqs = 50;
  options.max_num_batched_tokens = 256;
  return options;
}

// A hundred requests; where `sampled`, every second one is.
std::vector<Request> HundredRequests(int32_t vocabulary, bool sampled) {
  std::mt19937_64 random(7);
  const auto draw = [&](int min, int max) {
    return std::uniform_int_distribution<int>(min, max)(random);
  };
  std::vector<Request> requests(100);
  for (int i = 0; i < 100; ++i) {
    Request& request = requests[i];
    request.id = i + 1;
    const int prompt = draw(1, 20);
    for (int t = 0; t < prompt; ++t) request.prompt_ids.push_back(draw(0, vocabulary - 1));
    request.sampling.temperature = sampled && i % 2 == 0 ? 0.8f : 0.0f;
    request.sampling.seed = random();
    request.stop.max_tokens = 16;
  }
  return requests;
}

// What an engine answers to requests that all run together; none: to the hundred.
std::map<RequestId, Ids> Answer(const EngineOptions& options, std::vector<Request> requests,
                                bool sampled = false) {
  Mutex mutex;
  Condition changed;
  std::map<RequestId, Ids> tokens;
  size_t ended = 0;
  auto engine = Engine::Create(options, [&](StepEvents&& events) {
    MutexLock lock(&mutex);
    for (const RequestEvent& event : events.requests) {
      Ids& ids = tokens[event.id];
      ids.insert(ids.end(), event.token_ids.begin(), event.token_ids.end());
      ended += event.finish != FinishReason::kNone ? 1 : 0;
    }
    changed.SignalAll();
  });
  EXPECT_TRUE(engine.ok()) << engine.status();
  if (!engine.ok()) return {};
  if (requests.empty()) requests = HundredRequests((*engine)->shape().vocabulary, sampled);
  for (const Request& request : requests) EXPECT_TRUE((*engine)->Submit(request).ok());
  {
    MutexLock lock(&mutex);
    while (ended < requests.size()) changed.Wait(&mutex);
  }
  (*engine)->Stop();
  return tokens;
}

std::map<RequestId, Ids> Answer(const EngineOptions& options, bool sampled) {
  return Answer(options, {}, sampled);
}

TEST(TensorParallelTest, DemoModelAnswersAHundredPromptsAlike) {
  const std::map<RequestId, Ids> one = Answer(OptionsFor(kDemoModel, 1), /*sampled=*/false);
  ASSERT_EQ(one.size(), 100u);
  for (const auto& [id, ids] : one) EXPECT_EQ(ids.size(), 16u) << id;
  for (const int32_t ranks : {2, 4}) {
    EXPECT_EQ(Answer(OptionsFor(kDemoModel, ranks), /*sampled=*/false), one) << ranks << " ranks";
  }
}

// The most ranks, sampled tokens besides, and two steps on the way, in which ranks may be apart.
TEST(TensorParallelTest, EightRanksAnswerAlike) {
  TempFolder folder;
  test::WriteTinyModel(folder.path(), {.query_heads = 16, .kv_heads = 8, .mtp_layers = 1});
  const std::map<RequestId, Ids> one = Answer(OptionsFor(folder.path(), 1), /*sampled=*/true);
  ASSERT_EQ(one.size(), 100u);
  for (const int32_t ranks : {2, 8}) {
    EngineOptions options = OptionsFor(folder.path(), ranks);
    options.steps_in_flight = 2;
    EXPECT_EQ(Answer(options, /*sampled=*/true), one) << ranks << " ranks";
  }
}

// Every way of drawing that a rank can do by its own slice of the vocabulary; where `limited`, some
// that it cannot, which come and go.
std::vector<Request> RequestsOfAllKinds(int32_t vocabulary, bool limited) {
  std::mt19937_64 random(17);
  const auto id = [&] { return static_cast<int32_t>(random() % vocabulary); };
  std::vector<Request> requests(30);
  for (int32_t i = 0; i < 30; ++i) {
    Request& request = requests[i];
    request.id = static_cast<RequestId>(i + 1);
    for (int32_t t = 0; t < 3 + i % 11; ++t) request.prompt_ids.push_back(id());
    SamplingParams& sampling = request.sampling;
    sampling.temperature = i % 3 == 0 ? 0.0f : 0.4f * static_cast<float>(i % 4 + 1);
    sampling.seed = random();
    sampling.choice = static_cast<uint32_t>(i % 2);
    if (i % 5 == 1) sampling.repetition_penalty = 1.4f;
    if (i % 5 == 2) sampling.frequency_penalty = 0.7f;
    if (i % 5 == 3) sampling.presence_penalty = 0.9f;
    if (i % 4 == 1) sampling.logit_bias = {{id(), 4.0f}, {id(), -3.0f}, {id(), 3.5f}};
    if (i % 4 == 2) sampling.bad_words = {{id()}, {id(), id()}, {id()}};
    if (i % 6 == 5) {
      // Of some ranks none, of others few.
      for (int32_t k = 0; k < 9; ++k) sampling.allowed_ids.push_back(id() / 2);
    }
    if (i % 7 == 3) {
      request.stop.stop_ids = {id(), id(), id()};
      request.stop.min_tokens = 6;
    }
    request.stop.max_tokens = 6 + i % 9;
    if (!limited) continue;
    if (i % 10 == 1) sampling.top_p = 0.8f;
    if (i % 10 == 4) sampling.top_k = 5;
    if (i % 10 == 8) sampling.min_p = 0.1f;
    if (i == 7) sampling.logprobs = 3;
  }
  return requests;
}

// Slices of 15 ids on 8 ranks, so that they begin at no multiple of 4.
TEST(TensorParallelTest, EveryKindOfDrawIsThatOfOneRank) {
  TempFolder folder;
  test::WriteTinyModel(folder.path(),
                       {.query_heads = 16, .kv_heads = 8, .vocabulary = 120, .mtp_layers = 1});
  for (const bool limited : {false, true}) {
    const std::vector<Request> requests = RequestsOfAllKinds(120, limited);
    const std::map<RequestId, Ids> one = Answer(OptionsFor(folder.path(), 1), requests);
    ASSERT_EQ(one.size(), 30u);
    for (const int32_t ranks : {2, 4, 8}) {
      for (const int32_t drafts : {0, 3}) {
        EngineOptions options = OptionsFor(folder.path(), ranks);
        options.max_num_seqs = 12;
        options.num_speculative_tokens = drafts;
        EXPECT_EQ(Answer(options, requests), one)
            << ranks << " ranks, " << drafts << " drafts" << (limited ? ", some limited" : "");
      }
    }
  }
}

// ---- What ranks exchange -----------------------------------------------------------------------

RankOptions RankOptionsFor(const ModelConfig& config, int32_t ranks) {
  RankOptions options;
  options.folder = kDemoModel;
  options.device = "cpu";
  options.dtype = options.kv_dtype = DType::kBF16;
  options.kv_blocks = 200;
  options.block_size = 16;
  options.batch.step = Glm::CompleteLimits(
      config.OfRank(ranks), {.tokens_max = 256, .sequences_max = 32, .logit_rows_max = 32});
  options.batch.blocks_max = 64;
  options.batch.slots = 32;
  options.batch.vocabulary_used = config.vocabulary_used;
  options.batch.drafts_max = 2;
  return options;
}

// Ranks whose exchange is noted.
class CountingRanks {
 public:
  CountingRanks(const RankOptions& options, const ModelConfig& config, int32_t ranks)
      : meeting_(ranks, kElementsMax), gate_(ranks) {
    for (int32_t rank = 0; rank < ranks; ++rank) {
      ranks_.push_back(std::make_unique<Rank>(
          options, config, RankPlace{.rank = rank, .meeting = &meeting_, .gate = &gate_}));
    }
    for (const auto& rank : ranks_) EXPECT_TRUE(rank->AwaitStart().ok());
  }

  StepResult Step(const StepPlan& plan) {
    for (const auto& rank : ranks_) rank->Submit(&plan);
    std::vector<StepResult> results;
    for (const auto& rank : ranks_) results.push_back(rank->Wait());
    for (const StepResult& result : results) {
      EXPECT_EQ(result.ids, results[0].ids);
      EXPECT_EQ(result.drafts, results[0].drafts);
    }
    gathered_ = meeting_.Take();
    return results[0];
  }
  // Of the last step.
  const Gathered& gathered() const { return gathered_; }

 private:
  static constexpr int64_t kElementsMax = 1 << 20;

  CountingMeeting meeting_;
  StartGate gate_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  Gathered gathered_;
};

// Two words a row where every row allows it, else all logits; the step's rows decide for its drafts
// too. Rows that allow it draw the same either way.
TEST(TensorParallelTest, RanksExchangeLogitsOnlyWhereARowNeedsThem) {
  const auto config = ModelConfig::Read(kDemoModel);
  ASSERT_TRUE(config.ok()) << config.status();
  const RankOptions options = RankOptionsFor(*config, 4);
  CountingRanks ranks(options, *config, 4);
  StepPlan plan = StartPlan(options.batch, 4);
  for (size_t t = 0; t < plan.token_ids.size(); ++t) {
    plan.token_ids[t] = static_cast<int32_t>(5 + 31 * t);
  }
  for (size_t s = 0; s < 4; ++s) plan.block_tables[s] = static_cast<int32_t>(s);
  for (size_t r = 3; r < plan.sample_rows.size(); ++r) {
    plan.sample_rows[r].temperature = 0.9f;
    plan.sample_rows[r].seed = r;
  }
  const StepResult sliced = ranks.Step(plan);
  EXPECT_EQ(ranks.gathered(), (Gathered{2 * 12, 2 * 4, 2 * 4}));

  // It draws what it drew: all but no probability is cut off.
  plan.sample_rows[5].min_p = 1e-30f;
  const StepResult whole = ranks.Step(plan);
  const int64_t columns = config->vocabulary / 4;
  EXPECT_EQ(ranks.gathered(), (Gathered{columns, columns, columns}));
  EXPECT_EQ(whole.ids, sliced.ids);
  EXPECT_EQ(whole.drafts, sliced.drafts);
  EXPECT_EQ(sliced.drafts.size(), 8u);

  plan.sample_rows[5].min_p = 0;
  plan.draft_rows.clear();
  plan.drafts = 0;
  EXPECT_EQ(ranks.Step(plan).ids, sliced.ids);
  EXPECT_EQ(ranks.gathered(), (Gathered{2 * 12}));
}

// ---- Memory and refusals -----------------------------------------------------------------------

// A device allocates nothing once it is sealed, so what it has taken by then is the peak.
TEST(TensorParallelTest, EveryRankTakesWhatWasPlanned) {
  const auto config = ModelConfig::Read(kDemoModel);
  ASSERT_TRUE(config.ok()) << config.status();
  int64_t alone = 0;
  for (const int32_t ranks : {1, 2, 4}) {
    const auto group = RankGroup::Start(RankOptionsFor(*config, ranks), *config, ranks);
    ASSERT_TRUE(group.ok()) << group.status();
    ASSERT_EQ((*group)->size(), ranks);
    if (ranks == 1) alone = (*group)->memory(0).weight_bytes;
    int64_t weight_bytes = 0;
    for (int32_t rank = 0; rank < ranks; ++rank) {
      const RankMemory& memory = (*group)->memory(rank);
      const auto planned = static_cast<double>(memory.planned_bytes());
      EXPECT_GE(memory.allocated_bytes, memory.planned_bytes());
      EXPECT_LT(memory.allocated_bytes, 1.05 * planned) << rank << " of " << ranks;
      // 5 layers and the draft layer, keys and values of 4 heads of 128 in all; and ids.
      EXPECT_EQ(memory.kv_bytes, 200 * 16 * (6 * 2 * (4 / ranks) * 128 * 2 + 4));
      weight_bytes += memory.weight_bytes;
    }
    // Norms, routers and the draft layer's projection are on every rank; they are small.
    EXPECT_GE(weight_bytes, alone);
    EXPECT_LT(static_cast<double>(weight_bytes), 1.06 * static_cast<double>(alone));
  }
}

struct Refusal {
  std::string folder;
  int32_t ranks;
  const char* message;  // a part of it
};

TEST(TensorParallelTest, SizesThatCannotBeAreRefusedWithThoseThatCan) {
  const Refusal refusals[] = {
      {kDemoModel, 8,
       "tensor_parallel_size is 8, which does not divide num_key_value_heads 4; accepted: 1, 2, 4"},
      {kDemoModel, 3, "tensor_parallel_size is 3, must be 1, 2, 4 or 8"},
      {kGolden + "glm4_moe_lite/flash", 2, "does not divide num_attention_heads 5; accepted: 1"},
      {kGolden + "glm4_moe/air", 2, "does not divide num_key_value_heads 1; accepted: 1"},
  };
  for (const Refusal& refusal : refusals) {
    const auto engine =
        Engine::Create(OptionsFor(refusal.folder, refusal.ranks), [](StepEvents&&) {});
    ASSERT_FALSE(engine.ok()) << refusal.message;
    EXPECT_EQ(engine.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(engine.status().message(), HasSubstr(refusal.message));
  }
}

// Nobody waits for a rank that could not start.
TEST(TensorParallelTest, OneRankThatCannotStartEndsTheStart) {
  const auto config = ModelConfig::Read(kDemoModel);
  ASSERT_TRUE(config.ok()) << config.status();
  RankOptions options = RankOptionsFor(*config, 2);
  options.kv_blocks = EngineOptions::kKvBlocksMax;
  options.block_size = 128;
  const auto group = RankGroup::Start(options, *config, 2);
  EXPECT_EQ(group.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(group.status().message(), HasSubstr("of 2) has "));
}

}  // namespace
}  // namespace glm::engine
