// A linear's weights on every rank against the checkpoint's matrix, dequantised in double: slices
// and packing that cut blocks of scales, and FP8 tensors that are loaded wide.
#include "engine/model/linear.h"

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/model/loader.h"
#include "engine/model/safetensors.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/philox.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_model.h"

namespace glm::engine {
namespace {

using test::TempFolder;
using test::TinyTensor;
using test::TinyTensors;

constexpr int64_t kRows = 176;     // of a part: 1.4 blocks
constexpr int64_t kColumns = 352;  // 2.75 blocks
constexpr int64_t kTokens = 5;
const std::vector<std::string> kNames = {"gate", "up"};

/// Numbers from -1 to 1.
std::vector<float> Uniform(uint64_t seed, int64_t count) {
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) {
    values.push_back(2 * PhiloxUniform(seed, PhiloxStream::kSample, static_cast<uint32_t>(i)) - 1);
  }
  return values;
}

/// How the checkpoint has its scales.
struct Form {
  const char* name;
  WeightScaling scaling;
  const char* suffix;  // of the scales' name
};

class LinearTest : public testing::TestWithParam<Form> {
 protected:
  LinearTest() {
    const bool blocks = GetParam().scaling == WeightScaling::kBlock;
    scale_shape_ = blocks ? std::vector<int64_t>{2, 3} : std::vector<int64_t>{kRows, 1};
    uint64_t seed = 1;
    for (const std::string& name : kNames) {
      TinyTensor values{DType::kF8E4M3, {kRows, kColumns}, Uniform(seed++, kRows * kColumns)};
      for (float& value : values.values) value = ToFloat(ToFloat8(448 * value));
      TinyTensor scales{DType::kF32, scale_shape_,
                        Uniform(seed++, scale_shape_[0] * scale_shape_[1])};
      for (float& scale : scales.values) scale = (scale + 1.5f) / 448;
      tensors_[name + ".weight"] = values;
      tensors_[name + GetParam().suffix] = scales;
    }
    test::WriteFile(folder_.path() + "/model.safetensors", test::SafetensorsBytes(tensors_));
    auto checkpoint = Checkpoint::Open(folder_.path());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    checkpoint_ = *std::move(checkpoint);
    device_ = CreateCpuDevice(2);
    device_->PlanScratch({.tokens_max = kTokens, .hidden = kColumns, .dense_width = kColumns});
  }

  PlanTerms Terms(RankSlice slice) const {
    return {.stored = &checkpoint_->tensors(), .scaling = GetParam().scaling, .slice = slice};
  }
  double Stored(const std::string& name, int64_t row, int64_t column) const {
    const bool blocks = GetParam().scaling == WeightScaling::kBlock;
    const TinyTensor& scales = tensors_.at(name + GetParam().suffix);
    const int64_t at = blocks ? row / 128 * 3 + column / 128 : row;
    return double{tensors_.at(name + ".weight").values[row * kColumns + column]} *
           scales.values[at];
  }

  /// Loads the rank's part of both tensors and multiplies it; returns the largest difference from
  /// the double product, as a share of the largest value.
  double Difference(RankSlice slice, LinearSplit split) {
    WeightPlan plan(Terms(slice));
    Weight weight;
    PlanLinear({{"gate", kRows}, {"up", kRows}}, kColumns, split, 0, DType::kBF16, &plan, &weight);
    EXPECT_TRUE(LoadWeights(*device_, *checkpoint_, plan).ok());
    const Range rows = split == LinearSplit::kOutputs ? slice.Of(kRows) : Range{0, kRows};
    const Range columns = split == LinearSplit::kInputs ? slice.Of(kColumns) : Range{0, kColumns};

    std::vector<uint8_t> codes;
    for (const float value : Uniform(9, kTokens * columns.count)) {
      codes.push_back(ToFloat8(448 * value).bits);
    }
    const bool blocks = GetParam().scaling == WeightScaling::kBlock;
    const int64_t groups = blocks ? (columns.count + 127) / 128 : 1;
    std::vector<float> scales = Uniform(10, kTokens * groups);
    for (float& scale : scales) scale = (scale + 2) / 448;
    std::vector<int32_t> counts = {static_cast<int32_t>(kTokens), 1, 0};
    BatchView batch;
    batch.counts = Tensor(counts.data(), DType::kI32, {3});
    std::vector<float> out(kTokens * 2 * rows.count);
    device_->ops().linear(*device_,
                          {.batch = batch,
                           .in = {Tensor(codes.data(), DType::kF8E4M3, {kTokens, columns.count}),
                                  blocks ? Tensor(scales.data(), DType::kF32, {kTokens, groups})
                                         : Tensor(scales.data(), DType::kF32, {kTokens})},
                           .weight = weight,
                           .out = Tensor(out.data(), DType::kF32, {kTokens, 2 * rows.count})});
    double worst = 0, largest = 0;
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t n = 0; n < 2 * rows.count; ++n) {
        const int64_t row = rows.begin + n % rows.count;
        double sum = 0;
        for (int64_t i = 0; i < columns.count; ++i) {
          sum += Stored(kNames[n / rows.count], row, columns.begin + i) *
                 ToFloat(Float8{codes[t * columns.count + i]}) *
                 scales[t * groups + (blocks ? i / 128 : 0)];
        }
        worst = std::max(worst, std::abs(sum - out[t * 2 * rows.count + n]));
        largest = std::max(largest, std::abs(sum));
      }
    }
    return worst / largest;
  }

  TempFolder folder_;
  TinyTensors tensors_;
  std::vector<int64_t> scale_shape_;
  std::optional<Checkpoint> checkpoint_;
  std::unique_ptr<Device> device_;
};

TEST_P(LinearTest, EveryRankMultipliesItsPart) {
  for (const LinearSplit split :
       {LinearSplit::kNone, LinearSplit::kOutputs, LinearSplit::kInputs}) {
    for (const int32_t size : {1, 2, 4, 8}) {
      for (int32_t rank = 0; rank < size; ++rank) {
        EXPECT_LT(Difference({rank, size}, split), 1e-5)
            << "split " << static_cast<int>(split) << ", rank " << rank << " of " << size;
      }
    }
  }
}

TEST_P(LinearTest, WideIsTheProductRounded) {
  WeightPlan plan(Terms({1, 2}));
  Tensor weight;
  const Range rows{kRows / 2, kRows / 2};
  FillWide({"up", kRows}, kColumns, rows,
           plan.Add(&weight, Tensor(nullptr, DType::kBF16, {rows.count, kColumns})), &plan);
  plan.Take("gate.weight");
  plan.SetAside("gate.");
  ASSERT_TRUE(LoadWeights(*device_, *checkpoint_, plan).ok());
  for (int64_t n = 0; n < rows.count; ++n) {
    for (int64_t i = 0; i < kColumns; ++i) {
      const auto wide = static_cast<float>(Stored("up", rows.begin + n, i));
      ASSERT_EQ(ToFloat(weight.Row<BFloat16>(n)[i]), ToFloat(ToBFloat16(wide))) << n << ", " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Scales, LinearTest,
                         testing::Values(Form{"Channel", WeightScaling::kChannel, ".weight_scale"},
                                         Form{"Block", WeightScaling::kBlock, ".weight_scale_inv"},
                                         Form{"CompressedTensorsBlock", WeightScaling::kBlock,
                                              ".weight_scale"}),
                         [](const auto& param) { return param.param.name; });

}  // namespace
}  // namespace glm::engine
