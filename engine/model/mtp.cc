#include "engine/model/mtp.h"

#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/model/fill.h"
#include "engine/model/linear.h"
#include "proto/base/log.h"

namespace glm::engine {
namespace {

std::string PrefixOf(const ModelConfig& config) {
  return absl::StrCat("model.layers.", config.layers, ".");
}

/// Whether tensor `name` of the draft layer is not there, or a copy of the model's `model_name`.
bool IsTheModels(const StoredTensors& stored, const std::string& name,
                 const std::string& model_name) {
  const auto own = stored.find(name);
  if (own == stored.end()) return true;
  const auto model = stored.find(model_name);
  return model != stored.end() && own->second.dtype == model->second.dtype &&
         own->second.shape == model->second.shape &&
         std::memcmp(own->second.data, model->second.data,
                     static_cast<size_t>(own->second.bytes)) == 0;
}

/// Whether the draft layer's FP8 head is the model's head, rounded.
bool IsRoundedCopy(const StoredTensors& stored, const LinearPart& head, const StoredScales& scales,
                   const std::string& model_name) {
  const StoredTensor& own = stored.at(head.name + ".weight");
  const auto found = stored.find(model_name);
  const auto scale = stored.find(scales.name);
  if (found == stored.end() || found->second.shape != own.shape || own.shape.size() != 2 ||
      own.dtype != DType::kF8E4M3 || scale->second.shape != scales.shape ||
      ByteSize(found->second.dtype) == 1 || ByteSize(scale->second.dtype) == 1) {
    return false;  // the checks of the plan say what is wrong
  }
  const Dequantizer dequantizer(own, scale->second, scales);
  const int64_t columns = own.shape[1];
  std::vector<float> rounded(columns), exact(columns);
  for (int64_t row = 0; row < own.shape[0]; ++row) {
    dequantizer.Row(row, 0, columns, rounded.data());
    WidenRow(found->second, row, exact.data());
    float scale = 0;
    for (int64_t i = 0; i < columns; ++i) {
      if (i % kScaleBlock == 0) scale = dequantizer.Scale(row, i);
      // Half a step of 3 bits of mantissa, or of the smallest numbers; and the rounding of the
      // scale itself.
      const float step = std::abs(rounded[i]) * (1.05f / 16) + scale * (1.05f / 1024);
      if (!(std::abs(rounded[i] - exact[i]) <= step)) return false;
    }
  }
  return true;
}

}  // namespace

bool HasMtp(const ModelConfig& config, const StoredTensors& stored) {
  const std::string prefix = PrefixOf(config);
  const auto first = stored.lower_bound(prefix);
  return config.mtp_layers > 0 && first != stored.end() && absl::StartsWith(first->first, prefix);
}

void PlanMtp(const ModelConfig& config, DType dtype, WeightPlan* plan, MtpWeights* weights) {
  const StoredTensors* stored = plan->terms().stored;
  const std::string prefix = PrefixOf(config);
  const int64_t hidden = config.hidden_size;
  const Tensor norm(nullptr, dtype, {hidden});
  const auto add_table = [&](Tensor* target, const std::string& name,
                             const std::string& model_name) {
    if (stored != nullptr && IsTheModels(*stored, name, model_name)) {
      plan->Take(name);
      LOG(INFO) << "MTP uses " << model_name;
    } else {
      plan->AddRows(target, dtype, name, config.vocabulary, hidden);
    }
  };
  const std::string embedding = "model.embed_tokens.weight";
  const std::string head = prefix + "shared_head.head.weight";
  add_table(&weights->embedding, prefix + "embed_tokens.weight", embedding);
  plan->AddWhole(&weights->embedding_norm, norm, prefix + "enorm.weight");
  plan->AddWhole(&weights->hidden_norm, norm, prefix + "hnorm.weight");
  plan->AddWhole(&weights->projection.values, Tensor(nullptr, dtype, {hidden, 2 * hidden}),
                 prefix + "eh_proj.weight");
  PlanLayer(config, dtype, prefix, /*dense=*/false, plan, &weights->layer);
  plan->AddWhole(&weights->norm, norm, prefix + "shared_head.norm.weight");
  const LinearPart head_part{prefix + "shared_head.head", config.vocabulary};
  const StoredScales scales = FindScales(plan->terms(), head_part, hidden);
  const std::string model_head = config.tie_word_embeddings ? embedding : "lm_head.weight";
  if (scales.name.empty() || (stored != nullptr && stored->count(head) == 0)) {
    add_table(&weights->head.values, head, model_head);
  } else if (stored == nullptr || IsRoundedCopy(*stored, head_part, scales, model_head)) {
    plan->Take(head);
    plan->Take(scales.name);
    LOG(INFO) << "MTP uses " << model_head << ", of which " << head << " is a copy in FP8";
  } else {
    const Range share = plan->terms().slice.Of(config.vocabulary);
    FillWide(head_part, hidden, share,
             plan->Add(&weights->head.values, Tensor(nullptr, dtype, {share.count, hidden})), plan);
  }
}

void UseModelWeights(const Tensor& embedding, const Weight& head, MtpWeights* weights) {
  if (weights->embedding.empty()) weights->embedding = embedding;
  if (weights->head.values.empty()) weights->head = head;
}

Mtp::Mtp(Device& device, const ModelConfig& config, const Layers& layers, DType dtype,
         const StepLimits& limits, const MtpWeights& weights)
    : device_(device),
      config_(config),
      layers_(layers),
      weights_(weights),
      embedded_(device.NewTensor(dtype, {limits.tokens_max, config.hidden_size})),
      joined_(device.NewTensor(dtype, {limits.tokens_max, 2 * int64_t{config.hidden_size}})) {}

int64_t Mtp::BufferBytes(const ModelConfig& config, DType dtype, const StepLimits& limits) {
  return 3 * limits.tokens_max * config.hidden_size * ByteSize(dtype);
}

void Mtp::Forward(const BatchView& batch, const Tensor& hidden, const KvLayer& cache,
                  const Tensor& logits, const Trace& trace) const {
  const OpTable& ops = device_.ops();
  const int64_t tokens = hidden.shape[0];
  const int64_t width = config_.hidden_size;
  const Tensor embedded = embedded_.Rows(0, tokens);
  const Tensor joined = joined_.Rows(0, tokens);
  const auto norm_into = [&](const Tensor& in, const Tensor& weight, int64_t column) {
    ops.add_rms_norm(device_, {.batch = batch,
                               .delta = in,
                               .residual = {},
                               .weight = weight,
                               .epsilon = static_cast<float>(config_.rms_norm_eps),
                               .out = joined.Columns(column, width),
                               .quantized = {}});
  };
  layers_.Embed(batch, weights_.embedding, embedded);
  norm_into(embedded, weights_.embedding_norm, 0);
  norm_into(hidden, weights_.hidden_norm, width);
  const Tensor residual = layers_.Begin(tokens);
  ops.linear(device_, {.batch = batch,
                       .in = {joined, {}},
                       .weight = weights_.projection,
                       .bias = {},
                       .out = residual});
  const TraceScope scope(trace, "layers.", config_.layers);
  scope("projection", residual);
  layers_.Run(batch, weights_.layer, cache, /*first=*/true, scope);
  layers_.End(batch, weights_.norm, embedded, scope.on());
  scope("norm", embedded);
  if (logits.shape[0] == 0) return;
  layers_.Head(batch, embedded, weights_.head, logits);
  scope("logits", logits);
}

}  // namespace glm::engine
