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

// The bound is that of the release build; instrumented ones are an order slower.
#ifdef NDEBUG
constexpr double kPlanSecondsMax = 1;
#else
constexpr double kPlanSecondsMax = 20;
#endif

// The layout of the published checkpoints, written down apart from the planner.
class Layout {
 public:
  Layout(const ModelConfig& config, bool float8, bool mtp) : c_(config), float8_(float8) {
    const int64_t hidden = c_.hidden_size;
    shapes_["model.embed_tokens.weight"] = {c_.vocabulary, hidden};
    shapes_["model.norm.weight"] = {hidden};
    shapes_["lm_head.weight"] = {c_.vocabulary, hidden};
    for (int32_t i = 0; i < c_.layers; ++i) AddLayer("model.layers." + std::to_string(i) + ".", i);
    if (mtp) AddMtp("model.layers." + std::to_string(c_.layers) + ".");
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
    const int64_t hidden = c_.hidden_size;
    shapes_[name + "input_layernorm.weight"] = {hidden};
    shapes_[name + "post_attention_layernorm.weight"] = {hidden};
    if (c_.model_type == "glm4_moe_lite") {
      AddLatentAttention(name + "self_attn.");
    } else {
      AddAttention(name + "self_attn.");
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

  void AddAttention(const std::string& name) {
    const int64_t hidden = c_.hidden_size, queries = c_.query_heads * 128, keys = c_.kv_heads * 128;
    AddLinear(name + "q_proj", queries, hidden);
    AddLinear(name + "k_proj", keys, hidden);
    AddLinear(name + "v_proj", keys, hidden);
    AddLinear(name + "o_proj", hidden, queries);
    shapes_[name + "q_proj.bias"] = {queries};
    shapes_[name + "k_proj.bias"] = {keys};
    shapes_[name + "v_proj.bias"] = {keys};
    if (!c_.use_qk_norm) return;
    shapes_[name + "q_norm.weight"] = {128};
    shapes_[name + "k_norm.weight"] = {128};
  }
  // GLM-4.7-Flash alone.
  void AddLatentAttention(const std::string& name) {
    shapes_[name + "q_a_proj.weight"] = {768, 2048};
    shapes_[name + "q_a_layernorm.weight"] = {768};
    shapes_[name + "q_b_proj.weight"] = {5120, 768};
    shapes_[name + "kv_a_proj_with_mqa.weight"] = {576, 2048};
    shapes_[name + "kv_a_layernorm.weight"] = {512};
    shapes_[name + "kv_b_proj.weight"] = {8960, 512};
    shapes_[name + "o_proj.weight"] = {2048, 5120};
  }
  void AddMtp(const std::string& name) {
    const int64_t hidden = c_.hidden_size;
    AddLayer(name, c_.layers);
    shapes_[name + "enorm.weight"] = {hidden};
    shapes_[name + "hnorm.weight"] = {hidden};
    shapes_[name + "eh_proj.weight"] = {hidden, 2 * hidden};
    shapes_[name + "embed_tokens.weight"] = {c_.vocabulary, hidden};
    shapes_[name + "shared_head.norm.weight"] = {hidden};
    AddLinear(name + "shared_head.head", c_.vocabulary, hidden);
  }

  const ModelConfig& c_;
  const bool float8_;
  Shapes shapes_;
};

WeightPlan MustPlan(const ModelConfig& config, const PlanTerms& terms, bool mtp = false) {
  const auto start = std::chrono::steady_clock::now();
  absl::StatusOr<WeightPlan> plan = Glm::Plan(config, DType::kBF16, terms, {.mtp = mtp});
  EXPECT_TRUE(plan.ok()) << plan.status();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_LT(seconds.count(), kPlanSecondsMax) << "a plan takes less than a second";
  return *std::move(plan);
}

Shapes ShapesOf(const WeightPlan& plan) {
  Shapes shapes;
  for (const Slot& slot : plan.slots()) shapes[slot.name] = slot.shape;
  return shapes;
}

struct PublishedModel {
  const char* name;
  bool mtp;         // with the draft layer
  int64_t tensors;  // without scales
  int64_t scales;
  int64_t bytes;  // that are loaded
};

class PlanOfPublishedTest : public testing::TestWithParam<PublishedModel> {};

TEST_P(PlanOfPublishedTest, NamesShapesAndBytes) {
  const ModelConfig config = Published(GetParam().name);
  const PlanTerms terms{.scaling = config.quantization.weights};
  const WeightPlan plan = MustPlan(config, terms, GetParam().mtp);
  const bool float8 = terms.scaling == WeightScaling::kChannel;
  Shapes expected = Layout(config, float8, GetParam().mtp).shapes();
  EXPECT_EQ(static_cast<int64_t>(expected.size()), GetParam().tensors + GetParam().scales);
  for (const std::string& name : plan.names_taken()) {
    EXPECT_EQ(expected.erase(name), 1u) << name << " is not loaded";
  }
  EXPECT_TRUE(ShapesOf(plan) == expected);
  EXPECT_EQ(plan.slots().size(), expected.size()) << "each tensor is read once";
  EXPECT_EQ(plan.bytes(), GetParam().bytes);
}

class RanksTest : public testing::TestWithParam<const char*> {};

// Every element is held by one rank, or by all.
TEST_P(RanksTest, TileEveryTensor) {
  const ModelConfig config = Published(GetParam());
  const Shapes whole = Layout(config, false, false).shapes();
  for (const int32_t size : {1, 2, 4, 8}) {
    if (!Glm::CheckRanks(config, size).ok()) continue;
    std::map<std::string, int64_t> shared, sliced;  // elements
    for (int32_t rank = 0; rank < size; ++rank) {
      const WeightPlan plan =
          MustPlan(config, {.scaling = config.quantization.weights, .slice = {rank, size}});
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
    // What is shared is small: norms, routers, scales and latents.
    if (size > 1) {
      for (const auto& [name, elements] : shared) {
        EXPECT_LE(elements / size, 2000000) << name;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, RanksTest,
                         testing::Values("GLM-4.5-Air", "GLM-4.7-FP8", "GLM-4.7-Flash"));

// FP8 heads of draft layers, and their scales: in the checkpoint, not loaded.
constexpr int64_t kAirHead = int64_t{151552} * (4096 + 4);
constexpr int64_t kGlm47Head = int64_t{151552} * (5120 + 4);

INSTANTIATE_TEST_SUITE_P(
    Models, PlanOfPublishedTest,
    testing::Values(
        PublishedModel{"GLM-4.5-Air", false, 17925, 0, 213704514048},
        PublishedModel{"GLM-4.5-Air", true, 17925 + 404, 0, 220937661440},
        PublishedModel{"GLM-4.5", false, 44189, 0, 705595686528},
        PublishedModel{"GLM-4.6", false, 44189, 0, 705595686528},
        PublishedModel{"GLM-4.7", true, 44189 + 502, 0, 716675611392},
        PublishedModel{"GLM-4.7-Flash", false, 9491, 0, 59886793728},
        PublishedModel{"GLM-4.7-Flash", true, 9703, 0, 62442983168},
        PublishedModel{"GLM-4.5-Air-FP8", false, 17925, 17602, 108282407936},
        PublishedModel{"GLM-4.5-Air-FP8", true, 17925 + 404, 17602 + 392, 112558098944 - kAirHead},
        PublishedModel{"GLM-4.7-FP8", false, 44189, 43364, 354902011520},
        PublishedModel{"GLM-4.7-FP8", true, 44189 + 502, 43364 + 488, 361277168384 - kGlm47Head}),
    [](const auto& param) {
      std::string name = param.param.name;
      for (char& c : name) {
        if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
      }
      return name + (param.param.mtp ? "_mtp" : "");
    });

// GLM-4.6 leaves the draft layer's embedding and head out: the model's are used.
TEST(PlanTest, ADraftLayerWithoutTablesUsesTheModels) {
  const ModelConfig config = Published("GLM-4.6");
  Shapes expected = Layout(config, false, true).shapes();
  EXPECT_EQ(expected.erase("model.layers.92.embed_tokens.weight"), 1u);
  EXPECT_EQ(expected.erase("model.layers.92.shared_head.head.weight"), 1u);
  EXPECT_EQ(expected.size(), 44689u);
  StoredTensors stored;
  for (const auto& [name, shape] : expected) stored[name].shape = shape;
  const WeightPlan plan = MustPlan(config, {.stored = &stored}, /*mtp=*/true);
  EXPECT_TRUE(ShapesOf(plan) == expected);
  EXPECT_EQ(plan.bytes(), 705595686528 + 2 * (3988069792 - 160) + 4 * 160);
}

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
            "tensor_parallel_size is 3, which does not divide num_key_value_heads 8, "
            "moe_intermediate_size 1408, vocab_size 151552; accepted: 1, 2, 4, 8");
  EXPECT_THAT(Glm::CheckRanks(config, 0).message(), HasSubstr("size is 0; accepted: 1, 2, 4, 8"));
  EXPECT_EQ(Glm::CheckRanks(Published("GLM-4.7-Flash"), 8).message(),
            "tensor_parallel_size is 8, which does not divide num_attention_heads 20; accepted: 1, "
            "2, 4");
  status = Glm::Plan(config, DType::kBF16, {.slice = {0, 16}}).status();
  EXPECT_THAT(status.message(), HasSubstr("tensor_parallel_size is 16"));
}

// Eight ranks share 1408 columns of an expert: 176 a rank, which cuts blocks of 128. A device that
// does not take that is named the tensor; on others, the ranks' values together are the model's.
TEST(PlanTest, SlicesThatCutBlocks) {
  ModelConfig config = Published("GLM-4.7");
  config.quantization.weights = WeightScaling::kBlock;
  EXPECT_TRUE(Glm::Plan(config, DType::kBF16, {.scaling = WeightScaling::kBlock}).ok());
  EXPECT_TRUE(
      Glm::Plan(config, DType::kBF16, {.scaling = WeightScaling::kBlock, .slice = {3, 4}}).ok());
  const absl::Status status =
      Glm::Plan(config, DType::kBF16,
                {.scaling = WeightScaling::kBlock, .cut_blocks = false, .slice = {7, 8}})
          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("model.layers.3.mlp.experts.0.gate_proj.weight"));

  const auto float8_bytes = [&](const RankSlice& slice) {
    const auto plan =
        Glm::Plan(config, DType::kBF16, {.scaling = WeightScaling::kBlock, .slice = slice});
    EXPECT_TRUE(plan.ok()) << plan.status();
    int64_t bytes = 0;
    for (const WeightPlan::Entry& entry : plan->entries()) {
      if (entry.layout.dtype == DType::kF8E4M3) bytes += entry.layout.bytes();
    }
    return bytes;
  };
  int64_t bytes = 0;
  for (int32_t rank = 0; rank < 8; ++rank) bytes += float8_bytes({rank, 8});
  EXPECT_EQ(bytes, float8_bytes({0, 1}));
}

}  // namespace
}  // namespace glm::engine
