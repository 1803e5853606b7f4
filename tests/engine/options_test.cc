#include "engine/options.h"

#include <gtest/gtest.h>

#include <cmath>

#include <string>

namespace glm::engine {
namespace {

EngineOptions Good() {
  EngineOptions options;
  options.model = "/somewhere";
  return options;
}

TEST(OptionsTest, DefaultsAreValid) { EXPECT_TRUE(Good().Validate().ok()); }

struct Refusal {
  const char* message;
  void (*change)(EngineOptions* options);
};

TEST(OptionsTest, RefusalsNameFieldValueAndLimit) {
  const Refusal refusals[] = {
      {"model is empty, must be the folder of a checkpoint",
       [](EngineOptions* o) { o->model = ""; }},
      {"device is \"tpu\", must be one of \"cpu\", \"cuda\"",
       [](EngineOptions* o) { o->device = "tpu"; }},
      {"device_index is -1, must be in [0, 63]", [](EngineOptions* o) { o->device_index = -1; }},
      {"dtype is \"half\", must be one of \"auto\", \"bfloat16\", \"float32\"",
       [](EngineOptions* o) { o->dtype = "half"; }},
      {"dtype is \"float32\", which needs device \"cpu\"; device is \"cuda\"",
       [](EngineOptions* o) {
         o->dtype = "float32";
         o->device = "cuda";
       }},
      {"tensor_parallel_size is 3, must be 1, 2, 4 or 8",
       [](EngineOptions* o) { o->tensor_parallel_size = 3; }},
      {"ranks_per_device is 4, must divide tensor_parallel_size, which is 2",
       [](EngineOptions* o) {
         o->tensor_parallel_size = 2;
         o->ranks_per_device = 4;
       }},
      {"ranks_per_device is 0, must divide tensor_parallel_size, which is 1",
       [](EngineOptions* o) { o->ranks_per_device = 0; }},
      {"ranks_per_device is 2 with device \"cpu\" and gpu_exchange \"auto\": ranks share a GPU "
       "only with device \"cuda\", and exchange through its memory; must be 1",
       [](EngineOptions* o) { o->tensor_parallel_size = o->ranks_per_device = 2; }},
      {"ranks_per_device is 2 with device \"cuda\" and gpu_exchange \"nccl\": ranks share a GPU "
       "only with device \"cuda\", and exchange through its memory; must be 1",
       [](EngineOptions* o) {
         o->tensor_parallel_size = o->ranks_per_device = 2;
         o->device = "cuda";
         o->gpu_exchange = "nccl";
       }},
      {"gpu_exchange is \"mpi\", must be one of \"auto\", \"peer\", \"nccl\"",
       [](EngineOptions* o) { o->gpu_exchange = "mpi"; }},
      {"quantization is \"int4\", must be one of \"none\", \"fp8\"",
       [](EngineOptions* o) { o->quantization = "int4"; }},
      {"load_format is \"pickle\", must be one of \"auto\", \"dummy\"",
       [](EngineOptions* o) { o->load_format = "pickle"; }},
      {"load_threads is 0, must be in [1, 64]", [](EngineOptions* o) { o->load_threads = 0; }},
      {"kv_cache_dtype is \"fp4\", must be one of \"auto\", \"fp8\"",
       [](EngineOptions* o) { o->kv_cache_dtype = "fp4"; }},
      {"cpu_threads is -1, must be in [0, 1024]", [](EngineOptions* o) { o->cpu_threads = -1; }},
      {"block_size is 48, must be 16, 32, 64 or 128", [](EngineOptions* o) { o->block_size = 48; }},
      {"kv_blocks is -1, must be in [0, 16777215]", [](EngineOptions* o) { o->kv_blocks = -1; }},
      {"gpu_memory_utilization is 1.5, must be in [0, 1]",
       [](EngineOptions* o) { o->gpu_memory_utilization = 1.5; }},
      {"gpu_memory_utilization is nan, must be in [0, 1]",
       [](EngineOptions* o) { o->gpu_memory_utilization = std::nan(""); }},
      {"kv_cache_bytes is 0, must be in [1, 1125899906842624]",
       [](EngineOptions* o) { o->kv_cache_bytes = 0; }},
      {"max_model_len is -5, must be in [0, 16777216]",
       [](EngineOptions* o) { o->max_model_len = -5; }},
      {"max_num_seqs is 0, must be in [1, 4096]", [](EngineOptions* o) { o->max_num_seqs = 0; }},
      {"max_num_batched_tokens is 63, must be in [64, 262144]",
       [](EngineOptions* o) { o->max_num_batched_tokens = 63; }},
      {"steps_in_flight is 3, must be in [0, 2]", [](EngineOptions* o) { o->steps_in_flight = 3; }},
      {"num_speculative_tokens is 6, must be in [0, 5]",
       [](EngineOptions* o) { o->num_speculative_tokens = 6; }},
      {"max_num_batched_tokens is 255, must be in [256, 262144]",
       [](EngineOptions* o) {
         o->num_speculative_tokens = 3;
         o->max_num_batched_tokens = 255;
       }},
      {"steps_in_flight is 2 and num_speculative_tokens is 1: what a step drafts is judged by the "
       "next one; steps_in_flight must be 0 or 1",
       [](EngineOptions* o) {
         o->num_speculative_tokens = 1;
         o->steps_in_flight = 2;
       }},
      {"long_prefill_token_threshold is -1, must be in [0, 16777216]",
       [](EngineOptions* o) { o->long_prefill_token_threshold = -1; }},
      {"prefix_hash_key has 31 characters, must be 32 hex digits",
       [](EngineOptions* o) { o->prefix_hash_key = std::string(31, '0'); }},
      {"prefix_hash_key has 32 characters, must be 32 hex digits",
       [](EngineOptions* o) { o->prefix_hash_key = std::string(32, 'g'); }},
      {"batch_invariant is true and device is \"cuda\", whose kernels choose the order of their "
       "sums "
       "by the size of a step; must be false, or device \"cpu\"",
       [](EngineOptions* o) {
         o->batch_invariant = true;
         o->device = "cuda";
       }},
      {"max_waiting_requests is 0, must be in [1, 1048576]",
       [](EngineOptions* o) { o->max_waiting_requests = 0; }},
  };
  for (const Refusal& refusal : refusals) {
    EngineOptions options = Good();
    refusal.change(&options);
    const absl::Status status = options.Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message(), refusal.message);
  }
}

}  // namespace
}  // namespace glm::engine
