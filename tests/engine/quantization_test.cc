// FP8: quantised checkpoints against a float64 reference that rounds where kernels/ops.h says
// (golden files made by tests/golden/make_fp8.py), quantising while loading against the BF16 model,
// and what is refused.
#include "engine/model/quantization.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "engine/model/glm.h"
#include "engine/model/safetensors.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/philox.h"
#include "tests/support/logit_rows.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_model.h"

namespace glm::engine {
namespace {

using test::MakeTinyTensors;
using test::MedianDifference;
using test::RmsDifference;
using test::Rows;
using test::TempFolder;
using test::TinyFloat8;
using test::TinyModelOptions;
using test::TinyTensors;
using test::WriteFile;
using test::WriteTinyModel;
using testing::AllOf;
using testing::HasSubstr;

using Ids = std::vector<int32_t>;

constexpr int32_t kBlockSize = 16;
const std::string kGolden = std::string(GLM_SOURCE_DIR) + "/tests/golden/glm4_moe_fp8/";
const std::string kDemoModel = std::string(GLM_SOURCE_DIR) + "/deploy/demo-model";

// A model that computes all sequences of a batch at once, from their beginning or one token on.
class Runner {
 public:
  Runner(const WeightSource& source, DType dtype, int64_t sequences, int64_t length_max,
         DType cache_dtype)
      : device_(CreateCpuDevice(2)), sequences_(sequences) {
    auto config = ModelConfig::Read(source.folder);
    EXPECT_TRUE(config.ok()) << config.status();
    config_ = *config;
    tokens_max_ = sequences * length_max;
    const StepLimits limits = Glm::CompleteLimits(
        config_,
        {.tokens_max = tokens_max_, .sequences_max = sequences, .logit_rows_max = tokens_max_});
    device_->PlanScratch(limits);
    auto model = Glm::Load(*device_, config_, source, dtype, limits);
    EXPECT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    blocks_ = (length_max + kBlockSize - 1) / kBlockSize;
    cache_ = KvCache::Allocate(*device_, config_, cache_dtype, sequences * blocks_, kBlockSize);
    model_->ScaleCache(&cache_);
    last_ids_ = Tensor(nullptr, DType::kI32, {sequences});
    lengths_.assign(sequences, 0);
  }
  Runner(const WeightSource& source, DType dtype, int64_t sequences, int64_t length_max)
      : Runner(source, dtype, sequences, length_max, dtype) {}

  // Logits of every token; `ids` holds as many of each sequence.
  Rows Step(const std::vector<Ids>& ids) {
    const auto count = static_cast<int32_t>(ids[0].size());
    Ids tokens, positions, owners, starts{0}, lengths, tables;
    for (int64_t s = 0; s < sequences_; ++s) {
      for (const int32_t id : ids[s]) {
        tokens.push_back(id);
        positions.push_back(lengths_[s]++);
        owners.push_back(static_cast<int32_t>(s));
      }
      starts.push_back(static_cast<int32_t>(s + 1) * count);
      lengths.push_back(lengths_[s]);
      for (int64_t i = 0; i < blocks_; ++i) {
        tables.push_back(static_cast<int32_t>(s * blocks_ + i));
      }
    }
    Ids rows(tokens.size());
    std::iota(rows.begin(), rows.end(), 0);
    const auto all = static_cast<int32_t>(tokens.size());
    Ids counts{all, static_cast<int32_t>(sequences_), all};
    const auto view = [](Ids& values) {
      return Tensor(values.data(), DType::kI32, {static_cast<int64_t>(values.size())});
    };
    const BatchView batch{.token_ids = view(tokens),
                          .positions = view(positions),
                          .token_sequences = view(owners),
                          .query_starts = view(starts),
                          .kv_lengths = view(lengths),
                          .block_tables = Tensor(tables.data(), DType::kI32, {sequences_, blocks_}),
                          .logit_tokens = view(rows),
                          .counts = view(counts),
                          .last_ids = last_ids_};
    std::vector<float> logits(static_cast<size_t>(all) * config_.vocabulary);
    model_->Forward(batch, cache_, Tensor(logits.data(), DType::kF32, {all, config_.vocabulary}));
    Rows result;
    for (int32_t t = 0; t < all; ++t) {
      const float* row = logits.data() + int64_t{t} * config_.vocabulary;
      result.emplace_back(row, row + config_.vocabulary);
    }
    return result;
  }

  const ModelConfig& config() const { return config_; }
  const Glm& model() const { return *model_; }
  const KvCache& cache() const { return cache_; }

 private:
  std::unique_ptr<Device> device_;
  const int64_t sequences_;
  int64_t tokens_max_ = 0;
  int64_t blocks_ = 0;
  ModelConfig config_;
  std::unique_ptr<Glm> model_;
  KvCache cache_;
  Tensor last_ids_;  // nobody refers to it
  Ids lengths_;
};

struct Expected {
  explicit Expected(const std::string& name) {
    auto file = SafetensorsFile::Open(kGolden + name + ".expected.safetensors");
    EXPECT_TRUE(file.ok()) << file.status();
    const StoredTensor& ids = (*file)->tensors().at("prompt_ids");
    prompt.resize(ids.bytes / 4);
    std::memcpy(prompt.data(), ids.data, ids.bytes);
    logits = RowsOf((*file)->tensors().at("logits"));
    logits_plain = RowsOf((*file)->tensors().at("logits_plain"));
  }
  static Rows RowsOf(const StoredTensor& tensor) {
    Rows rows(tensor.shape[0], std::vector<float>(tensor.shape[1]));
    for (size_t r = 0; r < rows.size(); ++r) {
      std::memcpy(rows[r].data(), tensor.data + r * tensor.shape[1] * 4, tensor.shape[1] * 4);
    }
    return rows;
  }
  Ids prompt;
  Rows logits;
  Rows logits_plain;
};

constexpr double kBFloat16Step = 0.00390625;  // 2^-8, of values near 1

class Float8GoldenTest : public testing::TestWithParam<std::string> {};

// Computed in float, what is left of the difference are values that lay between two FP8 codes and
// fell to the other side, at few positions. Forgetting one of the roundings would cost 15 times the
// bound, everywhere.
TEST_P(Float8GoldenTest, LogitsAreThoseOfTheReference) {
  const Expected expected(GetParam());
  Runner runner(kGolden + GetParam(), DType::kF32, 1, 40);
  const Rows logits = runner.Step({expected.prompt});
  EXPECT_LT(MedianDifference(logits, expected.logits), kBFloat16Step);
  EXPECT_LT(RmsDifference(logits, expected.logits), 4 * kBFloat16Step);
  EXPECT_GT(MedianDifference(expected.logits, expected.logits_plain), 10 * kBFloat16Step);
}

// With BF16 activations the roundings of theirs move values to other FP8 codes, so the two differ
// as two independent quantisations do: by sqrt(2) of what one of them costs, and BF16's own error.
TEST_P(Float8GoldenTest, BFloat16ActivationsStayNear) {
  const Expected expected(GetParam());
  Runner runner(kGolden + GetParam(), DType::kBF16, 1, 40);
  const Rows logits = runner.Step({expected.prompt});
  EXPECT_LT(RmsDifference(logits, expected.logits),
            1.6 * RmsDifference(expected.logits, expected.logits_plain));
}

TEST_P(Float8GoldenTest, TokenByTokenIsThePrefill) {
  const Expected expected(GetParam());
  Runner whole(kGolden + GetParam(), DType::kBF16, 1, 40);
  Runner single(kGolden + GetParam(), DType::kBF16, 1, 40);
  const Rows logits = whole.Step({expected.prompt});
  for (size_t t = 0; t < expected.prompt.size(); ++t) {
    EXPECT_EQ(single.Step({{expected.prompt[t]}})[0], logits[t]) << "token " << t;
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, Float8GoldenTest, testing::Values("channel", "block"),
                         [](const auto& param) { return param.param; });

// What quantising while loading costs, over text that the BF16 model writes itself.
class DemoModelTest : public testing::Test {
 protected:
  static constexpr int64_t kSequences = 20;
  static constexpr int64_t kLength = 100;

  // Token ids drawn from the model, from its beginning-of-text tokens on.
  static std::vector<Ids> DrawText(Runner& runner) {
    std::vector<Ids> texts, next;
    for (int32_t s = 0; s < kSequences; ++s) {
      texts.push_back({100 + 7 * s});
      next.push_back(texts.back());
    }
    while (texts[0].size() < kLength) {
      const Rows logits = runner.Step(next);
      for (int64_t s = 0; s < kSequences; ++s) {
        const int32_t id = Draw(logits[s], s, texts[s].size(), runner.config().vocabulary_used);
        texts[s].push_back(id);
        next[s] = {id};
      }
    }
    return texts;
  }
  static std::vector<double> Probabilities(const std::vector<float>& logits) {
    const float largest = *std::max_element(logits.begin(), logits.end());
    std::vector<double> p(logits.size());
    double sum = 0;
    for (size_t i = 0; i < p.size(); ++i) sum += p[i] = std::exp(double{logits[i]} - largest);
    for (double& value : p) value /= sum;
    return p;
  }
  static int32_t Draw(const std::vector<float>& logits, int64_t seed, size_t position,
                      int32_t vocabulary) {
    const std::vector<double> p = Probabilities(logits);
    double left = PhiloxUniform(static_cast<uint64_t>(seed), PhiloxStream::kSample,
                                static_cast<uint32_t>(position));
    for (int32_t i = 0; i < vocabulary; ++i) {
      left -= p[i];
      if (left < 0) return i;
    }
    return 0;
  }
  struct Distance {
    double divergence = 0;  // mean KL(BF16 | other)
    double agreement = 0;   // share of equal most likely tokens
  };
  static Distance Compare(const Rows& reference, const Rows& other) {
    Distance distance;
    for (size_t t = 0; t < reference.size(); ++t) {
      const std::vector<double> p = Probabilities(reference[t]);
      const std::vector<double> q = Probabilities(other[t]);
      for (size_t i = 0; i < p.size(); ++i) {
        if (p[i] > 0) distance.divergence += p[i] * std::log(p[i] / std::max(q[i], 1e-300));
      }
      const auto best = [](const std::vector<double>& v) {
        return std::max_element(v.begin(), v.end()) - v.begin();
      };
      distance.agreement += best(p) == best(q) ? 1 : 0;
    }
    distance.divergence /= static_cast<double>(reference.size());
    distance.agreement /= static_cast<double>(reference.size());
    return distance;
  }
};

TEST_F(DemoModelTest, QuantisedWhileLoadingStaysNearBFloat16) {
  Runner writer(kDemoModel, DType::kBF16, kSequences, kLength);
  const std::vector<Ids> texts = DrawText(writer);
  Runner reference(kDemoModel, DType::kBF16, kSequences, kLength);
  const Rows logits = reference.Step(texts);
  ASSERT_EQ(logits.size(), 2000u);

  WeightSource source(kDemoModel);
  source.quantize = true;
  Runner quantized(source, DType::kBF16, kSequences, kLength);
  EXPECT_LT(quantized.model().weight_bytes(), 0.75 * reference.model().weight_bytes());
  const Distance distance = Compare(logits, quantized.Step(texts));
  std::printf("KL divergence %.5f, top-1 agreement %.2f %%\n", distance.divergence,
              100 * distance.agreement);
  EXPECT_LT(distance.divergence, 0.01);
  EXPECT_GT(distance.agreement, 0.97);
  EXPECT_GT(distance.divergence, 0) << "nothing was quantised";
}

TEST(ParseQuantizationTest, BlockForms) {
  const auto fp8 = ParseQuantization(
      nlohmann::json::parse(R"({"quant_method": "fp8", "activation_scheme": "dynamic",
          "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"]})"),
      "config.json");
  ASSERT_TRUE(fp8.ok()) << fp8.status();
  EXPECT_EQ(fp8->weights, WeightScaling::kBlock);
  const auto compressed = ParseQuantization(
      nlohmann::json::parse(R"({"quant_method": "compressed-tensors", "format": "float-quantized",
          "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8,
          "type": "float", "strategy": "block", "block_structure": [128, 128]},
          "input_activations": {"num_bits": 8, "type": "float", "strategy": "group",
          "group_size": 128, "dynamic": true}}}, "ignore": ["lm_head"]})"),
      "config.json");
  ASSERT_TRUE(compressed.ok()) << compressed.status();
  EXPECT_EQ(compressed->weights, WeightScaling::kBlock);
}

TEST(ParseQuantizationTest, OtherSchemesAreRefusedByName) {
  const nlohmann::json valid =
      test::TinyConfig({.float8 = TinyFloat8::kChannel})["quantization_config"];
  ASSERT_TRUE(ParseQuantization(valid, "config.json").ok());
  const struct {
    const char* pointer;
    nlohmann::json value;
    const char* message;
  } cases[] = {
      {"/quant_method", "awq", "quant_method is \"awq\"; accepted: \"compressed-tensors\""},
      {"/format", "pack-quantized", "format is \"pack-quantized\""},
      {"/format", 7, "format is 7"},
      {"/ignore", "lm_head", "ignore is \"lm_head\"; accepted: a list of names"},
      {"/ignore/0", 3, "ignore is [3]"},
      {"/config_groups", nlohmann::json::object(), "config_groups is {}"},
      {"/config_groups", nlohmann::json::array(), "config_groups is []"},
      {"/config_groups/group_0", 1, "config_groups.group_0.it is 1; accepted: an object"},
      {"/config_groups/group_0/weights", nullptr, "group_0.weights is null"},
      {"/config_groups/group_0/weights/num_bits", 4, "weights.num_bits is 4; accepted: 8"},
      {"/config_groups/group_0/weights/type", "int", "weights.type is \"int\""},
      {"/config_groups/group_0/weights/strategy", "tensor", "weights.strategy is \"tensor\""},
      {"/config_groups/group_0/weights/symmetric", false, "weights.symmetric is false"},
      {"/config_groups/group_0/weights/group_size", 128, "weights.group_size is 128"},
      {"/config_groups/group_0/input_activations", nullptr, "input_activations is null"},
      {"/config_groups/group_0/input_activations/dynamic", false, "dynamic is false"},
      {"/config_groups/group_0/input_activations/strategy", "tensor", "strategy is \"tensor\""},
      {"/config_groups/group_0/output_activations", 8, "output_activations is 8"},
      {"/kv_cache_scheme", {{"num_bits", 4}}, "kv_cache_scheme.num_bits is 4"},
      {"/sparsity_config", {{"format", "dense"}}, "sparsity_config is"},
      {"/surprise", 1, "surprise is 1; accepted: no such key"},
  };
  for (const auto& c : cases) {
    nlohmann::json wrong = valid;
    wrong[nlohmann::json::json_pointer(c.pointer)] = c.value;
    const absl::Status status = ParseQuantization(wrong, "config.json").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.pointer;
    EXPECT_THAT(status.message(),
                AllOf(HasSubstr("config.json: quantization_config"), HasSubstr(c.message)));
  }
  EXPECT_THAT(ParseQuantization(nlohmann::json::parse(R"({"quant_method": "fp8"})"), "c")
                  .status()
                  .message(),
              HasSubstr("weight_block_size is null; accepted: [128,128]"));
}

// What the loader refuses.
class RefusalTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<Glm>> Load(bool quantize = false) {
    auto config = ModelConfig::Read(folder_.path());
    if (!config.ok()) return config.status();
    const StepLimits limits =
        Glm::CompleteLimits(*config, {.tokens_max = 8, .sequences_max = 1, .logit_rows_max = 8});
    device_ = CreateCpuDevice(1);
    device_->PlanScratch(limits);
    WeightSource source(folder_.path());
    source.quantize = quantize;
    return Glm::Load(*device_, *config, source, DType::kBF16, limits);
  }
  void Write(const TinyTensors& tensors) {
    WriteFile(folder_.path() + "/model.safetensors", test::SafetensorsBytes(tensors));
  }
  // The tensors of a checkpoint whose config is written.
  TinyTensors Start(const TinyModelOptions& options) {
    WriteTinyModel(folder_.path(), options);
    return MakeTinyTensors(options);
  }
  TempFolder folder_;
  std::unique_ptr<Device> device_;
};

const TinyModelOptions kChannel{.dtype = DType::kBF16, .float8 = TinyFloat8::kChannel};

TEST_F(RefusalTest, WholeCheckpointsLoad) {
  Start(kChannel);
  EXPECT_TRUE(Load().ok()) << Load().status();
  EXPECT_TRUE(Load(/*quantize=*/true).ok()) << Load(true).status();
  TinyModelOptions block = kChannel;
  block.float8 = TinyFloat8::kBlock;
  block.query_heads = block.kv_heads = 8;  // 128 rows each of q, k and v
  block.dense_width = block.expert_width = 128;
  Start(block);
  EXPECT_TRUE(Load().ok()) << Load().status();
}

TEST_F(RefusalTest, LinearsComputedAsOneMustBeAlike) {
  TinyTensors tensors = Start(kChannel);
  const std::string k = "model.layers.1.self_attn.k_proj.weight";
  tensors.erase(k + "_scale");
  tensors[k].dtype = DType::kBF16;
  Write(tensors);
  EXPECT_THAT(Load().status().message(),
              AllOf(HasSubstr(folder_.path()), HasSubstr("tensor " + k + " is not quantised"),
                    HasSubstr("q_proj.weight is quantised by channel")));
  // Quantising it while loading makes it alike.
  EXPECT_TRUE(Load(/*quantize=*/true).ok()) << Load(true).status();

  tensors = Start(kChannel);
  for (int e = 0; e < 9; ++e) {
    const std::string name = "model.layers.2.mlp." +
                             (e == 8 ? "shared_experts." : "experts." + std::to_string(e) + ".") +
                             "down_proj.weight";
    tensors.erase(name + "_scale");
    tensors[name].dtype = DType::kBF16;
  }
  Write(tensors);
  EXPECT_THAT(Load().status().message(),
              HasSubstr("model.layers.2.mlp.experts.0.down_proj.weight"));
}

TEST_F(RefusalTest, ScalesAndValuesBelongTogether) {
  const std::string up = "model.layers.2.mlp.experts.3.up_proj.weight";
  TinyTensors tensors = Start(kChannel);
  tensors.erase(up + "_scale");
  Write(tensors);
  EXPECT_THAT(Load().status().message(), HasSubstr("tensor " + up + " is not quantised"));

  const std::string o = "model.layers.0.self_attn.o_proj.weight";
  tensors = Start(kChannel);
  tensors.erase(o + "_scale");  // packed with nothing: its type tells
  Write(tensors);
  EXPECT_THAT(Load().status().message(),
              AllOf(HasSubstr("tensor " + o + " is F8_E4M3"), HasSubstr("weight_scale")));

  tensors = Start(kChannel);
  tensors[o].dtype = DType::kBF16;
  Write(tensors);
  EXPECT_THAT(Load().status().message(), HasSubstr("tensor " + o + " is BF16; accepted: F8_E4M3"));
}

TEST_F(RefusalTest, ScalesAreNumbers) {
  const std::string scale = "model.layers.1.mlp.experts.7.gate_proj.weight_scale";
  for (const float wrong : {std::nanf(""), INFINITY, -1.0f}) {
    TinyTensors tensors = Start(kChannel);
    tensors[scale].values[5] = wrong;
    Write(tensors);
    EXPECT_THAT(Load().status().message(), HasSubstr("tensor " + scale + ", row 5"));
  }
  TinyTensors tensors = Start({.dtype = DType::kBF16});
  const std::string v = "model.layers.2.self_attn.v_proj.weight";
  tensors[v].values[40] = std::nanf("");  // row 1 of 32 columns
  Write(tensors);
  EXPECT_THAT(Load(/*quantize=*/true).status().message(), HasSubstr("tensor " + v + ", row 1"));
}

TEST_F(RefusalTest, ScalesHaveTheShapeOfTheScheme) {
  const std::string scale = "model.layers.0.mlp.gate_proj.weight_scale";
  TinyTensors tensors = Start(kChannel);
  tensors[scale].shape = {1, 48};
  Write(tensors);
  EXPECT_THAT(Load().status().message(), HasSubstr("tensor " + scale + " has shape [1, 48]"));
  tensors[scale].shape = {48};  // without the column: fine
  Write(tensors);
  EXPECT_TRUE(Load().ok()) << Load().status();
}

TEST_F(RefusalTest, CutBlocksNeedADeviceThatTakesThem) {
  TinyModelOptions block = kChannel;
  block.float8 = TinyFloat8::kBlock;
  Start(block);
  EXPECT_TRUE(Load().ok()) << Load().status();
  const auto config = ModelConfig::Read(folder_.path());
  ASSERT_TRUE(config.ok()) << config.status();
  const absl::Status status =
      Glm::Plan(*config, DType::kBF16, {.scaling = WeightScaling::kBlock, .cut_blocks = false})
          .status();
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("model.layers.0.self_attn.q_proj.weight"), HasSubstr("blocks")));
}

TEST_F(RefusalTest, CacheScales) {
  TinyTensors tensors = Start(kChannel);
  const std::string name = "model.layers.1.self_attn.k_scale";
  tensors[name] = {DType::kF32, {1}, {0.25f}};
  tensors["model.layers.1.self_attn.v_proj.v_scale"] = {DType::kBF16, {}, {0.5f}};
  Write(tensors);
  auto model = Load();
  ASSERT_TRUE(model.ok()) << model.status();
  KvCache cache;
  cache.layers.resize(3);
  (*model)->ScaleCache(&cache);
  EXPECT_EQ(cache.layers[0].key_scale, 1);
  EXPECT_EQ(cache.layers[1].key_scale, 0.25f);
  EXPECT_EQ(cache.layers[1].value_scale, 0.5f);
  for (const float wrong : {0.0f, -1.0f, std::nanf("")}) {
    tensors[name].values[0] = wrong;
    Write(tensors);
    EXPECT_THAT(Load().status().message(), HasSubstr("tensor " + name));
  }
  nlohmann::json config = test::TinyConfig(kChannel);
  config["quantization_config"]["kv_cache_scheme"] = {
      {"num_bits", 8}, {"type", "float"}, {"strategy", "tensor"}, {"dynamic", false}};
  WriteFile(folder_.path() + "/config.json", config.dump());
  EXPECT_THAT(Load().status().message(), HasSubstr("model.layers.0.self_attn.k_scale is missing"));
}

}  // namespace
}  // namespace glm::engine
