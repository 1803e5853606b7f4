// The loader: parts of tensors land where the plan says, types are converted, and a checkpoint
// that does not fit the model is refused by the tensor's name.
#include "engine/model/loader.h"

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "engine/model/glm.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_model.h"

namespace glm::engine {
namespace {

using test::MakeTinyTensors;
using test::TempFolder;
using test::TinyModelOptions;
using test::TinyTensors;
using test::WriteFile;
using test::WriteTinyModel;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

std::vector<float> Values(const Tensor& tensor) {
  std::vector<float> values;
  for (int64_t i = 0; i < tensor.elements(); ++i) {
    values.push_back(tensor.dtype == DType::kF32 ? tensor.Data<float>()[i]
                                                 : ToFloat(tensor.Data<BFloat16>()[i]));
  }
  return values;
}

// Tests of plans over a folder with chosen tensors.
class PlanTest : public testing::Test {
 protected:
  absl::Status Load(const TinyTensors& tensors, const WeightPlan& plan) {
    WriteFile(folder_.path() + "/model.safetensors", test::SafetensorsBytes(tensors));
    auto checkpoint = Checkpoint::Open(folder_.path());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return LoadWeights(*device_, *checkpoint, plan);
  }
  TempFolder folder_;
  std::unique_ptr<Device> device_ = CreateCpuDevice(1);
};

TEST_F(PlanTest, PacksRows) {
  const TinyTensors tensors = {{"a", {DType::kF32, {1, 2}, {1, 2}}},
                               {"b", {DType::kF32, {2, 2}, {3, 4, 5, 6}}}};
  Tensor packed;
  WeightPlan plan;
  const int32_t weight = plan.Add(&packed, Tensor(nullptr, DType::kF32, {3, 2}));
  plan.Fill(weight, 0, "b", {2, 2});
  plan.Fill(weight, 2, "a", {1, 2});
  EXPECT_EQ(plan.bytes(), 24);
  ASSERT_TRUE(Load(tensors, plan).ok());
  EXPECT_THAT(Values(packed), ElementsAre(3, 4, 5, 6, 1, 2));
}

// What a rank of two takes: half of the rows, half of the columns, half of a vector.
TEST_F(PlanTest, TakesPartsOfTensors) {
  const TinyTensors tensors = {{"rows", {DType::kBF16, {4, 2}, {0, 1, 2, 3, 4, 5, 6, 7}}},
                               {"columns", {DType::kF32, {2, 4}, {0, 1, 2, 3, 4, 5, 6, 7}}},
                               {"vector", {DType::kBF16, {4}, {0, 1, 2, 3}}}};
  Tensor rows, columns, vector;
  WeightPlan plan;
  plan.Fill({.name = "rows",
             .shape = {4, 2},
             .rows = {2, 2},
             .columns = {0, 2},
             .weight = plan.Add(&rows, Tensor(nullptr, DType::kBF16, {2, 2}))});
  plan.Fill({.name = "columns",
             .shape = {2, 4},
             .rows = {0, 2},
             .columns = {2, 2},
             .weight = plan.Add(&columns, Tensor(nullptr, DType::kF32, {2, 2}))});
  plan.Fill({.name = "vector",
             .shape = {4},
             .rows = {1, 2},
             .columns = {0, 1},
             .weight = plan.Add(&vector, Tensor(nullptr, DType::kF32, {2}))});
  ASSERT_TRUE(Load(tensors, plan).ok());
  EXPECT_THAT(Values(rows), ElementsAre(4, 5, 6, 7));
  EXPECT_THAT(Values(columns), ElementsAre(2, 3, 6, 7));
  EXPECT_THAT(Values(vector), ElementsAre(1, 2));
}

TEST_F(PlanTest, ConvertsTypes) {
  const float ties_to_even = 1.00390625f;  // 1 + 2^-8: halfway between two BF16 values
  const float infinity = std::numeric_limits<float>::infinity();
  const TinyTensors tensors = {{"wide", {DType::kF32, {3}, {ties_to_even, -3.5f, infinity}}},
                               {"narrow", {DType::kBF16, {2}, {0.5f, -128}}}};
  Tensor wide_as_bf16, narrow_as_f32;
  WeightPlan plan;
  plan.AddWhole(&wide_as_bf16, Tensor(nullptr, DType::kBF16, {3}), "wide");
  plan.AddWhole(&narrow_as_f32, Tensor(nullptr, DType::kF32, {2}), "narrow");
  ASSERT_TRUE(Load(tensors, plan).ok());
  EXPECT_EQ(wide_as_bf16.dtype, DType::kBF16);
  EXPECT_THAT(Values(wide_as_bf16), ElementsAre(1.0f, -3.5f, infinity));
  EXPECT_THAT(Values(narrow_as_f32), ElementsAre(0.5f, -128.0f));
}

// More than one staging buffer's worth of converted rows.
TEST_F(PlanTest, ConvertsLargeTensors) {
  constexpr int64_t kRows = 3000, kColumns = 700;
  test::TinyTensor large{DType::kBF16, {kRows, kColumns}, std::vector<float>(kRows * kColumns)};
  for (size_t i = 0; i < large.values.size(); ++i) large.values[i] = static_cast<float>(i % 251);
  Tensor loaded;
  WeightPlan plan;
  plan.AddWhole(&loaded, Tensor(nullptr, DType::kF32, {kRows, kColumns}), "large");
  ASSERT_TRUE(Load({{"large", large}}, plan).ok());
  EXPECT_EQ(Values(loaded), large.values);
}

TEST_F(PlanTest, RefusesWhatDoesNotFit) {
  Tensor weight;
  WeightPlan plan;
  plan.AddWhole(&weight, Tensor(nullptr, DType::kF32, {2, 3}), "w");
  plan.SetAside("aside.");
  const std::vector<float> six(6, 1.0f);

  EXPECT_TRUE(Load({{"w", {DType::kF32, {2, 3}, six}}}, plan).ok());
  EXPECT_TRUE(
      Load({{"w", {DType::kF32, {2, 3}, six}}, {"aside.x", {DType::kF32, {6}, six}}}, plan).ok());

  absl::Status status = Load({{"v", {DType::kF32, {2, 3}, six}}}, plan);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(status.message(), AllOf(HasSubstr(folder_.path()), HasSubstr("tensor w is missing")));

  status = Load({{"w", {DType::kF32, {3, 2}, six}}}, plan);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("tensor w has shape [3, 2]; expected: [2, 3]"));
  status = Load({{"w", {DType::kF32, {6}, six}}}, plan);
  EXPECT_THAT(status.message(), HasSubstr("tensor w has shape [6]; expected: [2, 3]"));

  for (const DType dtype : {DType::kI32, DType::kF8E4M3}) {
    status = Load({{"w", {dtype, {2, 3}, six}}}, plan);
    EXPECT_THAT(status.message(), AllOf(HasSubstr("tensor w is "), HasSubstr(Name(dtype)),
                                        HasSubstr("accepted: F32, BF16")));
  }
  status = Load({{"w", {DType::kF32, {2, 3}, six}}, {"extra", {DType::kF32, {6}, six}}}, plan);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("tensor extra [6] has no place in this model"));
}

using PlanDeathTest = PlanTest;

TEST_F(PlanDeathTest, ARowLeftOutIsOurFault) {
  Tensor weight;
  WeightPlan plan;
  const int32_t index = plan.Add(&weight, Tensor(nullptr, DType::kF32, {3, 2}));
  plan.Fill(index, 0, "a", {2, 2});
  EXPECT_DEATH(static_cast<void>(Load({{"a", {DType::kF32, {2, 2}, {1, 2, 3, 4}}}}, plan)),
               "rows of a weight of the plan");
  EXPECT_DEATH(plan.Fill(index, 1, "b", {1, 2}), "rows are filled in order");
  EXPECT_DEATH(plan.Fill(index, 2, "b", {1, 3}), "columns of b");
}

// Tests of whole tiny models.
class ModelTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<Glm>> Load(DType dtype = DType::kF32) {
    auto config = ModelConfig::Read(folder_.path());
    if (!config.ok()) return config.status();
    const StepLimits limits =
        Glm::CompleteLimits(*config, {.tokens_max = 8, .sequences_max = 1, .logit_rows_max = 8});
    device_ = CreateCpuDevice(1);
    device_->PlanScratch(limits);
    return Glm::Load(*device_, *config, folder_.path(), dtype, limits);
  }
  void Write(const TinyTensors& tensors) {
    WriteFile(folder_.path() + "/model.safetensors", test::SafetensorsBytes(tensors));
  }
  TempFolder folder_;
  std::unique_ptr<Device> device_;
};

TEST_F(ModelTest, EveryKindLoads) {
  const std::vector<TinyModelOptions> kinds = {{},
                                               {.dtype = DType::kBF16},
                                               {.attention_bias = false, .use_qk_norm = false},
                                               {.shared_experts = 0},
                                               {.tie_word_embeddings = true},
                                               {.dense_layers = 0},
                                               {.dense_layers = 3},
                                               {.mtp_layers = 1},
                                               {.mtp_layers = 1, .shards = 4},
                                               {.vocabulary = 304, .tokenizer = true}};
  for (const TinyModelOptions& options : kinds) {
    TempFolder folder;
    WriteTinyModel(folder.path(), options);
    auto config = ModelConfig::Read(folder.path());
    ASSERT_TRUE(config.ok()) << config.status();
    const StepLimits limits =
        Glm::CompleteLimits(*config, {.tokens_max = 8, .sequences_max = 1, .logit_rows_max = 8});
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      auto device = CreateCpuDevice(1);
      device->PlanScratch(limits);
      const auto model = Glm::Load(*device, *config, folder.path(), dtype, limits);
      EXPECT_TRUE(model.ok()) << model.status();
    }
  }
}

TEST_F(ModelTest, EveryTensorIsNeeded) {
  const TinyModelOptions options{.layers = 2, .experts = 3};
  WriteTinyModel(folder_.path(), options);
  const TinyTensors whole = MakeTinyTensors(options);
  for (const auto& [name, tensor] : whole) {
    TinyTensors tensors = whole;
    tensors.erase(name);
    Write(tensors);
    const absl::Status status = Load().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << name;
    EXPECT_THAT(status.message(), HasSubstr("tensor " + name + " is missing"));
  }
}

TEST_F(ModelTest, EveryShapeIsChecked) {
  const TinyModelOptions options{.layers = 2, .experts = 3};
  WriteTinyModel(folder_.path(), options);
  const TinyTensors whole = MakeTinyTensors(options);
  for (const auto& [name, tensor] : whole) {
    TinyTensors tensors = whole;
    test::TinyTensor& wrong = tensors[name];
    wrong.shape[0] += 1;
    wrong.values.resize(wrong.values.size() / tensor.shape[0] * wrong.shape[0]);
    Write(tensors);
    const absl::Status status = Load().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(status.message(), HasSubstr("tensor " + name + " has shape"));
  }
}

TEST_F(ModelTest, TensorsWithoutAPlaceAreRefused) {
  // What the config does not speak of: a bias, a norm, an expert, a layer, a head, a scale.
  const auto extra = [&](const TinyModelOptions& options, const std::string& name) {
    WriteTinyModel(folder_.path(), options);
    TinyTensors tensors = MakeTinyTensors(options);
    tensors[name] = {DType::kF32, {1}, {0.0f}};
    Write(tensors);
    const absl::Status status = Load().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(status.message(), HasSubstr("tensor " + name + " [1] has no place"));
  };
  extra({.attention_bias = false}, "model.layers.0.self_attn.q_proj.bias");
  extra({}, "model.layers.0.self_attn.o_proj.bias");
  extra({.use_qk_norm = false}, "model.layers.1.self_attn.q_norm.weight");
  extra({}, "model.layers.1.mlp.experts.8.up_proj.weight");
  extra({.shared_experts = 0}, "model.layers.1.mlp.shared_experts.up_proj.weight");
  extra({}, "model.layers.3.input_layernorm.weight");
  extra({.mtp_layers = 1}, "model.layers.4.input_layernorm.weight");
  extra({.mtp_layers = 1}, "model.layers.30.input_layernorm.weight");
  extra({.tie_word_embeddings = true}, "lm_head.weight");
  extra({}, "model.layers.0.self_attn.q_proj.weight_scale");
  extra({}, "visual.patch_embed.weight");
}

TEST_F(ModelTest, MissingFolderAndShard) {
  TempFolder folder;
  auto device = CreateCpuDevice(1);
  WriteTinyModel(folder_.path(), {.shards = 3});
  auto config = ModelConfig::Read(folder_.path());
  ASSERT_TRUE(config.ok()) << config.status();
  const auto limits = Glm::CompleteLimits(*config, {.tokens_max = 1, .logit_rows_max = 1});
  auto status = Glm::Load(*device, *config, folder.path(), DType::kF32, limits).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  std::filesystem::remove(folder_.path() + "/model-2.safetensors");
  status = Load().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(status.message(), HasSubstr("/model-2.safetensors"));
}

}  // namespace
}  // namespace glm::engine
