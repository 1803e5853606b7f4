// Plans of the published models, made from their configs alone: names, shapes and bytes are those
// of the published checkpoints, and the slices of ranks tile every tensor.
#include <chrono>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "engine/model/glm.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace glm::engine {
namespace {

using testing::HasSubstr;

using Shapes = std::map<std::string, std::vector<int64_t>>;

ModelConfig Published(const std::string& name) {
  std::ifstream file(std::string(GLM_SOURCE_DIR) + "/tests/golden/config/" + name + ".json");
  std::stringstream text;
  text << file.rdbuf();
  auto config = ModelConfig::Parse(text.str());
  EXPECT_TRUE(config.ok()) << config.status();
  return *config;
}

// The layout of the published checkpoints, written down apart from the planner.
class Layout {
 public:
  Layout(const ModelConfig& config, bool float8) : c_(config), float8_(float8) {
    const int64_t hidden = c_.hidden_size;
    shapes_["model.embed_tokens.weight"] = {c_.vocabulary, hidden};
    shapes_["model.norm.weight"] = {hidden};
    shapes_["lm_head.weight"] = {c_.vocabulary, hidden};
    for (int32_t i = 0; i < c_.layers; ++i) AddLayer("model.layers." + std::to_string(i) + ".", i);
  }
  const Shapes& shapes() const { return shapes_; }

 private:
  void AddLinear(const std::string& name, int64_t rows, int64_t columns) {
    shapes_[name + ".weight"] = {rows, columns};
    if (float8_) shapes_[name + ".weight_scale"] = {rows, 1};
  }
  void AddMlp(const std::string& name, int64_t width) {
    AddLinear(name + "gate_proj", width, c_.hidden_size);
    AddLinear(name + "up_proj", width, c_.hidden_size);
    AddLinear(name + "down_proj", c_.hidden_size, width);
  }
  void AddLayer(const std::string& name, int32_t number) {
    const int64_t hidden = c_.hidden_size, queries = c_.query_heads * 128, keys = c_.kv_heads * 128;
    shapes_[name + "input_layernorm.weight"] = {hidden};
    shapes_[name + "post_attention_layernorm.weight"] = {hidden};
    AddLinear(name + "self_attn.q_proj", queries, hidden);
    AddLinear(name + "self_attn.k_proj", keys, hidden);
    AddLinear(name + "self_attn.v_proj", keys, hidden);
    AddLinear(name + "self_attn.o_proj", hidden, queries);
    shapes_[name + "self_attn.q_proj.bias"] = {queries};
    shapes_[name + "self_attn.k_proj.bias"] = {keys};
    shapes_[name + "self_attn.v_proj.bias"] = {keys};
    if (c_.use_qk_norm) {
      shapes_[name + "self_attn.q_norm.weight"] = {128};
      shapes_[name + "self_attn.k_norm.weight"] = {128};
    }
    if (number < c_.dense_layers) {
      AddMlp(name + "mlp.", c_.dense_width);
      return;
    }
    shapes_[name + "mlp.gate.weight"] = {c_.experts, hidden};
    shapes_[name + "mlp.gate.e_score_correction_bias"] = {c_.experts};
    for (int32_t j = 0; j < c_.experts; ++j) {
      AddMlp(name + "mlp.experts." + std::to_string(j) + ".", c_.expert_width);
    }
    AddMlp(name + "mlp.shared_experts.", c_.expert_width);
  }

  const ModelConfig& c_;
  const bool float8_;
  Shapes shapes_;
};

WeightPlan MustPlan(const ModelConfig& config, const PlanTerms& terms) {
  const auto start = std::chrono::steady_clock::now();
  absl::StatusOr<WeightPlan> plan = Glm::Plan(config, DType::kBF16, terms);
  EXPECT_TRUE(plan.ok()) << plan.status();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_LT(seconds.count(), 1.0) << "a plan takes less than a second";
  return *std::move(plan);
}

Shapes ShapesOf(const WeightPlan& plan) {
  Shapes shapes;
  for (const Slot& slot : plan.slots()) shapes[slot.name] = slot.shape;
  return shapes;
}

struct PublishedModel {
  const char* name;
  int64_t tensors;       // without the draft layer
  int64_t scales;        // besides
  int64_t bytes;         // of all of them
  int64_t bytes_rank_8;  // of one rank of eight
};

class PlanOfPublishedTest : public testing::TestWithParam<PublishedModel> {};

TEST_P(PlanOfPublishedTest, NamesShapesAndBytes) {
  const ModelConfig config = Published(GetParam().name);
  const PlanTerms terms{.scaling = config.quantization.weights};
  const WeightPlan plan = MustPlan(config, terms);
  const Shapes expected = Layout(config, terms.scaling == WeightScaling::kChannel).shapes();
  EXPECT_EQ(static_cast<int64_t>(expected.size()), GetParam().tensors + GetParam().scales);
  EXPECT_TRUE(ShapesOf(plan) == expected);
  EXPECT_EQ(plan.slots().size(), expected.size()) << "each tensor is read once";
  EXPECT_EQ(plan.bytes(), GetParam().bytes);
}

// Every element is held by one rank, or by all.
TEST_P(PlanOfPublishedTest, RanksTileEveryTensor) {
  const ModelConfig config = Published(GetParam().name);
  const Shapes whole = Layout(config, false).shapes();
  for (const int32_t size : {1, 2, 4, 8}) {
    std::map<std::string, int64_t> shared, sliced;  // elements
    for (int32_t rank = 0; rank < size; ++rank) {
      const WeightPlan plan =
          MustPlan(config, {.scaling = config.quantization.weights, .slice = {rank, size}});
      if (size == 8) EXPECT_EQ(plan.bytes(), GetParam().bytes_rank_8);
      for (const Slot& slot : plan.slots()) {
        int64_t elements = 1;
        for (const int64_t extent : slot.shape) elements *= extent;
        const int64_t taken = slot.rows.count * slot.columns.count;
        if (taken == elements) {
          shared[slot.name] += elements;
          continue;
        }
        EXPECT_EQ(taken * size, elements) << slot.name;
        const bool by_rows = slot.rows.count < slot.shape[0];
        const Range& range = by_rows ? slot.rows : slot.columns;
        ASSERT_EQ(range.begin, range.count * rank) << slot.name;
        sliced[slot.name] += taken;
      }
    }
    for (const auto& [name, shape] : whole) {
      int64_t elements = 1;
      for (const int64_t extent : shape) elements *= extent;
      if (sliced.count(name) != 0) {
        EXPECT_EQ(sliced[name], elements) << name;
        EXPECT_EQ(shared.count(name), 0u) << name;
      } else {
        EXPECT_EQ(shared[name], elements * size) << name;
      }
    }
    // What is shared is small: norms, routers and scales.
    if (size > 1) {
      for (const auto& [name, elements] : shared) {
        EXPECT_LE(elements / size, int64_t{160} * 5120) << name;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, PlanOfPublishedTest,
                         testing::Values(PublishedModel{"GLM-4.5-Air", 17925, 0, 213704514048, 0},
                                         PublishedModel{"GLM-4.5", 44189, 0, 705595686528, 0},
                                         PublishedModel{"GLM-4.6", 44189, 0, 705595686528, 0},
                                         PublishedModel{"GLM-4.7", 44189, 0, 705595686528, 0},
                                         PublishedModel{"GLM-4.5-Air-FP8", 17925, 17602, 0, 0},
                                         PublishedModel{"GLM-4.7-FP8", 44189, 43364, 0, 0}),
                         [](const auto& param) {
                           std::string name = param.param.name;
                           for (char& c : name)
                             c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
                           return name;
                         });

TEST(PlanTest, QuantisingTakesTheBytesOfAQuantisedCheckpoint) {
  const ModelConfig plain = Published("GLM-4.5-Air");
  const ModelConfig float8 = Published("GLM-4.5-Air-FP8");
  for (const int32_t size : {1, 8}) {
    const RankSlice slice{.rank = size - 1, .size = size};
    EXPECT_EQ(MustPlan(plain, {.quantize = true, .slice = slice}).bytes(),
              MustPlan(float8, {.scaling = WeightScaling::kChannel, .slice = slice}).bytes());
  }
}

TEST(PlanTest, SizesThatDoNotDivideAreRefusedWithThoseThatDo) {
  const ModelConfig config = Published("GLM-4.5-Air");
  for (const int32_t size : {1, 2, 4, 8}) EXPECT_TRUE(Glm::CheckRanks(config, size).ok());
  absl::Status status = Glm::CheckRanks(config, 3);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(),
            "tensor parallel size is 3, which does not divide num_key_value_heads 8, "
            "moe_intermediate_size 1408, vocab_size 151552; accepted: 1, 2, 4, 8");
  EXPECT_THAT(Glm::CheckRanks(config, 0).message(), HasSubstr("size is 0; accepted: 1, 2, 4, 8"));
  status = Glm::Plan(config, DType::kBF16, {.slice = {0, 16}}).status();
  EXPECT_THAT(status.message(), HasSubstr("tensor parallel size is 16"));
}

// Eight ranks share 1408 columns of an expert: 176 a rank, which cuts blocks of 128.
TEST(PlanTest, SlicesThatCutBlocksAreRefusedByName) {
  ModelConfig config = Published("GLM-4.7");
  config.quantization.weights = WeightScaling::kBlock;
  EXPECT_TRUE(Glm::Plan(config, DType::kBF16, {.scaling = WeightScaling::kBlock}).ok());
  EXPECT_TRUE(
      Glm::Plan(config, DType::kBF16, {.scaling = WeightScaling::kBlock, .slice = {3, 4}}).ok());
  const absl::Status status =
      Glm::Plan(config, DType::kBF16, {.scaling = WeightScaling::kBlock, .slice = {7, 8}}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("model.layers.3.mlp.experts.0.gate_proj.weight"));
}

}  // namespace
}  // namespace glm::engine
