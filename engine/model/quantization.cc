#include "engine/model/quantization.h"

#include <initializer_list>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace glm::engine {
namespace {

using nlohmann::json;

std::string Show(const json& value) {
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (text.size() > 80) text = text.substr(0, 77) + "...";
  return text;
}

/// An object whose keys must each be asked for, with one of the accepted values. The first fault
/// is kept.
class Keys {
 public:
  Keys(const json& object, std::string what, absl::Status* status)
      : object_(object), what_(std::move(what)), status_(status) {
    if (!object.is_object()) Fail("it", object, "an object");
  }

  /// The value, or null when the key is absent or null.
  const json* Find(const std::string& key) {
    known_.insert(key);
    if (!object_.is_object()) return nullptr;
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  /// An absent key is fine.
  void OneOf(const std::string& key, std::initializer_list<json> accepted) {
    const json* value = Find(key);
    if (value == nullptr) return;
    std::string list;
    for (const json& choice : accepted) {
      if (*value == choice) return;
      absl::StrAppend(&list, list.empty() ? "" : ", ", Show(choice));
    }
    Fail(key, *value, list);
  }
  std::string Text(const std::string& key) {
    const json* value = Find(key);
    if (value == nullptr) return "";
    if (value->is_string()) return value->get<std::string>();
    Fail(key, *value, "a string");
    return "";
  }
  void Names(const std::string& key) {
    const json* value = Find(key);
    if (value == nullptr) return;
    bool names = value->is_array();
    if (names) {
      for (const json& entry : *value) names = names && entry.is_string();
    }
    if (!names) Fail(key, *value, "a list of names");
  }
  void Any(std::initializer_list<const char*> keys) {
    for (const char* key : keys) known_.insert(key);
  }
  void RefuseUnknown() {
    if (!object_.is_object()) return;
    for (const auto& [key, value] : object_.items()) {
      if (known_.count(key) == 0 && !value.is_null()) {
        Fail(absl::Utf8SafeCEscape(key), value, "no such key (it could change the mathematics)");
      }
    }
  }
  void Fail(const std::string& key, const json& value, const std::string& accepted) {
    status_->Update(absl::InvalidArgumentError(
        absl::StrCat(what_, ".", key, " is ", Show(value), "; accepted: ", accepted)));
  }

  const std::string& what() const { return what_; }

 private:
  const json& object_;
  const std::string what_;
  absl::Status* status_;
  std::set<std::string> known_;
};

const json kBlock128 = json::array({128, 128});

/// What all tensors of a compressed-tensors scheme have in common here.
void CheckFloat8(Keys& keys) {
  keys.OneOf("num_bits", {8});
  keys.OneOf("type", {"float"});
  keys.OneOf("symmetric", {true});
  keys.Any({"observer", "observer_kwargs"});
}

WeightScaling ReadWeights(const json& value, const std::string& what, absl::Status* status) {
  Keys keys(value, what, status);
  CheckFloat8(keys);
  keys.OneOf("dynamic", {false});
  const std::string strategy = keys.Text("strategy");
  WeightScaling scaling = WeightScaling::kChannel;
  if (strategy == "block") {
    scaling = WeightScaling::kBlock;
    keys.OneOf("block_structure", {kBlock128, "128x128"});
  } else if (strategy != "channel") {
    keys.Fail("strategy", strategy, "\"channel\", \"block\"");
  }
  keys.RefuseUnknown();
  return scaling;
}

void CheckActivations(const json& value, WeightScaling weights, const std::string& what,
                      absl::Status* status) {
  Keys keys(value, what, status);
  CheckFloat8(keys);
  keys.OneOf("dynamic", {true});
  if (keys.Find("dynamic") == nullptr) keys.Fail("dynamic", nullptr, "true");
  if (weights == WeightScaling::kChannel) {
    keys.OneOf("strategy", {"token"});
  } else {
    keys.OneOf("strategy", {"group"});
    keys.OneOf("group_size", {128});
  }
  keys.RefuseUnknown();
}

WeightScaling ReadGroup(const json& value, const std::string& what, absl::Status* status) {
  Keys keys(value, what, status);
  keys.Names("targets");
  keys.OneOf("format", {"float-quantized"});
  const json* weights = keys.Find("weights");
  const json* activations = keys.Find("input_activations");
  WeightScaling scaling = WeightScaling::kNone;
  if (weights == nullptr) {
    keys.Fail("weights", nullptr, "an object");
  } else {
    scaling = ReadWeights(*weights, what + ".weights", status);
  }
  if (activations == nullptr) {
    keys.Fail("input_activations", nullptr, "an object: weights alone in FP8 are not supported");
  } else {
    CheckActivations(*activations, scaling, what + ".input_activations", status);
  }
  keys.RefuseUnknown();  // output_activations among them
  return scaling;
}

Quantization ReadCompressedTensors(Keys& keys, absl::Status* status) {
  Quantization quantization;
  keys.OneOf("format", {"float-quantized"});
  keys.Any({"quantization_status", "global_compression_ratio", "version"});
  keys.Names("ignore");
  keys.OneOf("sparsity_config", {json::object()});
  keys.OneOf("transform_config", {json::object()});
  if (const json* scheme = keys.Find("kv_cache_scheme"); scheme != nullptr) {
    Keys cache(*scheme, keys.what() + ".kv_cache_scheme", status);
    CheckFloat8(cache);
    cache.OneOf("strategy", {"tensor"});
    cache.OneOf("dynamic", {false});
    cache.RefuseUnknown();
    quantization.cache_scales = true;
  }
  const json* groups = keys.Find("config_groups");
  if (groups == nullptr || !groups->is_object() || groups->empty()) {
    keys.Fail("config_groups", groups == nullptr ? json() : *groups, "an object with groups");
    return quantization;
  }
  for (const auto& [name, group] : groups->items()) {
    const std::string what =
        absl::StrCat(keys.what(), ".config_groups.", absl::Utf8SafeCEscape(name));
    const WeightScaling scaling = ReadGroup(group, what, status);
    if (quantization.weights != WeightScaling::kNone && scaling != quantization.weights) {
      keys.Fail("config_groups", *groups, "groups of one weight strategy");
    }
    quantization.weights = scaling;
  }
  return quantization;
}

Quantization ReadFp8(Keys& keys) {
  keys.OneOf("activation_scheme", {"dynamic"});
  keys.OneOf("fmt", {"e4m3"});
  keys.OneOf("scale_fmt", {"float"});
  keys.Names("modules_to_not_convert");
  keys.Names("ignored_layers");
  if (keys.Find("weight_block_size") == nullptr) {
    keys.Fail("weight_block_size", nullptr, "[128,128]");
  }
  keys.OneOf("weight_block_size", {kBlock128});
  return {.weights = WeightScaling::kBlock};
}

}  // namespace

absl::StatusOr<Quantization> ParseQuantization(const json& value, const std::string& what) {
  absl::Status status;
  Keys keys(value, what + ": quantization_config", &status);
  if (!status.ok()) return status;
  Quantization quantization;
  const std::string method = keys.Text("quant_method");
  if (method == "compressed-tensors") {
    quantization = ReadCompressedTensors(keys, &status);
  } else if (method == "fp8") {
    quantization = ReadFp8(keys);
  } else {
    keys.Fail("quant_method", method, "\"compressed-tensors\", \"fp8\"");
  }
  keys.RefuseUnknown();
  if (!status.ok()) return status;
  return quantization;
}

}  // namespace glm::engine
