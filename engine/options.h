// Everything that can be set on an engine, each default written here once.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace glm::engine {

struct EngineOptions {
  /// Block numbers and the positions they stand for fit in 31 bits at the largest block size.
  static constexpr int64_t kKvBlocksMax = (int64_t{1} << 31) / 128 - 1;
  /// Drafts a sequence and step.
  static constexpr int32_t kDraftsMax = 5;

  /// Folder of the checkpoint: config.json, *.safetensors (by index), generation_config.json.
  std::string model;
  /// Name that clients use; empty: the last part of `model`.
  std::string served_model_name;
  /// "cpu" or "cuda".
  std::string device = "cpu";
  /// First GPU of this worker (device "cuda"); with tensor parallelism it has the next ones too.
  int32_t device_index = 0;
  /// Ranks that share the model, each with its part of the heads, widths and vocabulary: 1, 2, 4 or
  /// 8, of those that divide the model. Device "cuda": a GPU each, from device_index on.
  int32_t tensor_parallel_size = 1;
  /// Ranks that share a GPU, a divisor of tensor_parallel_size: above 1 only to try tensor
  /// parallelism with fewer GPUs than ranks, since it makes nothing faster. Device "cuda".
  int32_t ranks_per_device = 1;
  /// How ranks on GPUs exchange: "peer" (kernels of ours through each other's memory), "nccl", or
  /// "auto": peer where every pair of GPUs can access each other's memory, else NCCL.
  std::string gpu_exchange = "auto";
  /// Activation type: "auto" (the checkpoint's), "bfloat16", "float32" (CPU only).
  std::string dtype = "auto";
  /// "none": weights as the checkpoint has them. "fp8": linears that are not FP8 are quantised
  /// while loading, one scale an output channel; embeddings, head, router and norms are not.
  std::string quantization = "none";
  /// "auto": weights from the checkpoint. "dummy": seeded random weights by config.json alone.
  std::string load_format = "auto";
  /// Threads that read, convert and quantise weights, divided among the ranks; each holds two
  /// buffers of 4 MiB.
  int32_t load_threads = 4;
  /// Threads of the CPU backend, divided among the ranks; 0: one per core.
  int32_t cpu_threads = 0;

  /// Token slots of one KV block: 16, 32, 64 or 128.
  int32_t block_size = 64;
  /// Type of the KV cache: "auto" (the activations'), or "fp8", scaled by the checkpoint's k_scale
  /// and v_scale where it has them.
  std::string kv_cache_dtype = "auto";
  /// KV cache size in blocks; 0: by gpu_memory_utilization or kv_cache_bytes.
  int64_t kv_blocks = 0;
  /// Share of the memory that a rank's device has free at the start, for weights, buffers and KV
  /// cache together: (0, 1], used when kv_blocks is 0. 0: by kv_cache_bytes.
  double gpu_memory_utilization = 0;
  /// KV cache size in bytes of each rank, used when kv_blocks and gpu_memory_utilization are 0.
  int64_t kv_cache_bytes = 256 << 20;
  /// Longest prompt + answer of one request, in tokens; 0: the model's max_position_embeddings.
  int32_t max_model_len = 0;
  /// Requests running at once.
  int32_t max_num_seqs = 64;
  /// Tokens computed in one step, decodes and prompt chunks together; at least max_num_seqs * (1 +
  /// num_speculative_tokens).
  int32_t max_num_batched_tokens = 1024;
  /// Steps handed to a device before the result of the oldest is back: 1, or 2 to plan a step while
  /// the one before runs. 0: 2 on a GPU; 1 on the CPU, where the host's part is too short to hide,
  /// and with drafts, where the next step needs the result.
  int32_t steps_in_flight = 0;
  /// Share blocks of equal prefixes.
  bool enable_prefix_caching = true;
  /// Hex digits of the 128-bit key of block hashes, the same on all workers and routers of a
  /// deployment; empty: a fixed, public one.
  std::string prefix_hash_key;
  /// Prompt tokens of one request in one step while others decode, so that a long prompt does not
  /// hold them up; 0: no limit but max_num_batched_tokens.
  int32_t long_prefill_token_threshold = 0;
  /// Most drafts a sequence and step by the model's draft layer (MTP): 0 (none) to 5.
  int32_t num_speculative_tokens = 0;
  /// Fewer drafts, down to none, where measured step times say that they do not pay.
  bool adaptive_drafts = true;
  /// A request's tokens do not depend on what else is in the batch, on chunking, preemption or
  /// prefix hits. The CPU backend always keeps this; device "cuda" does not yet, and refuses it.
  bool batch_invariant = false;
  /// Requests waiting for their first step; more are refused with RESOURCE_EXHAUSTED.
  int32_t max_waiting_requests = 4096;

  /// INVALID_ARGUMENT naming the field, its value and the limit.
  absl::Status Validate() const;
};

}  // namespace glm::engine
