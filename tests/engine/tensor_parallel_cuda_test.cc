// Ranks on GPUs give the tokens of one rank, at the widths of the published models: their first
// layers, with random weights. Each rank has a GPU of its own where there are enough, else all
// share the first. Skips without a GPU.
#include <gtest/gtest.h>

#include <algorithm>
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

/// How far logits are from others of the same tokens.
struct Distance {
  double quartile;  // of the positions' root mean squares
  double median;
  double same_tokens;  // the share of positions with the same best token
};

Distance Between(const Rows& a, const Rows& b) {
  std::vector<double> moved;
  int same = 0;
  for (size_t r = 0; r < a.size(); ++r) {
    moved.push_back(RmsDifference({a[r]}, {b[r]}));
    same += Stepper::ArgMax(a[r]) == Stepper::ArgMax(b[r]);
  }
  std::sort(moved.begin(), moved.end());
  return {moved[moved.size() / 4], moved[moved.size() / 2], same / static_cast<double>(a.size())};
}

double RmsOf(const Rows& rows) {
  return RmsDifference(rows, Rows(rows.size(), std::vector<float>(rows[0].size())));
}

// Of logits of root mean square 1: what rounding to BF16 does to those of four layers, by which
// transformers in BF16 is from itself in F32 (0.011), and a half more for the parts that are
// rounded before they are summed.
constexpr double kRounding = 0.016;

// What sharing changes is the rounding of parts before they are summed, and in FP8 that each rank
// quantises its own part. With random weights the choices of experts are close and so are the best
// logits: rounding decides some. A position with another expert moves by tenths, and those after it
// in its sequence, which attend to it, by hundredths, so that what rounding does by itself is seen
// in the positions that moved least. All others are held to what FP8 changes on one rank. All
// ranks' logits are the same to the bit (RankSteppers).
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
  const auto tell = [&](const std::string& what, const Distance& distance) {
    std::printf(
        "%s, %s: logits moved by %.4f (a quarter of them by less than %.4f), the same token at "
        "%.3f\n",
        c.config, what.c_str(), distance.median, distance.quartile, distance.same_tokens);
  };

  StepperOptions options{.threads = 16, .cuda = true, .random = true};
  StepperOptions float8 = options;
  float8.quantize = true;
  const auto one_rank = [&](const StepperOptions& of) {
    Stepper stepper(folder.path(), DType::kBF16, of);
    return RunSteps(stepper, vocabulary);
  };
  const Rows one = one_rank(options);
  const Rows one_float8 = one_rank(float8);
  const double rounding = kRounding * RmsOf(one);
  const Distance quantization = Between(one_float8, one);
  tell("one rank, FP8", quantization);
  EXPECT_GT(quantization.quartile, 2 * rounding);
  for (const int32_t size : c.ranks) {
    const auto ranks = [&](StepperOptions of) {
      of.threads = std::max(1, of.threads / size);
      RankSteppers steppers(folder.path(), DType::kBF16, size, of);
      return RunSteps(steppers, vocabulary);
    };
    const std::string name = std::to_string(size) + " ranks";
    const Distance shared = Between(ranks(options), one);
    tell(name, shared);
    EXPECT_LT(shared.quartile, rounding) << name;
    EXPECT_LT(shared.median, 0.5 * quantization.median) << name;
    EXPECT_LT(1 - shared.same_tokens, 0.5 * (1 - quantization.same_tokens)) << name;
    const Distance shared_float8 = Between(ranks(float8), one_float8);
    tell(name + ", FP8", shared_float8);
    EXPECT_LT(shared_float8.median, 1.5 * quantization.median) << name;
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
