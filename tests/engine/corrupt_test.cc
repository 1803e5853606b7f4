// Corrupt checkpoints, one fault each: every one ends in an error that names what is wrong, within
// a second, and never in a crash.
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "engine/model/glm.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_model.h"

namespace glm::engine {
namespace {

using nlohmann::json;
using test::MakeTinyTensors;
using test::SafetensorsBytes;
using test::TempFolder;
using test::TinyFloat8;
using test::TinyModelOptions;
using test::TinyTensors;
using test::WriteFile;
using test::WriteTinyModel;
using testing::HasSubstr;

const TinyModelOptions kFloat8{
    .dtype = DType::kBF16, .layers = 2, .experts = 4, .float8 = TinyFloat8::kChannel};
const TinyModelOptions kShards{.dtype = DType::kBF16, .layers = 2, .experts = 4, .shards = 3};

// A checkpoint folder that a case breaks.
class Folder {
 public:
  explicit Folder(const TinyModelOptions& options) : options_(options) {
    WriteTinyModel(path(), options);
  }
  const std::string& path() const { return folder_.path(); }

  std::string Text(const std::string& name) const {
    std::ifstream file(path() + "/" + name, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  }
  void Write(const std::string& name, const std::string& text) const {
    WriteFile(path() + "/" + name, text);
  }
  // Changes the tensors before they are written.
  void Tensors(const std::function<void(TinyTensors&)>& change) const {
    TinyTensors tensors = MakeTinyTensors(options_);
    change(tensors);
    Write("model.safetensors", SafetensorsBytes(tensors));
  }
  // Changes the header of model.safetensors; data and length follow.
  void Header(const std::function<void(json&)>& change) const {
    const std::string file = Text("model.safetensors");
    uint64_t length = 0;
    std::memcpy(&length, file.data(), 8);
    json header = json::parse(file.substr(8, length));
    change(header);
    RawHeader(header.dump(), file.substr(8 + length));
  }
  void RawHeader(const std::string& header, const std::string& payload) const {
    const uint64_t length = header.size();
    std::string file(8, '\0');
    std::memcpy(file.data(), &length, 8);
    Write("model.safetensors", file + header + payload);
  }
  void Length(uint64_t length) const {
    std::string file = Text("model.safetensors");
    std::memcpy(file.data(), &length, 8);
    Write("model.safetensors", file);
  }
  void Config(const std::function<void(json&)>& change) const { Json("config.json", change); }
  void Index(const std::function<void(json&)>& change) const {
    Json("model.safetensors.index.json", change);
  }

 private:
  void Json(const std::string& name, const std::function<void(json&)>& change) const {
    json value = json::parse(Text(name));
    change(value);
    Write(name, value.dump());
  }

  const TinyModelOptions options_;
  TempFolder folder_;
};

struct Corruption {
  std::string name;
  std::string message;  // a part of the error
  std::function<void(const Folder&)> apply;
  const TinyModelOptions* options = &kFloat8;
};

const std::string kQ = "model.layers.0.self_attn.q_proj.weight";
const std::string kScale = kQ + "_scale";

void Truncate(const Folder& folder, size_t bytes) {
  folder.Write("model.safetensors", folder.Text("model.safetensors").substr(0, bytes));
}

std::vector<Corruption> FileCorruptions() {
  return {
      {"EmptyFile", "truncated", [](const Folder& f) { Truncate(f, 0); }},
      {"FourBytes", "truncated: 4 bytes", [](const Folder& f) { Truncate(f, 4); }},
      {"LengthAlone", "truncated: the header ends", [](const Folder& f) { Truncate(f, 8); }},
      {"HalfAHeader", "truncated: the header ends", [](const Folder& f) { Truncate(f, 1000); }},
      {"OneByteShort", "data_offsets are",
       [](const Folder& f) { Truncate(f, f.Text("model.safetensors").size() - 1); }},
      {"OneByteLong", "1 bytes after the last tensor",
       [](const Folder& f) { f.Write("model.safetensors", f.Text("model.safetensors") + "x"); }},
      {"HeaderOfOneGigabyte", "header of 1073741824 bytes",
       [](const Folder& f) { f.Length(1 << 30); }},
      {"HeaderOfAllBytes", "header of 18446744073709551615 bytes",
       [](const Folder& f) { f.Length(UINT64_MAX); }},
      {"HeaderOfNothing", "not valid JSON", [](const Folder& f) { f.Length(0); }},
      {"HeaderOneByteShort", "not valid JSON", [](const Folder& f) { f.RawHeader("{\"a\":", ""); }},
      {"HeaderIsAnArray", "not a JSON object", [](const Folder& f) { f.RawHeader("[]", ""); }},
      {"HeaderIsBinary", "not valid JSON",
       [](const Folder& f) { f.RawHeader(std::string(64, '\xFF'), ""); }},
      {"HeaderIsDeep", "nested deeper",
       [](const Folder& f) { f.RawHeader(std::string(100000, '['), ""); }},
      {"TensorTwice", "given twice",
       [](const Folder& f) {
         const std::string entry = R"("a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
         f.RawHeader("{" + entry + "," + entry + "}", "");
       }},
      {"NoFile", "model.safetensors: No such file",
       [](const Folder& f) { std::filesystem::remove(f.path() + "/model.safetensors"); }},
      {"AFolderInItsPlace", "not a regular file",
       [](const Folder& f) {
         std::filesystem::remove(f.path() + "/model.safetensors");
         std::filesystem::create_directory(f.path() + "/model.safetensors");
       }},
  };
}

// Faults of one entry of the header.
Corruption Entry(const std::string& name, const std::string& message,
                 const std::function<void(json&)>& change) {
  return {name, message,
          [change](const Folder& f) { f.Header([&](json& header) { change(header[kQ]); }); }};
}

std::vector<Corruption> HeaderCorruptions() {
  return {
      Entry("EntryIsANumber", "not an object", [](json& e) { e = 5; }),
      Entry("NoDType", "dtype is not there", [](json& e) { e.erase("dtype"); }),
      Entry("UnknownDType", "dtype is F4", [](json& e) { e["dtype"] = "F4"; }),
      Entry("NegativeShape", "shape is not a list", [](json& e) { e["shape"][0] = -64; }),
      Entry("FractionalShape", "shape is not a list", [](json& e) { e["shape"][0] = 1.5; }),
      Entry("HugeShape", "more than 2^63",
            [](json& e) {
              e["shape"] = {1ull << 40, 1ull << 40};
            }),
      Entry("ShapeOfManyDimensions", "at most 8",
            [](json& e) { e["shape"] = std::vector<int>(9, 1); }),
      Entry("ShapeIsText", "shape is not a list", [](json& e) { e["shape"] = "big"; }),
      Entry("NoOffsets", "data_offsets is not a pair", [](json& e) { e.erase("data_offsets"); }),
      Entry("OffsetsBackwards", "data_offsets are",
            [](json& e) { std::swap(e["data_offsets"][0], e["data_offsets"][1]); }),
      Entry("OffsetsPastTheEnd", "data_offsets are",
            [](json& e) { e["data_offsets"][1] = 1ull << 50; }),
      Entry("OffsetsOfAnotherSize", "data_offsets span",
            [](json& e) { e["data_offsets"][1] = e["data_offsets"][1].get<int64_t>() - 1; }),
      Entry("Overlap", "overlap",
            [](json& e) {
              const int64_t size =
                  e["data_offsets"][1].get<int64_t>() - e["data_offsets"][0].get<int64_t>();
              e["data_offsets"] = {0, size};
            }),
      Entry("UnknownKey", "unknown key \"strides\"",
            [](json& e) {
              e["strides"] = {1, 1};
            }),
      {"Hole", "a hole of",
       [](const Folder& f) { f.Header([](json& header) { header.erase(kQ); }); }},
      {"ShapeTurned", "tensor " + kQ + " has shape [32, 64]; expected: [64, 32]",
       [](const Folder& f) {
         f.Header([](json& header) { std::swap(header[kQ]["shape"][0], header[kQ]["shape"][1]); });
       }},
  };
}

std::vector<Corruption> TensorCorruptions() {
  const auto tensors = [](const std::string& name, const std::string& message,
                          const std::function<void(TinyTensors&)>& change) {
    return Corruption{name, message, [change](const Folder& f) { f.Tensors(change); }};
  };
  return {
      tensors("MissingTensor", "tensor model.norm.weight is missing",
              [](TinyTensors& t) { t.erase("model.norm.weight"); }),
      tensors("MissingScale", "q_proj.weight", [](TinyTensors& t) { t.erase(kScale); }),
      tensors("MissingValuesOfAScale", "tensor " + kQ + " is missing",
              [](TinyTensors& t) { t.erase(kQ); }),
      tensors("ExtraTensor", "tensor surprise [2] has no place",
              [](TinyTensors& t) {
                t["surprise"] = {DType::kF32, {2}, {1, 2}};
              }),
      tensors("ScaleOfNothing", "lm_head.weight_scale [128, 1] has no place",
              [](TinyTensors& t) {
                t["lm_head.weight_scale"] = {DType::kF32, {128, 1}, std::vector<float>(128, 1.0f)};
              }),
      tensors("NanScale", "tensor " + kScale + ", row 3",
              [](TinyTensors& t) { t[kScale].values[3] = std::nanf(""); }),
      tensors("InfiniteScale", "tensor " + kScale + ", row 0",
              [](TinyTensors& t) { t[kScale].values[0] = INFINITY; }),
      tensors("NegativeScale", "tensor " + kScale + ", row 63",
              [](TinyTensors& t) { t[kScale].values[63] = -0.5f; }),
      tensors("ScaleOfAnotherShape", "tensor " + kScale + " has shape [32, 2]",
              [](TinyTensors& t) {
                t[kScale].shape = {32, 2};
              }),
      tensors("ScalesAreIntegers", "tensor " + kScale + " is I32",
              [](TinyTensors& t) { t[kScale].dtype = DType::kI32; }),
      tensors("ValuesAreIntegers", "is I32",
              [](TinyTensors& t) { t["model.norm.weight"].dtype = DType::kI32; }),
      tensors("EmbeddingInFloat8", "tensor model.embed_tokens.weight is F8_E4M3",
              [](TinyTensors& t) { t["model.embed_tokens.weight"].dtype = DType::kF8E4M3; }),
      tensors("ValuesInFloat8WithoutAScheme", "tensor lm_head.weight is F8_E4M3",
              [](TinyTensors& t) { t["lm_head.weight"].dtype = DType::kF8E4M3; }),
      tensors("VectorAsMatrix", "tensor model.norm.weight has shape [1, 32]",
              [](TinyTensors& t) {
                t["model.norm.weight"].shape = {1, 32};
              }),
      tensors("MixedExperts", "is not quantised",
              [](TinyTensors& t) {
                const std::string name = "model.layers.1.mlp.experts.2.up_proj.weight";
                t.erase(name + "_scale");
                t[name].dtype = DType::kBF16;
              }),
      tensors("CacheScaleIsZero", "k_scale",
              [](TinyTensors& t) {
                t["model.layers.0.self_attn.k_scale"] = {DType::kF32, {1}, {0.0f}};
              }),
      tensors("CacheScaleIsAVector", "v_scale",
              [](TinyTensors& t) {
                t["model.layers.0.self_attn.v_scale"] = {DType::kF32, {2}, {1.0f, 1.0f}};
              }),
  };
}

std::vector<Corruption> FolderCorruptions() {
  const auto index = [](const std::string& name, const std::string& message,
                        const std::function<void(json&)>& change) {
    return Corruption{name, message, [change](const Folder& f) { f.Index(change); }, &kShards};
  };
  const auto config = [](const std::string& name, const std::string& message,
                         const std::function<void(json&)>& change) {
    return Corruption{name, message, [change](const Folder& f) { f.Config(change); }};
  };
  return {
      {"AbsentShard", "model-2.safetensors: No such file",
       [](const Folder& f) { std::filesystem::remove(f.path() + "/model-2.safetensors"); },
       &kShards},
      {"IndexIsNotJson", "not valid JSON",
       [](const Folder& f) { f.Write("model.safetensors.index.json", "weights"); }, &kShards},
      index("IndexWithoutMap", "weight_map is not there", [](json& i) { i.erase("weight_map"); }),
      index("IndexLeadsOutside", "accepted: the name of a .safetensors file in the same folder",
            [](json& i) { i["weight_map"]["lm_head.weight"] = "../model-1.safetensors"; }),
      index("IndexNamesAnAbsolutePath", "\"/etc/passwd\"",
            [](json& i) { i["weight_map"]["lm_head.weight"] = "/etc/passwd"; }),
      index("IndexNamesANumber", "is not a file name",
            [](json& i) { i["weight_map"]["lm_head.weight"] = 3; }),
      index("IndexNamesAnotherShard", "the index says",
            [](json& i) {
              json& entry = i["weight_map"]["lm_head.weight"];
              entry =
                  entry == "model-1.safetensors" ? "model-2.safetensors" : "model-1.safetensors";
            }),
      index("IndexNamesATensorTooMany", "tensor surprise is not in",
            [](json& i) { i["weight_map"]["surprise"] = "model-1.safetensors"; }),
      index("IndexForgetsATensor", "the index says nothing of it",
            [](json& i) { i["weight_map"].erase("lm_head.weight"); }),
      {"NoConfig", "config.json: No such file",
       [](const Folder& f) { std::filesystem::remove(f.path() + "/config.json"); }},
      {"ConfigIsCut", "config.json: not valid JSON",
       [](const Folder& f) { f.Write("config.json", f.Text("config.json").substr(0, 100)); }},
      config("ConfigOfAnotherWidth", "has shape", [](json& c) { c["hidden_size"] = 64; }),
      config("ConfigOfMoreLayers", "tensor model.layers.2.",
             [](json& c) { c["num_hidden_layers"] = 3; }),
      config("ConfigOfFewerExperts", "mlp.gate.weight has shape",
             [](json& c) { c["n_routed_experts"] = 3; }),
      config("ConfigOfNegativeWidth", "hidden_size is -1", [](json& c) { c["hidden_size"] = -1; }),
      config("ConfigOfAnUnknownScheme", "quantization_config.quant_method is \"gptq\"",
             [](json& c) { c["quantization_config"]["quant_method"] = "gptq"; }),
      config("ConfigWithoutTheScheme", "q_proj.weight is F8_E4M3",
             [](json& c) { c.erase("quantization_config"); }),
      config("ConfigSpeaksOfCacheScales", "k_scale is missing",
             [](json& c) {
               c["quantization_config"]["kv_cache_scheme"] = {{"num_bits", 8}, {"type", "float"}};
             }),
      {"GenerationConfigIsAList", "generation_config.json: not a JSON object",
       [](const Folder& f) { f.Write("generation_config.json", "[1]"); }},
      {"TokenizerIsCut", "tokenizer.json: not valid JSON",
       [](const Folder& f) { f.Write("tokenizer.json", "{\"model\": {"); }},
  };
}

std::vector<Corruption> AllCorruptions() {
  std::vector<Corruption> all;
  for (const auto& part :
       {FileCorruptions(), HeaderCorruptions(), TensorCorruptions(), FolderCorruptions()}) {
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

absl::Status Load(const std::string& folder) {
  const auto config = ModelConfig::Read(folder);
  if (!config.ok()) return config.status();
  const StepLimits limits =
      Glm::CompleteLimits(*config, {.tokens_max = 8, .sequences_max = 1, .logit_rows_max = 8});
  const auto device = CreateCpuDevice(1);
  device->PlanScratch(limits);
  return Glm::Load(*device, *config, folder, DType::kBF16, limits).status();
}

TEST(CorruptTest, WholeCheckpointsLoad) {
  for (const TinyModelOptions* options : {&kFloat8, &kShards}) {
    const Folder folder(*options);
    EXPECT_TRUE(Load(folder.path()).ok()) << Load(folder.path());
  }
}

TEST(CorruptTest, ThereAreManyCases) { EXPECT_GE(AllCorruptions().size(), 60u); }

class CorruptionTest : public testing::TestWithParam<Corruption> {};

TEST_P(CorruptionTest, IsNamed) {
  const Folder folder(*GetParam().options);
  GetParam().apply(folder);
  const auto start = std::chrono::steady_clock::now();
  const absl::Status status = Load(folder.path());
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(status.message(), HasSubstr(GetParam().message));
  EXPECT_THAT(status.message(), HasSubstr(folder.path()));
  EXPECT_LT(seconds.count(), 1.0);
}

INSTANTIATE_TEST_SUITE_P(Cases, CorruptionTest, testing::ValuesIn(AllCorruptions()),
                         [](const auto& param) { return param.param.name; });

}  // namespace
}  // namespace glm::engine
