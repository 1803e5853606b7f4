#include "bench/floor.h"

#include <gtest/gtest.h>

namespace glm::bench {
namespace {

engine::ModelConfig Flash() {
  engine::ModelConfig config;
  config.hidden_size = 2048;
  config.layers = 47;
  config.query_heads = config.kv_heads = 20;
  config.head_size = 256;
  config.rope_size = 64;
  config.query_latent = 768;
  config.kv_latent = 512;
  config.value_size = 256;
  config.dense_layers = 1;
  config.dense_width = 10240;
  config.experts = 64;
  config.shared_experts = 1;
  config.experts_per_token = 4;
  config.expert_width = 1536;
  config.vocabulary = 154880;
  return config;
}

engine::ModelConfig Air() {
  engine::ModelConfig config;
  config.hidden_size = 4096;
  config.layers = 46;
  config.query_heads = 96;
  config.kv_heads = 8;
  config.head_size = config.value_size = 128;
  config.rope_size = 64;
  config.dense_layers = 1;
  config.dense_width = 10944;
  config.experts = 128;
  config.shared_experts = 1;
  config.experts_per_token = 8;
  config.expert_width = 1408;
  config.vocabulary = 151552;
  return config;
}

engine::ModelConfig Glm45() {
  engine::ModelConfig config = Air();
  config.hidden_size = 5120;
  config.layers = 92;
  config.dense_layers = 3;
  config.dense_width = 12288;
  config.experts = 160;
  config.expert_width = 1536;
  return config;
}

// The figures are those of a roofline calculator that shares no code with this one; its H100 has
// 990 TFLOPS in BF16, ours 989.
TEST(FloorTest, IsWhatAnotherCalculatorSays) {
  const Peaks h100 = PeaksOf("NVIDIA H100 80GB HBM3 (0)");
  const FloorTerms bf16{.peaks = h100};
  const FloorTerms fp8{.peaks = h100, .fp8_weights = true};
  EXPECT_NEAR(DecodeFloor(Flash(), bf16, 1, 1000) * 1e3, 2.15, 0.01);
  EXPECT_NEAR(DecodeFloor(Flash(), bf16, 64, 1000) * 1e3, 18.46, 0.01);
  EXPECT_NEAR(DecodeFloor(Flash(), fp8, 256, 1000) * 1e3, 13.08, 0.01);
  EXPECT_NEAR(PrefillFloor(Flash(), bf16, 8000) * 1e3, 84.03, 0.1);
  EXPECT_NEAR(PrefillFloor(Flash(), fp8, 8000) * 1e3, 57.73, 0.1);
  EXPECT_NEAR(DecodeFloor(Air(), fp8, 16, 1000) * 1e3, 22.21, 0.01);
  EXPECT_NEAR(PrefillFloor(Air(), fp8, 8000) * 1e3, 172.14, 0.2);
}

// The calculator counts the draft layer's two sums too.
TEST(FloorTest, RanksShareAStepAndExchange) {
  const engine::ModelConfig rank = Glm45().OfRank(8);
  FloorTerms terms{.peaks = PeaksOf("NVIDIA H200 (0)"), .fp8_weights = true};
  EXPECT_NEAR(DecodeFloor(rank, terms, 16, 1000) * 1e3, 6.29 - 0.77, 0.02);
  EXPECT_NEAR(PrefillFloor(rank, terms, 8000) * 1e3, 51.84, 0.2);
  terms.exchange = true;
  EXPECT_NEAR(DecodeFloor(rank, terms, 16, 1000) * 1e3, 6.29, 0.02);
  EXPECT_NEAR(PrefillFloor(rank, terms, 8000) * 1e3, 111.74, 0.8);
}

TEST(FloorTest, UnknownDevicesHaveNone) { EXPECT_EQ(PeaksOf("CPU, 2 threads").memory_gbps, 0); }

}  // namespace
}  // namespace glm::bench
