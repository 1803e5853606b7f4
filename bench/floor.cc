#include "bench/floor.h"

#include <algorithm>
#include <cmath>

namespace glm::bench {
namespace {

using engine::ModelConfig;

/// Adds up operators of a step.
class Floor {
 public:
  Floor(const ModelConfig& config, const FloorTerms& terms, int64_t tokens)
      : config_(config), terms_(terms), tokens_(static_cast<double>(tokens)) {}

  double seconds() const { return seconds_; }

  /// A linear of `weights` elements, of which `read` are read.
  void Linear(double count, double weights, double read) {
    Add(count, read * (terms_.fp8_weights ? 1 : 2), 2 * tokens_ * weights, terms_.fp8_weights);
  }
  void Linear(double count, double weights) { Linear(count, weights, weights); }
  /// A linear that stays in BF16, of `rows` rows.
  void PlainLinear(double count, double weights, double rows) {
    Add(count, 2 * weights, 2 * rows * weights, false);
  }

  /// `cached`: positions read; `pairs`: of a query and a position it sees.
  void Attention(double cached, double pairs, bool absorbed) {
    const double heads = config_.query_heads;
    const double cell = config_.latent_attention() ? config_.cell_size()
                                                   : 2.0 * config_.kv_heads * config_.head_size;
    double flops = 2.0 * heads * (config_.head_size + config_.value_size);
    if (!config_.latent_attention()) flops = 4.0 * heads * config_.head_size;
    if (absorbed && config_.latent_attention()) {
      flops = 2.0 * heads * (2.0 * config_.kv_latent + config_.rope_size);
    }
    Add(config_.layers, (cached + tokens_) * cell * static_cast<double>(terms_.cache_bytes),
        pairs * flops, false);
  }

  void Layers() {
    const double hidden = config_.hidden_size;
    Linear(config_.layers, AttentionWeights());
    Linear(config_.dense_layers, 3 * hidden * config_.dense_width);
    const double mixtures = config_.layers - config_.dense_layers;
    if (mixtures == 0) return;
    const double expert = 3 * hidden * config_.expert_width;
    const double chosen = config_.experts_per_token;
    const double experts = config_.experts;
    const double touched =
        std::clamp(experts * (1 - std::pow(1 - chosen / experts, tokens_)), chosen, experts);
    PlainLinear(mixtures, experts * hidden, tokens_);
    Linear(mixtures, chosen * expert, touched * expert);
    Linear(mixtures, config_.shared_experts * expert);
  }

  void Head(double rows) {
    const double vocabulary = static_cast<double>(config_.vocabulary) / config_.ranks;
    PlainLinear(1, vocabulary * config_.hidden_size, rows);
  }

  /// A sum over the ranks costs at least what the best measured engines on H200 take for a small
  /// one in a graph, and its bytes over the links: each rank gets its share of the rows from the
  /// others, and the others' sums.
  void Exchange() {
    const double ranks = config_.ranks;
    if (!terms_.exchange || config_.ranks == 1) return;
    const double alone = config_.ranks == 2 ? 2.5e-6 : config_.ranks == 4 ? 2.8e-6 : 3.5e-6;
    const double bytes = 2 * (ranks - 1) / ranks * tokens_ * config_.hidden_size * 2;
    seconds_ += 2 * config_.layers * (alone + bytes / (terms_.peaks.link_gbps * 1e9));
  }

 private:
  double AttentionWeights() const {
    const double hidden = config_.hidden_size;
    const double heads = config_.query_heads;
    if (!config_.latent_attention()) {
      return 2 * hidden * (heads + config_.kv_heads) * config_.head_size;
    }
    const double plain = config_.head_size - config_.rope_size;
    return hidden * (config_.query_latent + config_.cell_size()) +
           config_.query_latent * heads * config_.head_size +
           config_.kv_latent * heads * (plain + config_.value_size) +
           heads * config_.value_size * hidden;
  }

  void Add(double count, double bytes, double flops, bool fp8) {
    const double tflops = fp8 ? terms_.peaks.fp8_tflops : terms_.peaks.bf16_tflops;
    seconds_ += count * std::max(bytes / (terms_.peaks.memory_gbps * 1e9), flops / (tflops * 1e12));
  }

  const ModelConfig& config_;
  const FloorTerms& terms_;
  const double tokens_;
  double seconds_ = 0;
};

}  // namespace

Peaks PeaksOf(const std::string& device) {
  if (device.find("H200") != std::string::npos) return {4800, 989, 1979, 450};
  if (device.find("H100") != std::string::npos) return {3350, 989, 1979, 450};
  return {};
}

double DecodeFloor(const ModelConfig& config, const FloorTerms& terms, int64_t batch,
                   int64_t context) {
  Floor floor(config, terms, batch);
  floor.Layers();
  const auto cached = static_cast<double>(batch * context);
  floor.Attention(cached, cached, true);
  floor.Head(static_cast<double>(batch));
  floor.Exchange();
  return floor.seconds();
}

double PrefillFloor(const ModelConfig& config, const FloorTerms& terms, int64_t tokens) {
  Floor floor(config, terms, tokens);
  floor.Layers();
  const auto count = static_cast<double>(tokens);
  floor.Attention(0, count * (count + 1) / 2, false);
  floor.Head(1);
  floor.Exchange();
  return floor.seconds();
}

}  // namespace glm::bench
