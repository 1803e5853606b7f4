// config.json: the published configs parse to the right values, and each wrong one is refused with
// the key, its value and what is accepted.
#include "engine/model/config.h"

#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_model.h"

namespace glm::engine {
namespace {

using nlohmann::json;
using test::TempFolder;
using test::TinyConfig;
using test::TinyModelOptions;
using test::WriteFile;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

std::string Published(const std::string& name) {
  std::ifstream file(std::string(GLM_SOURCE_DIR) + "/tests/golden/config/" + name + ".json");
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

TEST(ConfigTest, Glm45) {
  const auto config = ModelConfig::Parse(Published("GLM-4.5"));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model_type, "glm4_moe");
  EXPECT_EQ(config->hidden_size, 5120);
  EXPECT_EQ(config->layers, 92);
  EXPECT_EQ(config->query_heads, 96);
  EXPECT_EQ(config->kv_heads, 8);
  EXPECT_EQ(config->head_size, 128);
  EXPECT_EQ(config->rope_size, 64);
  EXPECT_EQ(config->rope_theta, 1e6);
  EXPECT_TRUE(config->attention_bias);
  EXPECT_TRUE(config->use_qk_norm);
  EXPECT_EQ(config->dense_layers, 3);
  EXPECT_EQ(config->dense_width, 12288);
  EXPECT_EQ(config->experts, 160);
  EXPECT_EQ(config->shared_experts, 1);
  EXPECT_EQ(config->experts_per_token, 8);
  EXPECT_EQ(config->expert_width, 1536);
  EXPECT_EQ(config->routed_scaling_factor, 2.5);
  EXPECT_TRUE(config->norm_topk_prob);
  EXPECT_EQ(config->mtp_layers, 1);
  EXPECT_EQ(config->vocabulary, 151552);
  EXPECT_EQ(config->vocabulary_used, 151552);
  EXPECT_EQ(config->positions_max, 131072);
  EXPECT_EQ(config->rms_norm_eps, 1e-5);
  EXPECT_FALSE(config->tie_word_embeddings);
  EXPECT_EQ(config->dtype, DType::kBF16);
  EXPECT_THAT(config->eos_ids, ElementsAre(151329, 151336, 151338));
}

TEST(ConfigTest, Glm45Air) {
  const auto config = ModelConfig::Parse(Published("GLM-4.5-Air"));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->hidden_size, 4096);
  EXPECT_EQ(config->layers, 46);
  EXPECT_EQ(config->head_size, 128);  // not hidden_size / heads
  EXPECT_TRUE(config->attention_bias);
  EXPECT_FALSE(config->use_qk_norm);
  EXPECT_EQ(config->dense_layers, 1);
  EXPECT_EQ(config->dense_width, 10944);
  EXPECT_EQ(config->experts, 128);
  EXPECT_EQ(config->expert_width, 1408);
  EXPECT_EQ(config->routed_scaling_factor, 1.0);
  EXPECT_EQ(config->positions_max, 131072);
}

TEST(ConfigTest, Glm46And47) {
  for (const std::string name : {"GLM-4.6", "GLM-4.7"}) {
    const auto config = ModelConfig::Parse(Published(name));
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->layers, 92);
    EXPECT_EQ(config->dense_layers, 3);
    EXPECT_TRUE(config->use_qk_norm);
    EXPECT_EQ(config->positions_max, 202752);
    EXPECT_EQ(config->routed_scaling_factor, 2.5);
  }
}

TEST(ConfigTest, Glm47Flash) {
  const auto config = ModelConfig::Parse(Published("GLM-4.7-Flash"));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model_type, "glm4_moe_lite");
  EXPECT_EQ(config->hidden_size, 2048);
  EXPECT_EQ(config->layers, 47);
  EXPECT_EQ(config->query_heads, 20);
  EXPECT_EQ(config->query_latent, 768);
  EXPECT_EQ(config->kv_latent, 512);
  EXPECT_EQ(config->head_size, 256);  // 192 and 64
  EXPECT_EQ(config->rope_size, 64);
  EXPECT_EQ(config->value_size, 256);
  EXPECT_TRUE(config->latent_attention());
  EXPECT_EQ(config->cell_size(), 576);
  EXPECT_EQ(config->cache_heads(), 1);
  EXPECT_EQ(config->rope_theta, 1e6);
  EXPECT_FALSE(config->attention_bias);
  EXPECT_EQ(config->dense_layers, 1);
  EXPECT_EQ(config->dense_width, 10240);
  EXPECT_EQ(config->experts, 64);
  EXPECT_EQ(config->shared_experts, 1);
  EXPECT_EQ(config->experts_per_token, 4);
  EXPECT_EQ(config->expert_width, 1536);
  EXPECT_EQ(config->routed_scaling_factor, 1.8);
  EXPECT_EQ(config->mtp_layers, 1);
  EXPECT_EQ(config->vocabulary, 154880);
  EXPECT_EQ(config->positions_max, 202752);
  EXPECT_EQ(config->rms_norm_eps, 1e-5);
  EXPECT_EQ(config->dtype, DType::kBF16);
  EXPECT_THAT(config->eos_ids, ElementsAre(154820, 154827, 154829));
}

TEST(ConfigTest, WrongKeysOfLatentAttentionAreRefusedByName) {
  const auto message = [](const std::string& key, const json& value) {
    json config = json::parse(Published("GLM-4.7-Flash"));
    config[key] = value;
    return std::string(ModelConfig::Parse(config.dump()).status().message());
  };
  for (const char* key :
       {"q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"}) {
    EXPECT_THAT(message(key, nullptr), AllOf(HasSubstr(key), HasSubstr("is missing")));
    EXPECT_THAT(message(key, 0), AllOf(HasSubstr(key), HasSubstr("is 0; accepted: an integer")));
    EXPECT_THAT(message(key, 100000), AllOf(HasSubstr(key), HasSubstr("is 100000")));
  }
  EXPECT_THAT(message("qk_rope_head_dim", 63), HasSubstr("qk_rope_head_dim is 63; accepted: even"));
  EXPECT_THAT(message("rope_interleave", false), HasSubstr("rope_interleave is false"));
  EXPECT_EQ(message("rope_interleave", true), "");
  EXPECT_THAT(message("head_dim", 102), HasSubstr("head_dim is 102; accepted: 64"));
  EXPECT_THAT(message("attention_bias", true), HasSubstr("attention_bias is true"));
  EXPECT_THAT(message("num_key_value_heads", 4), HasSubstr("num_key_value_heads is 4"));
  EXPECT_THAT(message("partial_rotary_factor", 0.5), HasSubstr("partial_rotary_factor is 0.5"));
  EXPECT_THAT(message("topk_method", "greedy"), HasSubstr("topk_method is \"greedy\""));
  json types = json::array({"dense"});
  while (types.size() < 47) types.push_back("sparse");
  EXPECT_EQ(message("mlp_layer_types", types), "");
  types[1] = "dense";
  EXPECT_THAT(message("mlp_layer_types", types), HasSubstr("mlp_layer_types is"));
  EXPECT_THAT(message("mlp_layer_types", 3), HasSubstr("mlp_layer_types is 3"));
}

TEST(ConfigTest, WhatIsNotSupportedYetIsRefusedByName) {
  for (const std::string name : {"GLM-4.5-Air-FP8", "GLM-4.7-FP8"}) {
    EXPECT_THAT(ModelConfig::Parse(Published(name)).status().message(),
                HasSubstr("quantization_config"));
  }
}

// transformers 5 writes the rotary keys into an object of their own.
TEST(ConfigTest, RotaryKeysInEitherPlace) {
  json config = TinyConfig({});
  config.erase("rope_theta");
  config.erase("rope_scaling");
  config.erase("partial_rotary_factor");
  config["rope_parameters"] = {
      {"rope_type", "default"}, {"rope_theta", 5e5}, {"partial_rotary_factor", 0.25}};
  auto parsed = ModelConfig::Parse(config.dump());
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->rope_theta, 5e5);
  EXPECT_EQ(parsed->rope_size, 4);

  config["rope_theta"] = 5e5;  // both, alike
  EXPECT_TRUE(ModelConfig::Parse(config.dump()).ok());
  config["rope_theta"] = 4e5;
  EXPECT_THAT(ModelConfig::Parse(config.dump()).status().message(),
              HasSubstr("rope_parameters: rope_theta is 500000.0; accepted: 400000"));
  config.erase("rope_theta");
  config["rope_parameters"]["factor"] = 4;
  EXPECT_THAT(ModelConfig::Parse(config.dump()).status().message(),
              HasSubstr("rope_parameters: factor is 4"));
  config["rope_parameters"] = {{"rope_type", "yarn"}, {"rope_theta", 5e5}};
  EXPECT_THAT(ModelConfig::Parse(config.dump()).status().message(),
              HasSubstr("rope_type is \"yarn\"; accepted: \"default\""));
}

TEST(ConfigTest, AbsentKeysTakeTheReferencesDefaults) {
  json config = TinyConfig({.head_size = 8});  // hidden 32, 4 heads
  for (const char* key :
       {"attention_bias", "use_qk_norm", "tie_word_embeddings", "norm_topk_prob", "n_group",
        "topk_group", "partial_rotary_factor", "head_dim", "routed_scaling_factor",
        "n_shared_experts", "first_k_dense_replace", "num_nextn_predict_layers", "torch_dtype",
        "eos_token_id", "architectures", "hidden_act", "rope_scaling", "rms_norm_eps"}) {
    config.erase(key);
  }
  const auto parsed = ModelConfig::Parse(config.dump());
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_FALSE(parsed->attention_bias);
  EXPECT_FALSE(parsed->use_qk_norm);
  EXPECT_TRUE(parsed->norm_topk_prob);
  EXPECT_EQ(parsed->head_size, 8);
  EXPECT_EQ(parsed->rope_size, 4);
  EXPECT_EQ(parsed->routed_scaling_factor, 1.0);
  EXPECT_EQ(parsed->shared_experts, 1);
  EXPECT_EQ(parsed->dense_layers, 1);
  EXPECT_EQ(parsed->mtp_layers, 0);
  EXPECT_EQ(parsed->dtype, DType::kBF16);
  EXPECT_EQ(parsed->rms_norm_eps, 1e-5);
  EXPECT_TRUE(parsed->eos_ids.empty());
}

TEST(ConfigTest, EitherNameOfTheType) {
  json config = TinyConfig({});
  config.erase("torch_dtype");
  config["dtype"] = "float32";
  EXPECT_EQ(ModelConfig::Parse(config.dump())->dtype, DType::kF32);
  config["torch_dtype"] = "float32";
  EXPECT_EQ(ModelConfig::Parse(config.dump())->dtype, DType::kF32);
  config["torch_dtype"] = "bfloat16";
  EXPECT_THAT(ModelConfig::Parse(config.dump()).status().message(), HasSubstr("dtype"));
}

// A key set to a wrong value (or, with no value, left out), and what the error must say.
struct WrongKey {
  std::string key;
  json value;
  std::string message;
};

class WrongKeyTest : public testing::TestWithParam<WrongKey> {};

TEST_P(WrongKeyTest, IsRefusedByName) {
  json config = TinyConfig({});
  const auto& [key, value, message] = GetParam();
  if (value.is_discarded()) {
    config.erase(key);
  } else {
    config[key] = value;
  }
  const auto parsed = ModelConfig::Parse(config.dump());
  ASSERT_FALSE(parsed.ok());
  EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(parsed.status().message(),
              AllOf(HasSubstr("config.json: "), HasSubstr(key), HasSubstr(message)));
  EXPECT_EQ(parsed.status().message().find('\n'), absl::string_view::npos);
}

const json kAbsent(json::value_t::discarded);
INSTANTIATE_TEST_SUITE_P(
    Config, WrongKeyTest,
    testing::Values(
        WrongKey{"model_type", "llama", "is \"llama\"; accepted: \"glm4_moe\", \"glm4_moe_lite\""},
        WrongKey{"model_type", kAbsent, "accepted: \"glm4_moe\""},
        WrongKey{"architectures", json::array({"LlamaForCausalLM"}), "Glm4MoeForCausalLM"},
        WrongKey{"hidden_size", kAbsent, "is missing"},
        WrongKey{"hidden_size", 0, "is 0; accepted: an integer from 1"},
        WrongKey{"hidden_size", -3, "is -3"}, WrongKey{"hidden_size", 2.5, "is 2.5"},
        WrongKey{"hidden_size", "32", "is \"32\""},
        WrongKey{"hidden_size", 18446744073709551615u, "is 18446744073709551615"},
        WrongKey{"hidden_size", 4294967328u, "is 4294967328"},
        WrongKey{"num_hidden_layers", 100000, "to 1024"},
        WrongKey{"vocab_size", 1LL << 40, "vocab_size is"},
        WrongKey{"num_attention_heads", 0, "is 0"},
        WrongKey{"num_key_value_heads", 3, "a divisor of num_attention_heads, 4"},
        WrongKey{"head_dim", 100000, "to 512"},
        WrongKey{"partial_rotary_factor", 1.5, "is 1.5; accepted: a number from 0 to 1"},
        WrongKey{"partial_rotary_factor", 0.2, "even number"},
        WrongKey{"rope_theta", kAbsent, "is missing"}, WrongKey{"rope_theta", -1, "is -1"},
        WrongKey{"rope_scaling", json{{"type", "linear"}}, "accepted: null"},
        WrongKey{"rope_parameters", 3, "accepted: an object"},
        WrongKey{"attention_bias", 1, "is 1; accepted: true, false"},
        WrongKey{"use_qk_norm", "yes", "is \"yes\""},
        WrongKey{"first_k_dense_replace", 4, "from 0 to 3"},
        WrongKey{"n_routed_experts", 0, "is 0"},
        WrongKey{"n_shared_experts", 2, "is 2; accepted: an integer from 0 to 1"},
        WrongKey{"num_experts_per_tok", 9, "from 1 to 8"},
        WrongKey{"n_group", 2, "is 2; accepted: 1"}, WrongKey{"topk_group", 2, "is 2; accepted: 1"},
        WrongKey{"routed_scaling_factor", 0, "is 0"},
        WrongKey{"scoring_func", "softmax", "accepted: \"sigmoid\""},
        WrongKey{"topk_method", "greedy", "accepted: \"noaux_tc\""},
        WrongKey{"hidden_act", "gelu", "accepted: \"silu\""}, WrongKey{"rms_norm_eps", 0, "is 0"},
        WrongKey{"max_position_embeddings", 0, "is 0"},
        WrongKey{"num_nextn_predict_layers", -1, "is -1"},
        WrongKey{"torch_dtype", "float16", "accepted: \"bfloat16\", \"float32\""},
        WrongKey{"tie_word_embeddings", 0, "accepted: true, false"},
        WrongKey{"eos_token_id", 128, "an id from 0 to 127"}, WrongKey{"eos_token_id", -1, "is -1"},
        WrongKey{"eos_token_id", json::array(), "is []"},
        WrongKey{"eos_token_id", json::array({1, "2"}), "an id from 0 to 127"},
        WrongKey{"quantization_config", json{{"quant_method", "fp8"}}, "not supported"},
        WrongKey{"sliding_window", 4096, "is 4096; accepted: no such key"},
        WrongKey{"q_lora_rank", 768, "no such key"}));

TEST(ConfigTest, MalformedTextIsRefused) {
  const auto message = [](const std::string& text) {
    const auto parsed = ModelConfig::Parse(text);
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << text.substr(0, 40);
    return std::string(parsed.status().message());
  };
  EXPECT_EQ(message(""), "config.json: not valid JSON at byte 1");
  EXPECT_THAT(message("{\"hidden_size\": 1,}"), HasSubstr("not valid JSON at byte 19"));
  EXPECT_THAT(message("{} {}"), HasSubstr("not valid JSON at byte 4"));
  EXPECT_THAT(message("[]"), HasSubstr("not a JSON object"));
  EXPECT_THAT(message("\xFF\xFE"), HasSubstr("not valid JSON"));
  EXPECT_THAT(message(std::string(1000000, '[')), HasSubstr("nested deeper than 32 levels"));
  EXPECT_THAT(message("{\"model_type\": \"glm4_moe\", \"model_type\": \"glm4_moe\"}"),
              HasSubstr("key \"model_type\" is given twice"));
  EXPECT_THAT(message("{\"a\": {\"b\\n\": 1, \"b\\n\": 2}}"),
              HasSubstr("key \"b\\n\" is given twice"));
}

TEST(ConfigTest, ReadTakesEosIdsOfTheGenerationConfig) {
  TempFolder folder;
  WriteFile(folder.path() + "/config.json", TinyConfig({}).dump());
  EXPECT_THAT(ModelConfig::Read(folder.path())->eos_ids, ElementsAre(1, 3));
  WriteFile(folder.path() + "/generation_config.json", R"({"temperature": 1.0})");
  EXPECT_THAT(ModelConfig::Read(folder.path())->eos_ids, ElementsAre(1, 3));
  WriteFile(folder.path() + "/generation_config.json", R"({"eos_token_id": 7})");
  EXPECT_THAT(ModelConfig::Read(folder.path())->eos_ids, ElementsAre(7));
  WriteFile(folder.path() + "/generation_config.json", R"({"eos_token_id": [7, 500]})");
  EXPECT_THAT(
      ModelConfig::Read(folder.path()).status().message(),
      AllOf(HasSubstr("generation_config.json: eos_token_id is [7,500]"), HasSubstr("0 to 127")));
}

TEST(ConfigTest, ReadTakesTheUsedVocabularyOfTheTokenizer) {
  TempFolder folder;
  test::WriteTinyModel(folder.path(), {.vocabulary = 304, .tokenizer = true});
  const auto config = ModelConfig::Read(folder.path());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->vocabulary, 304);
  EXPECT_EQ(config->vocabulary_used, 292);
  EXPECT_THAT(config->eos_ids, ElementsAre(256, 263, 265));

  const std::string path = folder.path() + "/tokenizer.json";
  const auto message = [&](const std::string& text) {
    WriteFile(path, text);
    return std::string(ModelConfig::Read(folder.path()).status().message());
  };
  EXPECT_THAT(message(R"({"model": {"vocab": {"a": 304}}})"),
              AllOf(HasSubstr(path), HasSubstr("largest token id is 304; accepted: 0 to 303")));
  EXPECT_THAT(message(R"({"model": {"vocab": {"a": -1}}})"),
              HasSubstr("model.vocab of \"a\" is -1"));
  EXPECT_THAT(message(R"({"model": {"vocab": {"a": 0}}})"), HasSubstr("eos_token_id 256"));
  EXPECT_THAT(message(R"({"model": {"vocab": {"a": 0}}, "added_tokens": [{"content": "x"}]})"),
              HasSubstr("added_tokens holds {\"content\":\"x\"}"));
  EXPECT_THAT(message(R"({"model": {}})"), HasSubstr("model.vocab is not an object"));
  EXPECT_THAT(message(R"({"model": 3})"), HasSubstr("model.vocab is not an object"));
  EXPECT_THAT(message("nonsense"), HasSubstr("not valid JSON"));
}

TEST(ConfigTest, ReadNamesAMissingFile) {
  TempFolder folder;
  const auto config = ModelConfig::Read(folder.path());
  EXPECT_EQ(config.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(config.status().message(), HasSubstr(folder.path() + "/config.json"));
}

}  // namespace
}  // namespace glm::engine
