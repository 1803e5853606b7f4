// A tiny glm4_moe checkpoint with seeded random weights, in the format of the hub.
//
// Who calls: tests of the engine, the worker and the cluster that need a model that runs, but no
// particular one; loader tests, which break it on purpose. The same options give the same bytes on
// every machine.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernels/dtype.h"
#include "nlohmann/json.hpp"

namespace glm::test {

struct TinyModelOptions {
  uint64_t seed = 1;
  DType dtype = DType::kF32;  // or kBF16
  int32_t hidden_size = 32;
  int32_t layers = 3;
  int32_t query_heads = 4;
  int32_t kv_heads = 2;
  int32_t head_size = 16;
  int32_t dense_layers = 1;
  int32_t dense_width = 48;
  int32_t experts = 8;
  int32_t shared_experts = 1;  // 0 or 1
  int32_t experts_per_token = 2;
  int32_t expert_width = 16;
  int32_t vocabulary = 128;  // with a tokenizer at least kTinyTokens, e.g. 304
  int32_t positions_max = 4096;
  bool attention_bias = true;
  bool use_qk_norm = true;
  bool tie_word_embeddings = false;
  int32_t mtp_layers = 0;
  int32_t shards = 1;  // more than one: with an index
  /// Writes tokenizer.json: a token per byte, then the added tokens of the published models.
  bool tokenizer = false;
};

/// Tokens of the tokenizer: 256 bytes and 36 added tokens, of which <|endoftext|> is 256, <|user|>
/// 263 and <|observation|> 265.
inline constexpr int32_t kTinyTokens = 292;

/// A tensor before it is written; values are rounded to `dtype` then. I32 tensors too.
struct TinyTensor {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::vector<float> values;
};
using TinyTensors = std::map<std::string, TinyTensor>;

nlohmann::json TinyConfig(const TinyModelOptions& options);
TinyTensors MakeTinyTensors(const TinyModelOptions& options);

/// The bytes of a .safetensors file with these tensors, in order of name.
std::string SafetensorsBytes(const TinyTensors& tensors);

/// Creates or overwrites a file.
void WriteFile(const std::string& path, const std::string& bytes);

/// Creates the folder and writes config.json, generation_config.json and the weights, and
/// tokenizer.json if asked for.
void WriteTinyModel(const std::string& folder, const TinyModelOptions& options = {});

}  // namespace glm::test
