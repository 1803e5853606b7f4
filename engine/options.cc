#include "engine/options.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "proto/base/block_hash.h"

namespace glm::engine {
namespace {

absl::Status CheckRange(const char* name, int64_t value, int64_t min, int64_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("%s is %d, must be in [%d, %d]", name, value, min, max));
}

absl::Status CheckOneOf(const char* name, const std::string& value,
                        std::initializer_list<const char*> choices) {
  std::string list;
  for (const char* choice : choices) {
    if (value == choice) return absl::OkStatus();
    list += (list.empty() ? "\"" : ", \"") + std::string(choice) + "\"";
  }
  return absl::InvalidArgumentError(
      absl::StrFormat("%s is \"%s\", must be one of %s", name, value, list));
}

/// How ranks share the model and the GPUs.
absl::Status CheckRanks(const EngineOptions& options) {
  absl::Status status;
  if (options.tensor_parallel_size != 1 && options.tensor_parallel_size != 2 &&
      options.tensor_parallel_size != 4 && options.tensor_parallel_size != 8) {
    status.Update(absl::InvalidArgumentError(absl::StrFormat(
        "tensor_parallel_size is %d, must be 1, 2, 4 or 8", options.tensor_parallel_size)));
  } else if (options.ranks_per_device < 1 ||
             options.tensor_parallel_size % options.ranks_per_device != 0) {
    status.Update(absl::InvalidArgumentError(
        absl::StrFormat("ranks_per_device is %d, must divide tensor_parallel_size, which is %d",
                        options.ranks_per_device, options.tensor_parallel_size)));
  }
  status.Update(CheckOneOf("gpu_exchange", options.gpu_exchange, {"auto", "peer", "nccl"}));
  if (options.ranks_per_device > 1 && (options.device == "cpu" || options.gpu_exchange == "nccl")) {
    status.Update(absl::InvalidArgumentError(absl::StrFormat(
        "ranks_per_device is %d with device \"%s\" and gpu_exchange \"%s\": ranks share a GPU only "
        "with device \"cuda\", and exchange through its memory; must be 1",
        options.ranks_per_device, options.device, options.gpu_exchange)));
  }
  return status;
}

}  // namespace

absl::Status EngineOptions::Validate() const {
  if (model.empty()) {
    return absl::InvalidArgumentError("model is empty, must be the folder of a checkpoint");
  }
  absl::Status status;
  status.Update(CheckOneOf("device", device, {"cpu", "cuda"}));
  status.Update(CheckRange("device_index", device_index, 0, 63));
  status.Update(CheckRanks(*this));
  status.Update(CheckOneOf("dtype", dtype, {"auto", "bfloat16", "float32"}));
  if (device == "cuda" && dtype == "float32") {
    status.Update(absl::InvalidArgumentError(
        "dtype is \"float32\", which needs device \"cpu\"; device is \"cuda\""));
  }
  status.Update(CheckOneOf("quantization", quantization, {"none", "fp8"}));
  status.Update(CheckOneOf("load_format", load_format, {"auto", "dummy"}));
  status.Update(CheckRange("load_threads", load_threads, 1, 64));
  status.Update(CheckOneOf("kv_cache_dtype", kv_cache_dtype, {"auto", "fp8"}));
  status.Update(CheckRange("cpu_threads", cpu_threads, 0, 1024));
  if (block_size != 16 && block_size != 32 && block_size != 64 && block_size != 128) {
    status.Update(absl::InvalidArgumentError(
        absl::StrFormat("block_size is %d, must be 16, 32, 64 or 128", block_size)));
  }
  status.Update(CheckRange("kv_blocks", kv_blocks, 0, kKvBlocksMax));
  status.Update(
      CheckRange("kv_cache_bytes", kv_cache_bytes, kv_blocks > 0 ? 0 : 1, int64_t{1} << 50));
  // Written so that NaN fails.
  if (!(gpu_memory_utilization >= 0 && gpu_memory_utilization <= 1)) {
    status.Update(absl::InvalidArgumentError(absl::StrFormat(
        "gpu_memory_utilization is %g, must be in [0, 1]", gpu_memory_utilization)));
  }
  status.Update(CheckRange("max_model_len", max_model_len, 0, 1 << 24));
  status.Update(CheckRange("max_num_seqs", max_num_seqs, 1, 4096));
  // Every running sequence must find room for its next token and its drafts in each step.
  const int64_t drafts = std::clamp(num_speculative_tokens, 0, kDraftsMax);
  status.Update(CheckRange("max_num_batched_tokens", max_num_batched_tokens,
                           max_num_seqs * (1 + drafts), 1 << 18));
  status.Update(CheckRange("steps_in_flight", steps_in_flight, 0, 2));
  status.Update(CheckRange("num_speculative_tokens", num_speculative_tokens, 0, kDraftsMax));
  if (num_speculative_tokens > 0 && steps_in_flight == 2) {
    status.Update(absl::InvalidArgumentError(
        absl::StrFormat("steps_in_flight is 2 and num_speculative_tokens is %d: what a step drafts "
                        "is judged by the "
                        "next one; steps_in_flight must be 0 or 1",
                        num_speculative_tokens)));
  }
  status.Update(
      CheckRange("long_prefill_token_threshold", long_prefill_token_threshold, 0, 1 << 24));
  if (!ParseHashKey(prefix_hash_key).has_value()) {
    // Not quoted: it is a secret.
    status.Update(absl::InvalidArgumentError(absl::StrFormat(
        "prefix_hash_key has %d characters, must be 32 hex digits", prefix_hash_key.size())));
  }
  if (batch_invariant && device == "cuda") {
    status.Update(absl::InvalidArgumentError(
        "batch_invariant is true and device is \"cuda\", whose kernels choose the order of their "
        "sums by the size of a step; must be false, or device \"cpu\""));
  }
  status.Update(CheckRange("max_waiting_requests", max_waiting_requests, 1, 1 << 20));
  return status;
}

}  // namespace glm::engine
