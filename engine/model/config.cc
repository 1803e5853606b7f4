#include "engine/model/config.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <optional>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/model/json_file.h"
#include "proto/base/log.h"

namespace glm::engine {
namespace {

using nlohmann::json;

constexpr int64_t kConfigBytesMax = 4 << 20;
constexpr int64_t kTokenizerBytesMax = 256 << 20;
constexpr int32_t kEosIdsMax = 64;

// Keys that describe the checkpoint, or matter in training only.
constexpr absl::string_view kDescriptiveKeys[] = {"_name_or_path",
                                                  "attention_dropout",
                                                  "bos_token_id",
                                                  "id2label",
                                                  "initializer_range",
                                                  "label2id",
                                                  "output_attentions",
                                                  "output_hidden_states",
                                                  "output_router_logits",
                                                  "pad_token_id",
                                                  "problem_type",
                                                  "return_dict",
                                                  "router_aux_loss_coef",
                                                  "transformers_version",
                                                  "use_cache",
                                                  "chunk_size_feed_forward"};

std::string Show(const json& value) {
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (text.size() > 80) text = text.substr(0, 77) + "...";
  return text;
}

// The values of a JSON object by key, each checked against what is accepted. The first fault is
// kept, later calls then return anything. Keys that were asked for are known.
class Fields {
 public:
  Fields(const json& object, std::string what) : object_(object), what_(std::move(what)) {}

  /// The value, or null when the key is absent or null.
  const json* Find(const std::string& key) {
    known_.insert(key);
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }

  int32_t Integer(const std::string& key, int32_t min, int32_t max,
                  std::optional<int32_t> absent = std::nullopt) {
    const json* value = Find(key);
    if (value == nullptr) return absent.has_value() ? *absent : Missing<int32_t>(key);
    const std::string accepted = absl::StrCat("an integer from ", min, " to ", max);
    if (!value->is_number_integer()) return Refuse<int32_t>(key, *value, accepted);
    // An unsigned value past int64 would come out negative.
    const bool huge =
        value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
    const int64_t number = huge ? INT64_MAX : value->get<int64_t>();
    if (number < min || number > max) return Refuse<int32_t>(key, *value, accepted);
    return static_cast<int32_t>(number);
  }

  double Number(const std::string& key, double min, double max,
                std::optional<double> absent = std::nullopt) {
    const json* value = Find(key);
    if (value == nullptr) return absent.has_value() ? *absent : Missing<double>(key);
    const std::string accepted = absl::StrCat("a number from ", min, " to ", max);
    if (!value->is_number()) return Refuse<double>(key, *value, accepted);
    const double number = value->get<double>();
    if (!(number >= min && number <= max)) return Refuse<double>(key, *value, accepted);
    return number;
  }

  bool Flag(const std::string& key, bool absent) {
    const json* value = Find(key);
    if (value == nullptr) return absent;
    if (!value->is_boolean()) return Refuse<bool>(key, *value, "true, false");
    return value->get<bool>();
  }

  std::string Text(const std::string& key, std::string absent) {
    const json* value = Find(key);
    if (value == nullptr) return absent;
    if (!value->is_string()) return Refuse<std::string>(key, *value, "a string");
    return value->get<std::string>();
  }

  /// The only value of `key` that is implemented; an absent key means it.
  void Only(const std::string& key, const json& accepted) {
    const json* value = Find(key);
    if (value != nullptr && *value != accepted) Fail(key, *value, Show(accepted));
  }

  void Fail(const std::string& key, const json& value, const std::string& accepted) {
    if (!status_.ok()) return;
    status_ = absl::InvalidArgumentError(
        absl::StrCat(what_, ": ", key, " is ", Show(value), "; accepted: ", accepted));
  }

  /// Refuses keys that nothing asked for.
  void RefuseUnknown() {
    for (const auto& [key, value] : object_.items()) {
      if (known_.count(key) == 0) {
        Fail(absl::Utf8SafeCEscape(key), value, "no such key (it could change the mathematics)");
      }
    }
  }

  const absl::Status& status() const { return status_; }
  const std::string& what() const { return what_; }
  void Keep(absl::Status status) { status_.Update(std::move(status)); }

 private:
  template <typename T>
  T Refuse(const std::string& key, const json& value, const std::string& accepted) {
    Fail(key, value, accepted);
    return T();
  }
  template <typename T>
  T Missing(const std::string& key) {
    Keep(absl::InvalidArgumentError(absl::StrCat(what_, ": ", key, " is missing")));
    return T();
  }

  const json& object_;
  std::string what_;
  std::set<std::string> known_;
  absl::Status status_;
};

// What is refused as a whole, before any other key is looked at.
void ReadKind(Fields& fields, ModelConfig* config) {
  config->model_type = fields.Text("model_type", "");
  const bool lite = config->model_type == "glm4_moe_lite";
  if (config->model_type != "glm4_moe" && !lite) {
    fields.Fail("model_type", config->model_type, "\"glm4_moe\", \"glm4_moe_lite\"");
  }
  if (const json* value = fields.Find("architectures"); value != nullptr) {
    const json accepted = json::array({lite ? "Glm4MoeLiteForCausalLM" : "Glm4MoeForCausalLM"});
    if (*value != accepted) fields.Fail("architectures", *value, Show(accepted));
  }
  if (const json* value = fields.Find("quantization_config"); value != nullptr) {
    absl::StatusOr<Quantization> quantization = ParseQuantization(*value, fields.what());
    fields.Keep(quantization.status());
    if (quantization.ok()) config->quantization = *quantization;
  }
  fields.Only("hidden_act", "silu");
  fields.Only("scoring_func", "sigmoid");
  fields.Only("topk_method", "noaux_tc");
  fields.Only("n_group", 1);
  fields.Only("topk_group", 1);
  fields.Only("is_encoder_decoder", false);
  fields.Only("mlp_bias", false);
  fields.Only("rope_interleave", lite);
  fields.Only("pretraining_tp", 1);
}

// The rotary keys lie at the top, or, as newer writers do it, in rope_parameters. Returns the part
// of a head that is rotated, `factor_absent` where no key says.
double ReadRope(Fields& fields, double factor_absent, ModelConfig* config) {
  constexpr double kThetaMax = 1e12;
  if (const json* value = fields.Find("rope_scaling"); value != nullptr) {
    fields.Fail("rope_scaling", *value, "null");
  }
  double factor = fields.Number("partial_rotary_factor", 0, 1, 0);
  double theta = fields.Number("rope_theta", 1, kThetaMax, 0);
  const json* nested = fields.Find("rope_parameters");
  if (nested != nullptr && !nested->is_object()) {
    fields.Fail("rope_parameters", *nested, "an object");
  } else if (nested != nullptr) {
    Fields inner(*nested, fields.what() + ": rope_parameters");
    inner.Only("rope_type", "default");
    const double inner_theta = inner.Number("rope_theta", 1, kThetaMax, theta);
    const double inner_factor = inner.Number("partial_rotary_factor", 0, 1, factor);
    inner.RefuseUnknown();
    if (theta != 0 && inner_theta != theta) {
      inner.Fail("rope_theta", inner_theta, absl::StrCat(theta, ", as rope_theta at the top"));
    }
    if (factor != 0 && inner_factor != factor) {
      inner.Fail("partial_rotary_factor", inner_factor,
                 absl::StrCat(factor, ", as partial_rotary_factor at the top"));
    }
    fields.Keep(inner.status());
    theta = inner_theta;
    factor = inner_factor;
  }
  if (theta == 0) {
    fields.Keep(absl::InvalidArgumentError(absl::StrCat(fields.what(), ": rope_theta is missing")));
  }
  config->rope_theta = theta;
  return factor == 0 ? factor_absent : factor;
}

// What the attention ops of every backend can hold.
constexpr int32_t kHeadSizeMax = 512;
constexpr int32_t kKvLatentMax = 768;

// Grouped-query attention.
void ReadGroupedAttention(Fields& fields, ModelConfig* config) {
  const int32_t derived = config->hidden_size / config->query_heads;
  const bool fits = config->hidden_size % config->query_heads == 0 && derived <= kHeadSizeMax;
  // Without the key the heads share the hidden size out among them, if they can.
  config->head_size = fits && fields.Find("head_dim") == nullptr
                          ? derived
                          : fields.Integer("head_dim", 2, kHeadSizeMax);
  config->value_size = config->head_size;
  if (!fields.status().ok()) return;
  constexpr double kFactorAbsent = 0.5;  // the reference's default
  const double factor = ReadRope(fields, kFactorAbsent, config);
  config->rope_size = static_cast<int32_t>(config->head_size * factor);
  if (config->rope_size < 2 || config->rope_size % 2 != 0) {
    fields.Fail("partial_rotary_factor", factor,
                absl::StrCat("one that rotates an even number of the ", config->head_size,
                             " values of a head, at least 2"));
  }
  config->attention_bias = fields.Flag("attention_bias", false);
  config->use_qk_norm = fields.Flag("use_qk_norm", false);
}

// Latent attention. Every published key is asked for: a default would be a guess at the weights.
void ReadLatentAttention(Fields& fields, ModelConfig* config) {
  constexpr int32_t kQueryLatentMax = 1 << 14;
  constexpr int32_t kHalfHeadMax = kHeadSizeMax / 2;
  if (config->kv_heads != config->query_heads) {
    fields.Fail("num_key_value_heads", config->kv_heads,
                absl::StrCat(config->query_heads, ", num_attention_heads"));
  }
  config->query_latent = fields.Integer("q_lora_rank", 1, kQueryLatentMax);
  config->kv_latent = fields.Integer("kv_lora_rank", 1, kKvLatentMax);
  const int32_t plain_size = fields.Integer("qk_nope_head_dim", 1, kHalfHeadMax);
  config->rope_size = fields.Integer("qk_rope_head_dim", 2, kHalfHeadMax);
  config->value_size = fields.Integer("v_head_dim", 1, kHeadSizeMax);
  if (!fields.status().ok()) return;
  if (config->rope_size % 2 != 0) fields.Fail("qk_rope_head_dim", config->rope_size, "even");
  config->head_size = plain_size + config->rope_size;
  // Newer writers add what the others say already.
  fields.Only("qk_head_dim", config->head_size);
  fields.Only("head_dim", config->rope_size);
  fields.Only("attention_bias", false);
  fields.Only("use_qk_norm", false);
  const double factor = ReadRope(fields, 1.0, config);
  if (factor != 1.0) {
    fields.Fail("partial_rotary_factor", factor, "1: qk_rope_head_dim says what is rotated");
  }
}

void ReadAttention(Fields& fields, ModelConfig* config) {
  config->query_heads = fields.Integer("num_attention_heads", 1, 4096);
  config->kv_heads = fields.Integer("num_key_value_heads", 1, 4096, config->query_heads);
  if (!fields.status().ok()) return;
  if (config->query_heads % config->kv_heads != 0) {
    fields.Fail("num_key_value_heads", config->kv_heads,
                absl::StrCat("a divisor of num_attention_heads, ", config->query_heads));
  }
  if (config->model_type == "glm4_moe_lite") {
    ReadLatentAttention(fields, config);
  } else {
    ReadGroupedAttention(fields, config);
  }
}

// Which layers are dense: the first ones, as a number or, as newer writers of glm4_moe_lite do it,
// as a list with a word a layer.
int32_t ReadDenseLayers(Fields& fields, const ModelConfig& config) {
  const int32_t dense_layers = fields.Integer("first_k_dense_replace", 0, config.layers, 1);
  if (config.model_type != "glm4_moe_lite") return dense_layers;
  const json* types = fields.Find("mlp_layer_types");
  if (types == nullptr) return dense_layers;
  const std::string accepted = absl::StrCat("a list of ", config.layers,
                                            " words: \"dense\" layers, then \"sparse\" ones, as "
                                            "many as first_k_dense_replace says, if it is there");
  int32_t dense = 0;
  if (types->is_array()) {
    while (dense < static_cast<int32_t>(types->size()) && (*types)[dense] == "dense") ++dense;
  }
  json expected = json::array();
  for (int32_t i = 0; i < config.layers; ++i) expected.push_back(i < dense ? "dense" : "sparse");
  const bool agree = fields.Find("first_k_dense_replace") == nullptr || dense == dense_layers;
  if (*types != expected || !agree) fields.Fail("mlp_layer_types", *types, accepted);
  return dense;
}

void ReadFfn(Fields& fields, ModelConfig* config) {
  constexpr int32_t kWidthMax = 1 << 20;
  config->dense_layers = ReadDenseLayers(fields, *config);
  config->dense_width = fields.Integer("intermediate_size", 1, kWidthMax);
  config->experts = fields.Integer("n_routed_experts", 1, 4096);
  if (const json* value = fields.Find("num_local_experts"); value != nullptr) {
    if (*value != config->experts) {
      fields.Fail("num_local_experts", *value, absl::StrCat(config->experts, ", n_routed_experts"));
    }
  }
  // More than one would be one wider expert, which the packed layout [E + s, 2M, H] cannot hold.
  config->shared_experts = fields.Integer("n_shared_experts", 0, 1, 1);
  if (!fields.status().ok()) return;
  config->experts_per_token = fields.Integer("num_experts_per_tok", 1, config->experts);
  config->expert_width = fields.Integer("moe_intermediate_size", 1, kWidthMax);
  config->routed_scaling_factor = fields.Number("routed_scaling_factor", 1e-6, 1e6, 1.0);
  config->norm_topk_prob = fields.Flag("norm_topk_prob", true);
}

DType ReadDType(Fields& fields) {
  std::string name;
  for (const char* key : {"torch_dtype", "dtype"}) {
    const std::string given = fields.Text(key, "");
    if (given.empty()) continue;
    if (given != "bfloat16" && given != "float32") {
      fields.Fail(key, given, "\"bfloat16\", \"float32\"");
    }
    if (!name.empty() && given != name) {
      fields.Fail(key, given, absl::StrCat("\"", name, "\", as torch_dtype says"));
    }
    name = given;
  }
  return name == "float32" ? DType::kF32 : DType::kBF16;
}

std::vector<int32_t> ReadEosIds(Fields& fields, int32_t vocabulary) {
  const json* value = fields.Find("eos_token_id");
  if (value == nullptr) return {};
  const json list = value->is_array() ? *value : json::array({*value});
  const std::string accepted = absl::StrCat("an id from 0 to ", vocabulary - 1,
                                            ", or a list of 1 to ", kEosIdsMax, " of them");
  std::vector<int32_t> ids;
  for (const json& entry : list) {
    const bool valid =
        entry.is_number_unsigned() && entry.get<uint64_t>() < static_cast<uint64_t>(vocabulary);
    if (!valid) {
      fields.Fail("eos_token_id", *value, accepted);
      return {};
    }
    ids.push_back(entry.get<int32_t>());
  }
  if (ids.empty() || ids.size() > kEosIdsMax) fields.Fail("eos_token_id", *value, accepted);
  return ids;
}

absl::StatusOr<ModelConfig> ParseConfig(const std::string& text, const std::string& what) {
  absl::StatusOr<json> parsed = ParseJsonObject(text, what);
  if (!parsed.ok()) return parsed.status();
  Fields fields(*parsed, what);
  ModelConfig config;
  ReadKind(fields, &config);
  if (!fields.status().ok()) return fields.status();
  config.hidden_size = fields.Integer("hidden_size", 1, 1 << 17);
  config.layers = fields.Integer("num_hidden_layers", 1, 1024);
  config.vocabulary = fields.Integer("vocab_size", 1, 1 << 24);
  config.positions_max = fields.Integer("max_position_embeddings", 1, 1 << 24);
  config.rms_norm_eps = fields.Number("rms_norm_eps", 1e-12, 1e-1, 1e-5);
  config.tie_word_embeddings = fields.Flag("tie_word_embeddings", false);
  config.mtp_layers = fields.Integer("num_nextn_predict_layers", 0, 8, 0);
  config.mtp_layers = fields.Integer("num_mtp_layers", 0, 8, config.mtp_layers);
  config.dtype = ReadDType(fields);
  if (!fields.status().ok()) return fields.status();
  config.vocabulary_used = config.vocabulary;
  config.eos_ids = ReadEosIds(fields, config.vocabulary);
  ReadAttention(fields, &config);
  if (!fields.status().ok()) return fields.status();
  ReadFfn(fields, &config);
  for (const absl::string_view key : kDescriptiveKeys) fields.Find(std::string(key));
  fields.RefuseUnknown();
  if (!fields.status().ok()) return fields.status();
  return config;
}

bool Exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

// The eos ids of generation_config.json take the place of config.json's.
absl::Status ReadGeneration(const std::string& path, ModelConfig* config) {
  if (!Exists(path)) return absl::OkStatus();
  absl::StatusOr<std::string> text = ReadFile(path, kConfigBytesMax);
  if (!text.ok()) return text.status();
  absl::StatusOr<json> parsed = ParseJsonObject(*text, path);
  if (!parsed.ok()) return parsed.status();
  Fields fields(*parsed, path);
  std::vector<int32_t> ids = ReadEosIds(fields, config->vocabulary);
  if (!ids.empty()) config->eos_ids = std::move(ids);
  return fields.status();
}

// One more than the largest id in tokenizer.json: its vocabulary and its added tokens.
absl::Status ReadVocabularyUsed(const std::string& path, ModelConfig* config) {
  if (!Exists(path)) return absl::OkStatus();
  absl::StatusOr<std::string> text = ReadFile(path, kTokenizerBytesMax);
  if (!text.ok()) return text.status();
  absl::StatusOr<json> parsed = ParseJsonObject(*text, path);
  if (!parsed.ok()) return parsed.status();
  const json::json_pointer vocabulary_key("/model/vocab");
  if (!parsed->contains(vocabulary_key) || !parsed->at(vocabulary_key).is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": model.vocab is not an object"));
  }
  int64_t id_max = -1;
  const auto see = [&](const json& id) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > static_cast<uint64_t>(INT32_MAX)) {
      return false;
    }
    id_max = std::max(id_max, id.get<int64_t>());
    return true;
  };
  for (const auto& [token, id] : parsed->at(vocabulary_key).items()) {
    if (!see(id)) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": model.vocab of \"",
                                                     absl::Utf8SafeCEscape(token), "\" is ",
                                                     Show(id), "; accepted: a token id"));
    }
  }
  if (const auto added = parsed->find("added_tokens"); added != parsed->end()) {
    for (const json& token : *added) {
      if (!token.is_object() || !token.contains("id") || !see(token.at("id"))) {
        return absl::InvalidArgumentError(absl::StrCat(path, ": added_tokens holds ", Show(token),
                                                       "; accepted: objects with a token id"));
      }
    }
  }
  if (id_max < 0 || id_max >= config->vocabulary) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": the largest token id is ", id_max,
                                                   "; accepted: 0 to ", config->vocabulary - 1,
                                                   ", by vocab_size"));
  }
  config->vocabulary_used = static_cast<int32_t>(id_max) + 1;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelConfig> ModelConfig::Parse(const std::string& config_json) {
  return ParseConfig(config_json, "config.json");
}

absl::StatusOr<ModelConfig> ModelConfig::Read(const std::string& folder) {
  const std::string path = folder + "/config.json";
  absl::StatusOr<std::string> text = ReadFile(path, kConfigBytesMax);
  if (!text.ok()) return text.status();
  absl::StatusOr<ModelConfig> config = ParseConfig(*text, path);
  if (!config.ok()) return config;
  absl::Status status = ReadGeneration(folder + "/generation_config.json", &*config);
  status.Update(ReadVocabularyUsed(folder + "/tokenizer.json", &*config));
  if (!status.ok()) return status;
  for (const int32_t id : config->eos_ids) {
    if (id >= config->vocabulary_used) {
      return absl::InvalidArgumentError(absl::StrCat(folder, ": eos_token_id ", id,
                                                     " is not in tokenizer.json, whose ids end at ",
                                                     config->vocabulary_used - 1));
    }
  }
  return config;
}

ModelConfig ModelConfig::OfRank(int32_t size) const {
  CHECK_EQ(ranks, 1) << "a share of a share";
  CHECK(query_heads % size == 0 && (dense_layers == 0 || dense_width % size == 0) &&
        (!has_mixture() || expert_width % size == 0))
      << size << " ranks";
  ModelConfig config = *this;
  config.ranks = size;
  config.query_heads /= size;
  if (!latent_attention()) {
    CHECK_EQ(kv_heads % size, 0);
    config.kv_heads /= size;
  }
  config.dense_width /= size;
  config.expert_width /= size;
  return config;
}

}  // namespace glm::engine
