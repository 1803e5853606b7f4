#include "engine/engine.h"

#include <algorithm>
#include <filesystem>
#include <thread>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/engine_loop.h"
#include "engine/model/config.h"
#include "engine/model/glm.h"
#include "engine/rank/rank_group.h"
#include "engine/rank/rank_meeting.h"
#include "proto/base/block_hash.h"
#include "proto/base/log.h"

namespace glm::engine {
namespace {

absl::StatusOr<DType> ActivationType(const EngineOptions& options, const ModelConfig& config) {
  if (options.dtype == "float32") return DType::kF32;
  if (options.dtype == "bfloat16") return DType::kBF16;
  if (config.dtype == DType::kF32 && options.device == "cuda") {
    return absl::InvalidArgumentError(
        "dtype is \"auto\" and the checkpoint's is float32, which needs device \"cpu\"; give "
        "dtype \"bfloat16\"");
  }
  return config.dtype;
}

DType CacheType(const EngineOptions& options, DType activation_type) {
  return options.kv_cache_dtype == "fp8" ? DType::kF8E4M3 : activation_type;
}

int64_t BlocksFor(int64_t tokens, int64_t block_size) {
  return (tokens + block_size - 1) / block_size;
}

/// kv_blocks, or as many as kv_cache_bytes holds, of a rank.
absl::StatusOr<int64_t> CountBlocks(const EngineOptions& options, int64_t bytes_per_block) {
  if (options.kv_blocks > 0) return options.kv_blocks;
  const int64_t blocks = options.kv_cache_bytes / bytes_per_block;
  if (blocks < 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("kv_cache_bytes is %d, must be at least %d, the size of one block",
                        options.kv_cache_bytes, bytes_per_block));
  }
  return std::min(blocks, EngineOptions::kKvBlocksMax);
}

/// Each sequence's next token and those behind its drafts; some more where these are few, so that
/// logprobs of a prompt do not take a step a token.
int32_t LogitRowsMax(const EngineOptions& options) {
  constexpr int32_t kLogitRowsMin = 64;
  return std::max(options.max_num_seqs * (1 + options.num_speculative_tokens),
                  std::min(options.max_num_batched_tokens, kLogitRowsMin));
}

int32_t StepsInFlight(const EngineOptions& options) {
  if (options.steps_in_flight > 0) return options.steps_in_flight;
  // What a step drafts is judged by the next one, which cannot be planned before.
  if (options.num_speculative_tokens > 0) return 1;
  return options.device == "cuda" ? 2 : 1;
}

absl::StatusOr<EngineShape> PlanShape(const EngineOptions& options, const ModelConfig& config,
                                      DType dtype) {
  if (options.num_speculative_tokens > 0 && config.mtp_layers == 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("num_speculative_tokens is %d: the checkpoint has no draft layer "
                        "(num_nextn_predict_layers is 0); must be 0",
                        options.num_speculative_tokens));
  }
  if (options.max_model_len > config.positions_max) {
    return absl::InvalidArgumentError(
        absl::StrFormat("max_model_len is %d, must be at most %d, the model's positions",
                        options.max_model_len, config.positions_max));
  }
  const absl::StatusOr<int64_t> blocks =
      CountBlocks(options, KvCache::BytesPerBlock(config.OfRank(options.tensor_parallel_size),
                                                  CacheType(options, dtype), options.block_size,
                                                  options.num_speculative_tokens > 0));
  if (!blocks.ok()) return blocks.status();
  EngineShape shape;
  shape.model_name = options.served_model_name;
  if (shape.model_name.empty()) {
    // A path that ends in a slash has an empty last part.
    const std::filesystem::path path(options.model);
    shape.model_name = (path.has_filename() ? path : path.parent_path()).filename().string();
  }
  shape.vocabulary = config.vocabulary_used;
  const int64_t asked = options.max_model_len > 0 ? options.max_model_len : config.positions_max;
  shape.length_max = static_cast<int32_t>(std::min(asked, *blocks * options.block_size));
  shape.block_size = options.block_size;
  shape.kv_blocks_total = *blocks;
  shape.sequences_max = options.max_num_seqs;
  shape.step_tokens_max = options.max_num_batched_tokens;
  shape.eos_ids = config.eos_ids;
  shape.prefix_caching = options.enable_prefix_caching;
  shape.drafts_max = options.num_speculative_tokens;
  return shape;
}

RankOptions PlanRank(const EngineOptions& options, const ModelConfig& config,
                     const EngineShape& shape, DType dtype, int32_t steps_in_flight) {
  RankOptions rank;
  rank.folder = options.model;
  rank.device = options.device;
  rank.device_index = options.device_index;
  rank.ranks_per_device = options.ranks_per_device;
  rank.exchange = GpuExchangeOf(options.gpu_exchange);
  const int32_t ranks = options.tensor_parallel_size;
  const int32_t cpu_threads = options.cpu_threads > 0
                                  ? options.cpu_threads
                                  : static_cast<int32_t>(std::thread::hardware_concurrency());
  rank.cpu_threads = std::max(1, cpu_threads / ranks);
  rank.dtype = dtype;
  rank.kv_dtype = CacheType(options, dtype);
  rank.quantize = options.quantization == "fp8";
  rank.random_weights = options.load_format == "dummy";
  rank.load_threads = std::max(1, options.load_threads / ranks);
  rank.kv_blocks = shape.kv_blocks_total;
  rank.block_size = shape.block_size;
  StepLimits limits;
  limits.tokens_max = options.max_num_batched_tokens;
  limits.sequences_max = options.max_num_seqs;
  limits.logit_rows_max = LogitRowsMax(options);
  rank.batch.step = Glm::CompleteLimits(config.OfRank(ranks), limits);
  rank.batch.blocks_max = BlocksFor(shape.length_max, shape.block_size);
  rank.batch.slots = options.max_num_seqs;
  rank.batch.vocabulary_used = config.vocabulary_used;
  rank.batch.drafts_max = shape.drafts_max;
  rank.batch.steps_in_flight_max = steps_in_flight;
  return rank;
}

/// `options` with kv_blocks by gpu_memory_utilization, where that decides.
absl::StatusOr<EngineOptions> SettleBlocks(const EngineOptions& options, const ModelConfig& config,
                                           DType dtype) {
  EngineOptions settled = options;
  if (options.kv_blocks > 0 || options.gpu_memory_utilization == 0) return settled;
  // The tables of a sequence's blocks are planned for the longest one there may be.
  const int64_t longest = options.max_model_len > 0 ? options.max_model_len : config.positions_max;
  settled.kv_blocks = BlocksFor(longest, options.block_size);
  const absl::StatusOr<EngineShape> shape = PlanShape(settled, config, dtype);
  if (!shape.ok()) return shape.status();
  const absl::StatusOr<int64_t> blocks =
      Rank::BlocksThatFit(PlanRank(settled, config, *shape, dtype, StepsInFlight(options)), config,
                          options.tensor_parallel_size, options.gpu_memory_utilization);
  if (!blocks.ok()) return blocks.status();
  settled.kv_blocks = std::min(*blocks, EngineOptions::kKvBlocksMax);
  return settled;
}

void LogPlan(const EngineShape& shape, const RankGroup& ranks, DType dtype,
             int32_t steps_in_flight) {
  const double mib = 1 << 20;
  for (int32_t rank = 0; rank < ranks.size(); ++rank) {
    const RankMemory& memory = ranks.memory(rank);
    LOG(INFO) << absl::StrFormat(
        "%s on %s, %s: weights %.1f MiB, KV cache %.1f MiB (%d blocks of %d tokens), step buffers "
        "%.1f MiB, %.1f MiB left",
        shape.model_name, memory.device, Name(dtype), memory.weight_bytes / mib,
        memory.kv_bytes / mib, shape.kv_blocks_total, shape.block_size,
        (memory.buffer_bytes + memory.scratch_bytes + memory.batch_bytes) / mib,
        memory.free_bytes / mib);
  }
  LOG(INFO) << absl::StrFormat(
      "%s: up to %d tokens a request, %d requests at once, %d steps in flight, %d drafts a step",
      shape.model_name, shape.length_max, shape.sequences_max, steps_in_flight, shape.drafts_max);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const EngineOptions& asked, Sink sink) {
  const absl::Status valid = asked.Validate();
  if (!valid.ok()) return valid;
  const absl::StatusOr<ModelConfig> config = ModelConfig::Read(asked.model);
  if (!config.ok()) return config.status();
  const absl::StatusOr<DType> dtype = ActivationType(asked, *config);
  if (!dtype.ok()) return dtype.status();
  const absl::Status divides = Glm::CheckRanks(*config, asked.tensor_parallel_size);
  if (!divides.ok()) return divides;
  if (asked.ranks_per_device > 1) PrepareSharedGpu();
  const absl::StatusOr<EngineOptions> settled = SettleBlocks(asked, *config, *dtype);
  if (!settled.ok()) return settled.status();
  const EngineOptions& options = *settled;
  const absl::StatusOr<EngineShape> shape = PlanShape(options, *config, *dtype);
  if (!shape.ok()) return shape.status();
  const int32_t steps_in_flight = StepsInFlight(options);

  absl::StatusOr<std::unique_ptr<RankGroup>> ranks =
      RankGroup::Start(PlanRank(options, *config, *shape, *dtype, steps_in_flight), *config,
                       options.tensor_parallel_size);
  if (!ranks.ok()) return ranks.status();
  LogPlan(*shape, **ranks, *dtype, steps_in_flight);

  SchedulerLimits limits;
  limits.block_size = shape->block_size;
  limits.kv_blocks = shape->kv_blocks_total;
  limits.length_max = shape->length_max;
  limits.sequences_max = shape->sequences_max;
  limits.batched_tokens_max = options.max_num_batched_tokens;
  limits.logit_rows_max = LogitRowsMax(options);
  limits.vocabulary = shape->vocabulary;
  limits.plans_in_flight_max = steps_in_flight;
  limits.drafts_max = shape->drafts_max;
  limits.adaptive_drafts = options.adaptive_drafts;
  limits.prefix_caching = shape->prefix_caching;
  limits.prefix_hash_key = *ParseHashKey(options.prefix_hash_key);  // Validate has checked it
  limits.long_prefill_token_threshold = options.long_prefill_token_threshold;
  return std::make_unique<EngineLoop>(*shape, limits, options.max_waiting_requests,
                                      *std::move(ranks), std::move(sink));
}

}  // namespace glm::engine
