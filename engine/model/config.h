// ModelConfig: config.json, checked, immutable.
//
// Source of the keys and their meaning: huggingface transformers' Glm4MoeConfig and
// Glm4MoeLiteConfig. Keys that change
// the mathematics and that we do not implement are refused by name; unknown keys too, unless they
// are on the list of keys that only describe (architectures, transformers_version, ...).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/quantization.h"
#include "kernels/dtype.h"

namespace glm::engine {

struct ModelConfig {
  std::string model_type;   // "glm4_moe", or "glm4_moe_lite" (GLM-4.7-Flash)
  int32_t hidden_size = 0;  // H
  int32_t layers = 0;       // num_hidden_layers, without the MTP layer
  int32_t query_heads = 0;  // N
  int32_t kv_heads = 0;     // K
  int32_t head_size = 0;    // D, of queries and keys; with latent attention nope + rope
  int32_t rope_size = 0;    // values of a head that are rotated: the leading ones, or, with latent
                            // attention, the last
  double rope_theta = 0;
  bool attention_bias = false;  // of q, k and v; o has none
  bool use_qk_norm = false;
  int32_t query_latent = 0;       // q_lora_rank; 0 without latent attention
  int32_t kv_latent = 0;          // L, kv_lora_rank; 0 without latent attention
  int32_t value_size = 0;         // of a head: D, or v_head_dim
  int32_t dense_layers = 0;       // first_k_dense_replace
  int32_t dense_width = 0;        // I, intermediate_size
  int32_t experts = 0;            // E, n_routed_experts
  int32_t shared_experts = 0;     // n_shared_experts
  int32_t experts_per_token = 0;  // k
  int32_t expert_width = 0;       // M, moe_intermediate_size
  double routed_scaling_factor = 1;
  bool norm_topk_prob = true;
  int32_t mtp_layers = 0;       // num_nextn_predict_layers
  int32_t vocabulary = 0;       // V, rows of the embedding
  int32_t vocabulary_used = 0;  // ids below this exist in tokenizer.json; V when there is none
  int32_t positions_max = 0;    // max_position_embeddings
  double rms_norm_eps = 0;
  bool tie_word_embeddings = false;
  DType dtype = DType::kBF16;    // of the checkpoint's activations
  Quantization quantization;     // what config.json says of FP8
  std::vector<int32_t> eos_ids;  // generation_config.json if there, else config.json
  int32_t ranks = 1;             // above 1: heads and widths are those of one of so many ranks

  /// Attention over a latent (MLA): one "kv head" of L + rope_size values a position.
  bool latent_attention() const { return kv_latent > 0; }
  /// Values of a cache cell, and how many heads of them a position has.
  int32_t cell_size() const { return latent_attention() ? kv_latent + rope_size : head_size; }
  int32_t cache_heads() const { return latent_attention() ? 1 : kv_heads; }

  /// The config of one of `size` ranks: its share of query and kv heads, of dense_width and of
  /// expert_width; all else is as it was. Every rank has the same. REQUIRES that this is the config
  /// of the whole model, and Glm::CheckRanks.
  ModelConfig OfRank(int32_t size) const;

  /// Whether any layer is a mixture of experts; the draft layer always is.
  bool has_mixture() const { return dense_layers < layers || mtp_layers > 0; }

  /// Reads `folder`/config.json (and generation_config.json, tokenizer.json where there).
  /// INVALID_ARGUMENT names the key, its value and what is accepted.
  static absl::StatusOr<ModelConfig> Read(const std::string& folder);

  /// The same from the text of a config.json alone.
  static absl::StatusOr<ModelConfig> Parse(const std::string& config_json);
};

}  // namespace glm::engine
