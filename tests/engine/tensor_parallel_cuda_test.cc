// Ranks on GPUs give the tokens of one rank, at the widths of the published models: their first
// layers, with random weights. Each rank has a GPU of its own where there are enough, else all
// share the first. Skips without a GPU.
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/engine/rank_steppers.h"
#include "tests/support/temp_folder.h"

namespace glm::test {
namespace {

// Before the first call of CUDA.
const bool kPrepared = [] {
  PrepareSharedGpu();
  return true;
}();

constexpr int32_t kLayers = 4;

struct WidthCase {
  const char* config;
  std::vector<int32_t> ranks;
};

void PrintTo(const WidthCase& c, std::ostream* out) { *out << c.config; }

class RanksOfRealWidthTest : public testing::TestWithParam<WidthCase> {};

/// A prompt beside another, one that follows beside a token, then tokens alone; the logits of all.
template <typename Model>
Rows RunSteps(Model& model, int32_t vocabulary) {
  std::mt19937_64 random(5);
  const auto ids = [&](int32_t count) {
    Ids drawn;
    for (int32_t i = 0; i < count; ++i)
      drawn.push_back(static_cast<int32_t>(random() % vocabulary));
    return drawn;
  };
  Rows rows = model.Step({{0, ids(70)}, {1, ids(33)}});
  const auto add = [&](Rows more) {
    for (std::vector<float>& row : more) rows.push_back(std::move(row));
  };
  add(model.Step({{0, ids(1)}, {2, ids(20)}}));
  for (int i = 0; i < 8; ++i) add(model.Step({{0, ids(1)}, {1, ids(1)}, {2, ids(1)}}));
  return rows;
}

double SameTokens(const Rows& a, const Rows& b) {
  int same = 0;
  for (size_t r = 0; r < a.size(); ++r) same += Stepper::ArgMax(a[r]) == Stepper::ArgMax(b[r]);
  return same / static_cast<double>(a.size());
}

// What sharing changes is the rounding of parts before they are summed, and in FP8 that each rank
// quantises its own part: both are held to what FP8 changes on one rank. With random weights the
// best logits of a row are close, and rounding decides some tokens: fewer than half as many as FP8
// does. All ranks' logits are the same to the bit (RankSteppers).
TEST_P(RanksOfRealWidthTest, GiveTheTokensOfOne) {
  ASSERT_TRUE(kPrepared);
  std::string error;
  if (CreateCudaDevice(0, &error) == nullptr) GTEST_SKIP() << error;
  const WidthCase& c = GetParam();
  TempFolder folder;
  nlohmann::json config =
      nlohmann::json::parse(std::ifstream(kGolden + "config/" + c.config + ".json"));
  config["num_hidden_layers"] = kLayers;
  std::ofstream(folder.path() + "/config.json") << config;
  const auto vocabulary = config["vocab_size"].get<int32_t>();

  StepperOptions options{.threads = 16, .cuda = true, .random = true};
  StepperOptions float8 = options;
  float8.quantize = true;
  const auto one_rank = [&](const StepperOptions& of) {
    Stepper stepper(folder.path(), DType::kBF16, of);
    return RunSteps(stepper, vocabulary);
  };
  const Rows one = one_rank(options);
  const Rows one_float8 = one_rank(float8);
  const double bound = MedianDifference(one_float8, one);
  EXPECT_GT(bound, 0);
  const double same_least = (1 + SameTokens(one_float8, one)) / 2;
  std::printf("%s, one rank: FP8 moves logits by %.4f, the same token at %.3f\n", c.config, bound,
              SameTokens(one_float8, one));
  for (const int32_t size : c.ranks) {
    const auto ranks = [&](StepperOptions of) {
      of.threads = std::max(1, of.threads / size);
      RankSteppers steppers(folder.path(), DType::kBF16, size, of);
      return RunSteps(steppers, vocabulary);
    };
    const Rows shared = ranks(options);
    const double moved = MedianDifference(shared, one);
    EXPECT_LT(moved, 0.5 * bound) << size << " ranks";
    EXPECT_GT(SameTokens(shared, one), same_least) << size << " ranks";
    const Rows shared_float8 = ranks(float8);
    const double moved_float8 = MedianDifference(shared_float8, one_float8);
    EXPECT_LT(moved_float8, 1.5 * bound) << size << " ranks";
    std::printf("%s, %d ranks: BF16 moved by %.4f, the same token at %.3f; FP8 by %.4f, at %.3f\n",
                c.config, size, moved, SameTokens(shared, one), moved_float8,
                SameTokens(shared_float8, one_float8));
  }
}

INSTANTIATE_TEST_SUITE_P(Published, RanksOfRealWidthTest,
                         testing::Values(WidthCase{"GLM-4.7-Flash", {2, 4}},
                                         WidthCase{"GLM-4.5-Air", {2, 4, 8}},
                                         WidthCase{"GLM-4.7", {4, 8}}),
                         [](const auto& info) {
                           std::string name = info.param.config;
                           std::erase_if(name, [](char letter) { return !std::isalnum(letter); });
                           return name;
                         });

}  // namespace
}  // namespace glm::test
