#include "tests/support/tiny_model.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "kernels/philox.h"
#include "proto/base/log.h"

namespace glm::test {
namespace {

using nlohmann::json;

constexpr const char* kAddedTokens[] = {"<|endoftext|>",
                                        "[MASK]",
                                        "[gMASK]",
                                        "[sMASK]",
                                        "<sop>",
                                        "<eop>",
                                        "<|system|>",
                                        "<|user|>",
                                        "<|assistant|>",
                                        "<|observation|>",
                                        "<|begin_of_image|>",
                                        "<|end_of_image|>",
                                        "<|begin_of_video|>",
                                        "<|end_of_video|>",
                                        "<|begin_of_audio|>",
                                        "<|end_of_audio|>",
                                        "<|begin_of_transcription|>",
                                        "<|end_of_transcription|>",
                                        "<|code_prefix|>",
                                        "<|code_middle|>",
                                        "<|code_suffix|>",
                                        "<think>",
                                        "</think>",
                                        "<tool_call>",
                                        "</tool_call>",
                                        "<tool_response>",
                                        "</tool_response>",
                                        "<arg_key>",
                                        "</arg_key>",
                                        "<arg_value>",
                                        "</arg_value>",
                                        "/nothink",
                                        "<|begin_of_box|>",
                                        "<|end_of_box|>",
                                        "<|image|>",
                                        "<|video|>"};
constexpr int32_t kByteTokens = 256;
constexpr int32_t kSpecialTokens = 18;  // the first of the added ones: dropped from decoded text
static_assert(kByteTokens + std::size(kAddedTokens) == kTinyTokens);

// Draws tensors one after the other from one seed.
class Weights {
 public:
  Weights(uint64_t seed, DType dtype) : seed_(seed), dtype_(dtype) {}

  // Uniform with this mean and standard deviation: needs no library function whose last bit may
  // differ between machines.
  void Draw(const std::string& name, std::vector<int64_t> shape, float deviation, float mean = 0,
            bool always_f32 = false) {
    TinyTensor tensor;
    tensor.dtype = always_f32 ? DType::kF32 : dtype_;
    tensor.shape = std::move(shape);
    int64_t count = 1;
    for (const int64_t extent : tensor.shape) count *= extent;
    tensor.values.resize(count);
    const float width = deviation * 3.4641016f;
    for (int64_t i = 0; i < count; ++i) {
      const float uniform =
          PhiloxUniform(seed_, PhiloxStream::kSample, drawn_, static_cast<uint32_t>(i));
      tensor.values[i] = mean + width * (uniform - 0.5f);
    }
    ++drawn_;
    tensors_.emplace(name, std::move(tensor));
  }
  // A linear layer that keeps the scale of its input.
  void Linear(const std::string& name, int64_t rows, int64_t columns) {
    Draw(name + ".weight", {rows, columns}, 1.0f / std::sqrt(static_cast<float>(columns)));
  }
  void Norm(const std::string& name, int64_t width) { Draw(name + ".weight", {width}, 0.2f, 1.0f); }

  TinyTensors Take() { return std::move(tensors_); }

 private:
  uint64_t seed_;
  DType dtype_;
  uint32_t drawn_ = 0;
  TinyTensors tensors_;
};

void DrawMlp(Weights& weights, const std::string& name, int64_t width, int64_t hidden) {
  weights.Linear(name + "gate_proj", width, hidden);
  weights.Linear(name + "up_proj", width, hidden);
  weights.Linear(name + "down_proj", hidden, width);
}

void DrawLayer(Weights& weights, const TinyModelOptions& o, int32_t layer) {
  const std::string name = "model.layers." + std::to_string(layer) + ".";
  weights.Norm(name + "input_layernorm", o.hidden_size);
  weights.Norm(name + "post_attention_layernorm", o.hidden_size);
  for (const char* part : {"q_proj", "k_proj", "v_proj"}) {
    const int64_t heads = part[0] == 'q' ? o.query_heads : o.kv_heads;
    const std::string linear = name + "self_attn." + part;
    weights.Linear(linear, heads * o.head_size, o.hidden_size);
    if (o.attention_bias) weights.Draw(linear + ".bias", {heads * o.head_size}, 0.5f);
  }
  weights.Linear(name + "self_attn.o_proj", o.hidden_size, int64_t{o.query_heads} * o.head_size);
  if (o.use_qk_norm) {
    weights.Norm(name + "self_attn.q_norm", o.head_size);
    weights.Norm(name + "self_attn.k_norm", o.head_size);
  }
  if (layer < o.dense_layers) {
    DrawMlp(weights, name + "mlp.", o.dense_width, o.hidden_size);
    return;
  }
  weights.Linear(name + "mlp.gate", o.experts, o.hidden_size);
  weights.Draw(name + "mlp.gate.e_score_correction_bias", {o.experts}, 0.15f, 0, true);
  for (int32_t j = 0; j < o.experts; ++j) {
    DrawMlp(weights, name + "mlp.experts." + std::to_string(j) + ".", o.expert_width,
            o.hidden_size);
  }
  if (o.shared_experts > 0) {
    DrawMlp(weights, name + "mlp.shared_experts.", o.expert_width, o.hidden_size);
  }
}

// UTF-8 of the visible character that byte-level BPE writes for a byte: itself where it is
// printable in Latin-1, else the next one from 256 on.
std::string ByteCharacter(int byte) {
  const auto printable = [](int b) {
    return (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
  };
  int code = byte;
  if (!printable(byte)) {
    code = 256;
    for (int b = 0; b < byte; ++b) code += printable(b) ? 0 : 1;
  }
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

json Tokenizer() {
  json added = json::array();
  for (size_t i = 0; i < std::size(kAddedTokens); ++i) {
    added.push_back({{"id", kByteTokens + static_cast<int32_t>(i)},
                     {"content", kAddedTokens[i]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", i < kSpecialTokens}});
  }
  json vocabulary = json::object();
  for (int byte = 0; byte < kByteTokens; ++byte) vocabulary[ByteCharacter(byte)] = byte;
  const json split = {
      {"type", "Split"},
      {"pattern",
       {{"Regex",
         R"re((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re"}}},
      {"behavior", "Isolated"},
      {"invert", false}};
  const json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", false}};
  const json model = {{"type", "BPE"},
                      {"dropout", nullptr},
                      {"unk_token", nullptr},
                      {"continuing_subword_prefix", nullptr},
                      {"end_of_word_suffix", nullptr},
                      {"fuse_unk", false},
                      {"byte_fallback", false},
                      {"ignore_merges", true},
                      {"vocab", vocabulary},
                      {"merges", json::array()}};
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", added},
          {"normalizer", nullptr},
          {"pre_tokenizer",
           {{"type", "Sequence"}, {"pretokenizers", json::array({split, byte_level})}}},
          {"post_processor", nullptr},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model", model}};
}

json EosIds(const TinyModelOptions& options) {
  return options.tokenizer ? json::array({256, 263, 265}) : json::array({1, 3});
}

std::string Encode(const TinyTensor& tensor) {
  std::string bytes(tensor.values.size() * ByteSize(tensor.dtype), '\0');
  for (size_t i = 0; i < tensor.values.size(); ++i) {
    const float value = tensor.values[i];
    const BFloat16 narrow = ToBFloat16(value);
    const auto integer = static_cast<int32_t>(value);
    const Float8 tiny = ToFloat8(value);
    const void* source = &value;
    if (tensor.dtype == DType::kBF16) source = &narrow;
    if (tensor.dtype == DType::kI32) source = &integer;
    if (tensor.dtype == DType::kF8E4M3) source = &tiny;
    const int64_t size = ByteSize(tensor.dtype);
    std::memcpy(bytes.data() + static_cast<int64_t>(i) * size, source, size);
  }
  return bytes;
}

void WriteShards(const std::string& folder, const TinyTensors& tensors, int32_t shards) {
  std::vector<TinyTensors> parts(shards);
  json weight_map = json::object();
  int32_t next = 0;
  for (const auto& [name, tensor] : tensors) {
    const int32_t shard = next++ % shards;
    parts[shard].emplace(name, tensor);
    weight_map[name] = "model-" + std::to_string(shard + 1) + ".safetensors";
  }
  for (int32_t shard = 0; shard < shards; ++shard) {
    WriteFile(folder + "/model-" + std::to_string(shard + 1) + ".safetensors",
              SafetensorsBytes(parts[shard]));
  }
  const json index = {{"metadata", json::object()}, {"weight_map", weight_map}};
  WriteFile(folder + "/model.safetensors.index.json", index.dump(1));
}

}  // namespace

json TinyConfig(const TinyModelOptions& o) {
  return {{"architectures", json::array({"Glm4MoeForCausalLM"})},
          {"model_type", "glm4_moe"},
          {"attention_bias", o.attention_bias},
          {"eos_token_id", EosIds(o)},
          {"first_k_dense_replace", o.dense_layers},
          {"head_dim", o.head_size},
          {"hidden_act", "silu"},
          {"hidden_size", o.hidden_size},
          {"intermediate_size", o.dense_width},
          {"max_position_embeddings", o.positions_max},
          {"moe_intermediate_size", o.expert_width},
          {"n_group", 1},
          {"n_routed_experts", o.experts},
          {"n_shared_experts", o.shared_experts},
          {"norm_topk_prob", true},
          {"num_attention_heads", o.query_heads},
          {"num_experts_per_tok", o.experts_per_token},
          {"num_hidden_layers", o.layers},
          {"num_key_value_heads", o.kv_heads},
          {"num_nextn_predict_layers", o.mtp_layers},
          {"partial_rotary_factor", 0.5},
          {"rms_norm_eps", 1e-5},
          {"rope_scaling", nullptr},
          {"rope_theta", 1000000},
          {"routed_scaling_factor", 2.5},
          {"tie_word_embeddings", o.tie_word_embeddings},
          {"topk_group", 1},
          {"torch_dtype", o.dtype == DType::kBF16 ? "bfloat16" : "float32"},
          {"use_qk_norm", o.use_qk_norm},
          {"vocab_size", o.vocabulary}};
}

TinyTensors MakeTinyTensors(const TinyModelOptions& o) {
  Weights weights(o.seed, o.dtype);
  weights.Draw("model.embed_tokens.weight", {o.vocabulary, o.hidden_size}, 1.0f);
  for (int32_t layer = 0; layer < o.layers; ++layer) DrawLayer(weights, o, layer);
  weights.Norm("model.norm", o.hidden_size);
  if (!o.tie_word_embeddings) weights.Linear("lm_head", o.vocabulary, o.hidden_size);
  for (int32_t i = 0; i < o.mtp_layers; ++i) {
    const int32_t layer = o.layers + i;
    const std::string name = "model.layers." + std::to_string(layer) + ".";
    DrawLayer(weights, o, layer);
    weights.Norm(name + "enorm", o.hidden_size);
    weights.Norm(name + "hnorm", o.hidden_size);
    weights.Linear(name + "eh_proj", o.hidden_size, int64_t{2} * o.hidden_size);
    weights.Draw(name + "embed_tokens.weight", {o.vocabulary, o.hidden_size}, 1.0f);
    weights.Norm(name + "shared_head.norm", o.hidden_size);
    weights.Linear(name + "shared_head.head", o.vocabulary, o.hidden_size);
  }
  return weights.Take();
}

std::string SafetensorsBytes(const TinyTensors& tensors) {
  json header = json::object();
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    const size_t begin = data.size();
    data += Encode(tensor);
    header[name] = {{"dtype", Name(tensor.dtype)},
                    {"shape", tensor.shape},
                    {"data_offsets", json::array({begin, data.size()})}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string length(8, '\0');
  for (int i = 0; i < 8; ++i) length[i] = static_cast<char>(text.size() >> (8 * i));
  return length + text + data;
}

void WriteFile(const std::string& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  CHECK(file.good()) << "cannot write " << path;
}

void WriteTinyModel(const std::string& folder, const TinyModelOptions& options) {
  CHECK(!options.tokenizer || options.vocabulary >= kTinyTokens)
      << "a vocabulary of " << options.vocabulary << " for " << kTinyTokens << " tokens";
  std::filesystem::create_directories(folder);
  WriteFile(folder + "/config.json", TinyConfig(options).dump(2));
  const json generation = {{"eos_token_id", EosIds(options)}, {"temperature", 1.0}};
  WriteFile(folder + "/generation_config.json", generation.dump(2));
  if (options.tokenizer) WriteFile(folder + "/tokenizer.json", Tokenizer().dump());
  const TinyTensors tensors = MakeTinyTensors(options);
  if (options.shards > 1) {
    WriteShards(folder, tensors, options.shards);
  } else {
    WriteFile(folder + "/model.safetensors", SafetensorsBytes(tensors));
  }
}

}  // namespace glm::test
