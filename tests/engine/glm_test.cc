// The model against transformers: all logits of tiny random checkpoints, and greedy continuations,
// however the tokens are spread over steps. The golden files are made by
// tests/golden/make_glm4_moe.py and make_glm4_moe_lite.py.
#include "engine/model/glm.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "engine/model/attention.h"
#include "engine/model/safetensors.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/stepper.h"

namespace glm::engine {
namespace {

using test::Chunk;
using test::Expected;
using test::Ids;
using test::kGolden;
using test::MaxDifference;
using test::MedianDifference;
using test::RmsDifference;
using test::Rows;
using test::Stepper;

Ids Part(const Ids& ids, size_t begin, size_t end) {
  return Ids(ids.begin() + begin, ids.begin() + std::min(end, ids.size()));
}

constexpr double kFloatBound = 1e-4;

// The cases computed in float32.
class GoldenTest : public testing::TestWithParam<std::string> {
 protected:
  GoldenTest()
      : expected_(GetParam()),
        prompt_(expected_.integers["prompt_ids"]),
        greedy_(expected_.integers["greedy_ids"]) {
    const bool both = expected_.rows.count("logits_f32") != 0;
    logits_ = expected_.rows[both ? "logits_f32" : "logits"];
  }
  std::string folder() const { return kGolden + GetParam(); }

  Expected expected_;
  Ids prompt_;
  Ids greedy_;
  Rows logits_;
};

TEST_P(GoldenTest, LogitsOfOnePrefillAndItsContinuation) {
  Stepper stepper(folder(), DType::kF32);
  ASSERT_EQ(prompt_.size(), 50u);
  const Rows logits = stepper.Step({{0, prompt_}});
  EXPECT_LT(MaxDifference(logits, logits_), kFloatBound);
  EXPECT_EQ(stepper.Greedy(0, logits.back(), 64), greedy_);
}

TEST_P(GoldenTest, TokenByToken) {
  Stepper stepper(folder(), DType::kF32, {.threads = 1});
  Rows logits;
  for (const int32_t id : prompt_) logits.push_back(stepper.Step({{2, {id}}})[0]);
  EXPECT_LT(MaxDifference(logits, logits_), kFloatBound);
  EXPECT_EQ(stepper.Greedy(2, logits.back(), 64), greedy_);
}

// The continuation too is compared as one prefill: its logits choose the tokens that HF chose.
TEST_P(GoldenTest, ContinuationAsPrefill) {
  Stepper stepper(folder(), DType::kF32);
  Ids all = prompt_;
  all.insert(all.end(), greedy_.begin(), greedy_.end());
  const Rows logits = stepper.Step({{1, all}});
  for (size_t i = 0; i < greedy_.size(); ++i) {
    EXPECT_EQ(Stepper::ArgMax(logits[prompt_.size() - 1 + i]), greedy_[i]) << "token " << i;
  }
}

// Four sequences in one batch, of which two are the golden prompt, in chunks that end inside and
// at the border of blocks; prompts, chunks and single tokens share steps.
TEST_P(GoldenTest, ChunkedAndBatched) {
  Stepper stepper(folder(), DType::kF32);
  Ids other = prompt_;
  std::reverse(other.begin(), other.end());
  Rows first, third;
  const auto step = [&](const std::vector<Chunk>& chunks) {
    const Rows rows = stepper.Step(chunks);
    size_t row = 0;
    for (const Chunk& chunk : chunks) {
      for (size_t i = 0; i < chunk.ids.size(); ++i, ++row) {
        if (chunk.sequence == 0) first.push_back(rows[row]);
        if (chunk.sequence == 2) third.push_back(rows[row]);
      }
    }
  };
  step({{0, Part(prompt_, 0, 7)}, {1, Part(other, 0, 16)}});
  step({{1, Part(other, 16, 17)}, {2, Part(prompt_, 0, 32)}, {0, Part(prompt_, 7, 23)}});
  step({{3, other}, {2, Part(prompt_, 32, 33)}, {0, Part(prompt_, 23, 50)}});
  step({{2, Part(prompt_, 33, 50)}, {1, Part(other, 17, 18)}});
  EXPECT_LT(MaxDifference(first, logits_), kFloatBound);
  EXPECT_LT(MaxDifference(third, logits_), kFloatBound);

  // Both go on together, beside the two others.
  Ids first_ids{Stepper::ArgMax(first.back())}, third_ids{Stepper::ArgMax(third.back())};
  for (size_t i = 1; i < greedy_.size(); ++i) {
    const Rows rows = stepper.Step({{2, {third_ids.back()}},
                                    {1, {other[i % other.size()]}},
                                    {0, {first_ids.back()}},
                                    {3, {other[i % 3]}}});
    third_ids.push_back(Stepper::ArgMax(rows[0]));
    first_ids.push_back(Stepper::ArgMax(rows[2]));
  }
  EXPECT_EQ(first_ids, greedy_);
  EXPECT_EQ(third_ids, greedy_);
}

// The last layer on the logit rows alone gives what it gives on all, to the bit: no row of a
// sequence, of several, of a chunk that ends within the prompt, and beside a decoding sequence.
TEST_P(GoldenTest, LogitRowsApart) {
  Stepper all(folder(), DType::kF32);
  Stepper apart(folder(), DType::kF32);
  struct Case {
    std::vector<Chunk> chunks;
    Ids wanted;
  };
  const std::vector<Case> cases = {
      {{{0, Part(prompt_, 0, 20)}, {1, Part(prompt_, 0, 30)}}, {}},
      {{{0, Part(prompt_, 20, 50)}, {1, Part(prompt_, 30, 33)}, {2, prompt_}}, {0, 2}},
      {{{2, {greedy_[0]}}, {1, Part(prompt_, 33, 50)}}, {0, 1}},
  };
  for (const Case& step : cases) {
    const Rows of_all = all.Step(step.chunks);
    Rows expected;
    size_t end = 0;
    for (size_t s = 0; s < step.chunks.size(); ++s) {
      end += step.chunks[s].ids.size();
      if (std::count(step.wanted.begin(), step.wanted.end(), s) > 0) {
        expected.push_back(of_all[end - 1]);
      }
    }
    EXPECT_EQ(apart.StepApart(step.chunks, step.wanted), expected);
  }
}

INSTANTIATE_TEST_SUITE_P(Float32, GoldenTest,
                         testing::Values("glm4_moe/norm_bias", "glm4_moe/air", "glm4_moe/tied",
                                         "glm4_moe/bfloat16", "glm4_moe_lite/flash",
                                         "glm4_moe_lite/wide", "glm4_moe_lite/bfloat16"),
                         [](const auto& param) {
                           std::string name = param.param;
                           std::replace(name.begin(), name.end(), '/', '_');
                           return name;
                         });

// In BF16 two right implementations round at different points, so they differ by as much as each
// differs from float32. That is the measure: we round less often than transformers, so we must not
// be farther from float32 than it is. Now and then a rounding chooses another expert, which moves
// one position's logits by tenths, hence the median; logits have a standard deviation of 1.
TEST(GlmTest, BFloat16IsAsCloseToFloat32AsTheReference) {
  for (const std::string name : {"glm4_moe/bfloat16", "glm4_moe_lite/bfloat16"}) {
    Expected expected(name);
    Stepper stepper(kGolden + name, DType::kBF16);
    const Rows logits = stepper.Step({{0, expected.integers["prompt_ids"]}});
    const Rows& exact = expected.rows["logits_f32"];
    const Rows& reference = expected.rows["logits"];
    const double reference_error = MedianDifference(reference, exact);
    EXPECT_LT(MedianDifference(logits, exact), reference_error) << name;
    EXPECT_LT(MedianDifference(logits, reference), 2 * reference_error) << name;
    EXPECT_LT(reference_error, 0.05) << name;
    EXPECT_LT(RmsDifference(logits, exact), 0.1) << name;
  }
}

// An FP8 cache costs exactness, not sense: its values are rounded to 4 bits of mantissa.
TEST(GlmTest, Float8CacheIsNear) {
  for (const std::string name : {"glm4_moe/norm_bias", "glm4_moe_lite/flash"}) {
    Expected expected(name);
    Stepper stepper(kGolden + name, DType::kF32, {.float8_cache = true});
    const Rows logits = stepper.Step({{0, expected.integers["prompt_ids"]}});
    const double error = RmsDifference(logits, expected.rows["logits"]);
    EXPECT_LT(error, 0.25) << name;
    EXPECT_GT(error, 1e-4) << name;  // it was used
  }
}

TEST(GlmTest, TraceNamesEveryIntermediateInOrder) {
  Stepper stepper(kGolden + "glm4_moe/air", DType::kF32);
  std::vector<std::string> names;
  stepper.model().SetTrace([&](const std::string& name, const Tensor& tensor) {
    EXPECT_FALSE(tensor.empty()) << name;
    names.push_back(name);
  });
  stepper.Step({{0, {1, 2, 3}}});
  EXPECT_THAT(
      names,
      testing::ElementsAre(
          "embedding", "layers.0.qkv", "layers.0.queries", "layers.0.heads", "layers.0.attention",
          "layers.0.product", "layers.0.ffn", "layers.1.qkv", "layers.1.queries", "layers.1.heads",
          "layers.1.attention", "layers.1.expert_ids", "layers.1.expert_weights", "layers.1.ffn",
          "layers.2.qkv", "layers.2.queries", "layers.2.heads", "layers.2.attention",
          "layers.2.expert_ids", "layers.2.expert_weights", "layers.2.ffn", "norm", "logits"));
  stepper.model().SetTrace(nullptr);
  names.clear();
  stepper.Step({{0, {4}}});
  EXPECT_TRUE(names.empty());
}

TEST(GlmTest, TraceNamesTheLatents) {
  Stepper stepper(kGolden + "glm4_moe_lite/flash", DType::kF32);
  std::vector<std::string> names;
  stepper.model().SetTrace([&](const std::string& name, const Tensor&) { names.push_back(name); });
  stepper.Step({{0, {1, 2, 3}}});
  EXPECT_THAT(names, testing::IsSupersetOf({"layers.0.latents", "layers.2.queries",
                                            "layers.2.heads", "layers.2.attention", "norm"}));
}

TEST(GlmTest, WeightBytesAreThoseOfTheCheckpoint) {
  for (const std::string name :
       {"glm4_moe/air", "glm4_moe/tied", "glm4_moe/norm_bias", "glm4_moe_lite/wide"}) {
    Stepper stepper(kGolden + name, DType::kF32);
    auto checkpoint = Checkpoint::Open(kGolden + name);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    int64_t bytes = 0;
    for (const auto& [key, tensor] : checkpoint->tensors()) bytes += tensor.bytes;
    EXPECT_EQ(stepper.model().weight_bytes(), bytes) << name;
  }
}

TEST(GlmTest, CacheBytes) {
  auto config = ModelConfig::Read(kGolden + "glm4_moe/air");
  ASSERT_TRUE(config.ok()) << config.status();
  // 3 layers of keys and values, 1 kv head of 16 values, 32 positions of 2 bytes; and their ids.
  EXPECT_EQ(KvCache::BytesPerBlock(*config, DType::kBF16, 32), 3 * 2 * 16 * 32 * 2 + 32 * 4);
  auto device = CreateCpuDevice(1);
  const KvCache cache = KvCache::Allocate(*device, *config, DType::kBF16, 5, 32);
  int64_t bytes = cache.tokens.ids.bytes();
  for (const KvLayer& layer : cache.layers) bytes += layer.keys.bytes() + layer.values.bytes();
  EXPECT_EQ(bytes, 5 * KvCache::BytesPerBlock(*config, DType::kBF16, 32));
}

TEST(GlmTest, LatentCacheBytes) {
  auto config = ModelConfig::Read(kGolden + "glm4_moe_lite/flash");
  ASSERT_TRUE(config.ok()) << config.status();
  // 3 layers of 32 + 4 values for 16 positions of 4 bytes, no values apart; then the draft layer.
  // And an id a position.
  EXPECT_EQ(KvCache::BytesPerBlock(*config, DType::kF32, 16), 3 * 36 * 16 * 4 + 16 * 4);
  EXPECT_EQ(KvCache::BytesPerBlock(*config, DType::kF32, 16, /*mtp=*/true),
            4 * 36 * 16 * 4 + 16 * 4);
  auto device = CreateCpuDevice(1);
  const KvCache cache = KvCache::Allocate(*device, *config, DType::kF32, 5, 16, /*mtp=*/true);
  int64_t bytes = cache.mtp.keys.bytes() + cache.tokens.ids.bytes();
  for (const KvLayer& layer : cache.layers) {
    EXPECT_TRUE(layer.values.empty());
    bytes += layer.keys.bytes();
  }
  EXPECT_EQ(bytes, 5 * KvCache::BytesPerBlock(*config, DType::kF32, 16, /*mtp=*/true));
}

// The angle is position * frequency in float. A frequency whose last bit is rounded otherwise, as
// another pow may, moves the angle by 2^-24 of itself, and that is all that is allowed here.
TEST(RopeTest, FarPositionsAgreeWithTheReference) {
  Expected expected("glm4_moe/rope");
  const Ids& positions = expected.integers["positions"];
  constexpr int32_t kSize = 64;
  const std::vector<float> table = RopeTable(1e6, kSize, 202752);
  for (size_t row = 0; row < positions.size(); ++row) {
    const double position = positions[row];
    for (int32_t i = 0; i < kSize / 2; ++i) {
      const double bound = 1e-6 + position * std::pow(1e6, -2.0 * i / kSize) * std::exp2(-23);
      const float* angles = table.data() + positions[row] * kSize;
      EXPECT_NEAR(angles[i], expected.rows["cosines"][row][i], bound) << position << " " << i;
      EXPECT_NEAR(angles[kSize / 2 + i], expected.rows["sines"][row][i], bound)
          << position << " " << i;
    }
  }
}

}  // namespace
}  // namespace glm::engine
