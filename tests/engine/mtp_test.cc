// The draft layer against the reference of tests/golden/make_glm4_moe_mtp.py: all draft logits of
// tiny random checkpoints, however the tokens are spread over steps, and what is loaded of them.
#include "engine/model/mtp.h"

#include <algorithm>
#include <iterator>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/stepper.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_model.h"

namespace glm::engine {
namespace {

using test::Expected;
using test::Ids;
using test::kGolden;
using test::MaxDifference;
using test::Rows;
using test::Stepper;
using testing::HasSubstr;

constexpr double kFloatBound = 1e-4;

class MtpGoldenTest : public testing::TestWithParam<std::string> {
 protected:
  MtpGoldenTest()
      : expected_(GetParam()),
        prompt_(expected_.integers["prompt_ids"]),
        next_(expected_.integers["mtp_ids"]) {}
  const Rows& Reference(const char* name) {
    const std::string exact = std::string(name) + "_f32";
    return expected_.rows.count(exact) != 0 ? expected_.rows[exact] : expected_.rows[name];
  }

  Expected expected_;
  Ids prompt_;
  Ids next_;
};

TEST_P(MtpGoldenTest, LogitsOfOnePrefill) {
  Stepper stepper(kGolden + GetParam(), DType::kF32, {.mtp = true});
  ASSERT_TRUE(stepper.model().has_mtp());
  ASSERT_EQ(next_.size(), 50u);
  EXPECT_LT(MaxDifference(stepper.Step({{1, prompt_}}), Reference("logits")), kFloatBound);
  EXPECT_LT(MaxDifference(stepper.Draft(next_), Reference("mtp_logits")), kFloatBound);
  // The model goes on undisturbed.
  const Rows logits = stepper.Step({{1, {next_.back()}}});
  EXPECT_EQ(Stepper::ArgMax(logits[0]), expected_.integers["greedy_ids"][1]);
}

// Chunks of two sequences share steps; single tokens follow, as in decode.
TEST_P(MtpGoldenTest, ChunkedAndBatched) {
  Stepper stepper(kGolden + GetParam(), DType::kF32, {.mtp = true});
  const auto part = [](const Ids& ids, size_t begin, size_t end) {
    return Ids(ids.begin() + begin, ids.begin() + end);
  };
  Rows first, third;
  size_t done = 0;
  for (const size_t end : {7, 24, 40}) {
    const Ids next = part(next_, done, end);
    stepper.Step({{0, part(prompt_, done, end)}, {2, part(prompt_, done, end)}});
    Ids both = next;
    both.insert(both.end(), next.begin(), next.end());
    const Rows rows = stepper.Draft(both);
    first.insert(first.end(), rows.begin(), rows.begin() + next.size());
    third.insert(third.end(), rows.begin() + next.size(), rows.end());
    done = end;
  }
  for (; done < prompt_.size(); ++done) {
    stepper.Step({{2, {prompt_[done]}}, {0, {prompt_[done]}}});
    const Rows rows = stepper.Draft({next_[done], next_[done]});
    third.push_back(rows[0]);
    first.push_back(rows[1]);
  }
  EXPECT_LT(MaxDifference(first, Reference("mtp_logits")), kFloatBound);
  EXPECT_LT(MaxDifference(third, Reference("mtp_logits")), kFloatBound);
}

INSTANTIATE_TEST_SUITE_P(Float32, MtpGoldenTest,
                         testing::Values("glm4_moe/mtp_own", "glm4_moe/mtp_absent",
                                         "glm4_moe_lite/flash", "glm4_moe_lite/bfloat16"),
                         [](const auto& param) {
                           std::string name = param.param;
                           std::replace(name.begin(), name.end(), '/', '_');
                           return name;
                         });

int64_t BytesOf(const std::string& name, const std::vector<std::string>& without) {
  auto checkpoint = Checkpoint::Open(kGolden + name);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  int64_t bytes = 0;
  for (const auto& [key, tensor] : checkpoint->tensors()) {
    const bool out = std::any_of(without.begin(), without.end(), [&](const std::string& part) {
      return key.find(part) != std::string::npos;
    });
    if (!out) bytes += tensor.bytes;
  }
  return bytes;
}

TEST(MtpTest, EqualCopiesAreDroppedAndOthersKept) {
  const auto bytes = [](const std::string& name, bool mtp) {
    return Stepper(kGolden + name, DType::kF32, {.mtp = mtp}).model().weight_bytes();
  };
  EXPECT_EQ(bytes("glm4_moe/mtp_own", true), BytesOf("glm4_moe/mtp_own", {}));
  EXPECT_EQ(bytes("glm4_moe/mtp_absent", true), BytesOf("glm4_moe/mtp_absent", {}));
  EXPECT_EQ(bytes("glm4_moe_lite/flash", true),
            BytesOf("glm4_moe_lite/flash", {"layers.3.embed_tokens", "shared_head.head"}));
  EXPECT_EQ(bytes("glm4_moe_lite/flash", false), BytesOf("glm4_moe_lite/flash", {"layers.3."}));
}

absl::StatusOr<std::unique_ptr<Glm>> LoadMtp(Device& device, const std::string& folder) {
  auto config = ModelConfig::Read(folder);
  if (!config.ok()) return config.status();
  const StepLimits limits =
      Glm::CompleteLimits(*config, {.tokens_max = 8, .sequences_max = 1, .logit_rows_max = 8});
  return Glm::Load(device, *config, folder, DType::kF32, limits, {.mtp = true});
}

// A fine-tuned checkpoint may say num_nextn_predict_layers 1 and have lost the layer.
TEST(MtpTest, WithoutItsTensorsItIsOff) {
  test::TempFolder folder;
  test::TinyModelOptions options{.mtp_layers = 1};
  test::TinyTensors tensors = test::MakeTinyTensors(options);
  test::WriteTinyModel(folder.path(), options);
  auto device = CreateCpuDevice(1);
  const std::string prefix = "model.layers.3.";
  for (auto it = tensors.begin(); it != tensors.end();) {
    it = it->first.rfind(prefix, 0) == 0 ? tensors.erase(it) : std::next(it);
  }
  test::WriteFile(folder.path() + "/model.safetensors", test::SafetensorsBytes(tensors));
  auto model = LoadMtp(*device, folder.path());
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_FALSE((*model)->has_mtp());
}

// The draft layer's head in FP8: a rounded copy of the model's is dropped, another one is loaded.
TEST(MtpTest, AHeadInFloat8IsComparedWithTheModels) {
  test::TempFolder folder;
  const test::TinyModelOptions options{.mtp_layers = 1, .float8 = test::TinyFloat8::kChannel};
  test::WriteTinyModel(folder.path(), options);
  test::TinyTensors tensors = test::MakeTinyTensors(options);
  test::TinyTensor& head = tensors.at("model.layers.3.shared_head.head.weight");
  test::TinyTensor& scales = tensors.at("model.layers.3.shared_head.head.weight_scale");
  const std::vector<float>& model = tensors.at("lm_head.weight").values;
  const int64_t columns = options.hidden_size;
  for (int64_t row = 0; row < options.vocabulary; ++row) {
    const auto* values = model.data() + row * columns;
    float largest = 0;
    for (int64_t i = 0; i < columns; ++i) largest = std::max(largest, std::abs(values[i]));
    scales.values[row] = largest / kFloat8Max;
    for (int64_t i = 0; i < columns; ++i) {
      head.values[row * columns + i] = values[i] / scales.values[row];
    }
  }
  const auto weight_bytes = [&] {
    test::WriteFile(folder.path() + "/model.safetensors", test::SafetensorsBytes(tensors));
    auto device = CreateCpuDevice(1);
    const auto glm = LoadMtp(*device, folder.path());
    EXPECT_TRUE(glm.ok()) << glm.status();
    return (*glm)->weight_bytes();
  };
  const int64_t shared = weight_bytes();
  head.values[5 * columns + 3] += 60;  // more than half a step of any value
  EXPECT_EQ(weight_bytes(), shared + options.vocabulary * columns * ByteSize(DType::kF32));
  head.values[5 * columns + 3] -= 60;
  EXPECT_EQ(weight_bytes(), shared);
}

TEST(MtpTest, AMissingTensorIsNamed) {
  test::TempFolder folder;
  const test::TinyModelOptions options{.mtp_layers = 1};
  test::WriteTinyModel(folder.path(), options);
  test::TinyTensors tensors = test::MakeTinyTensors(options);
  ASSERT_EQ(tensors.erase("model.layers.3.eh_proj.weight"), 1u);
  test::WriteFile(folder.path() + "/model.safetensors", test::SafetensorsBytes(tensors));
  auto device = CreateCpuDevice(1);
  const auto model = LoadMtp(*device, folder.path());
  EXPECT_EQ(model.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(model.status().message(), HasSubstr("layers.3.eh_proj.weight is missing"));
}

TEST(MtpTest, TwoDraftLayersAreRefused) {
  test::TempFolder folder;
  test::WriteTinyModel(folder.path(), {.mtp_layers = 2});
  auto device = CreateCpuDevice(1);
  const auto model = LoadMtp(*device, folder.path());
  EXPECT_EQ(model.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(model.status().message(), HasSubstr("num_nextn_predict_layers is 2; accepted"));
}

}  // namespace
}  // namespace glm::engine
