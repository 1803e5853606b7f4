#include "bench/step_bench.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>
#include <random>

#include "absl/strings/str_cat.h"
#include "bench/floor.h"
#include "bench/timed_device.h"
#include "engine/model/glm.h"
#include "engine/rank/batch.h"
#include "engine/rank/draft.h"
#include "engine/rank/graphs.h"
#include "engine/rank/sampler.h"
#include "kernels/communicator.h"
#include "proto/base/log.h"

namespace glm::bench {
namespace {

using engine::Batch;
using engine::BatchLimits;
using engine::Glm;
using engine::KvCache;
using engine::ModelConfig;
using engine::StepGraphs;
using engine::StepPlan;
using Clock = std::chrono::steady_clock;

constexpr int32_t kStepsInFlight = 2;
constexpr int32_t kPlans = 4;  // different ones, taken in turn
// Fills that keep the device busy while the host issues a whole step.
constexpr int64_t kBusyBytes = int64_t{256} << 20;
constexpr int kBusyFills = 160;

int64_t BlocksFor(int64_t tokens, int64_t block_size) {
  return (tokens + block_size - 1) / block_size;
}

/// A rank's part of a model with random weights, and what a rank has around it.
class Machine {
 public:
  /// `config`: the whole model's.
  Machine(const StepBenchOptions& options, const ModelConfig& config, RankSeat& seat)
      : options_(options),
        config_(config),
        rank_config_(config.OfRank(seat.communicator->size())),
        gate_(*seat.gate),
        device_(std::move(seat.device)),
        communicator_(std::move(seat.communicator)) {}

  /// `length_max`: of a sequence; `blocks`: of the cache.
  absl::Status SetUp(const StepLimits& step, int64_t length_max, int64_t blocks);

  TimedDevice& device() { return device_; }
  int32_t rank() const { return communicator_.rank(); }
  const ModelConfig& rank_config() const { return rank_config_; }

  /// Issues a step and returns; at most kStepsInFlight may be issued and not awaited.
  void Issue(const StepPlan& plan);
  /// Waits for the oldest.
  void Await() { events_[awaited_++ % kStepsInFlight]->Wait(); }
  void Run(const StepPlan& plan) {
    Issue(plan);
    Await();
  }

  /// Waits for the device and for all ranks.
  void Meet();
  /// Seconds of each op of a step, the host's part hidden behind other work of the device.
  std::map<std::string, TimedDevice::OpTime> TimeOps(const StepPlan& plan);
  /// Kernels and copies of a step, once captured; 0 where the device has no graphs.
  int64_t CountOperations(const StepPlan& plan);

 private:
  void Compute();
  bool drafts() const { return options_.drafts > 0; }

  const StepBenchOptions& options_;
  const ModelConfig& config_;
  const ModelConfig rank_config_;
  engine::StartGate& gate_;
  TimedDevice device_;
  TimedCommunicator communicator_;
  BatchLimits limits_;
  std::unique_ptr<Glm> model_;
  KvCache cache_;
  std::optional<Batch> batch_;
  std::optional<StepGraphs> graphs_;
  std::optional<engine::Sampler> sampler_;
  std::optional<engine::Drafter> drafter_;
  std::vector<std::unique_ptr<DeviceEvent>> events_;
  void* busy_ = nullptr;
  int64_t issued_ = 0;
  int64_t awaited_ = 0;
};

absl::Status Machine::SetUp(const StepLimits& step, int64_t length_max, int64_t blocks) {
  const bool cuda = options_.device == "cuda";
  const DType dtype = cuda ? DType::kBF16 : config_.dtype;
  const DType cache_dtype = options_.kv_cache_dtype == "fp8" ? DType::kF8E4M3 : dtype;
  limits_.drafts_max = options_.drafts;
  limits_.step = step;
  limits_.blocks_max = BlocksFor(length_max, options_.block_size);
  limits_.slots = step.sequences_max;
  limits_.vocabulary_used = config_.vocabulary_used;
  limits_.steps_in_flight_max = kStepsInFlight;

  engine::WeightSource source(options_.model);
  source.random = true;
  source.quantize = options_.quantization == "fp8";
  source.threads = options_.load_threads;
  absl::StatusOr<std::unique_ptr<Glm>> model = Glm::Load(
      device_, config_, source, dtype, limits_.step,
      {.mtp = drafts(),
       .communicator = &communicator_,
       .overlap_tokens_min = options_.gpu_exchange_overlap ? engine::GlmOptions::kOverlapTokensMin
                                                           : engine::GlmOptions::kNoOverlap});
  if (!model.ok()) return model.status();
  model_ = *std::move(model);
  const int64_t needed =
      blocks * KvCache::BytesPerBlock(rank_config_, cache_dtype, options_.block_size, drafts()) +
      Batch::DeviceBytes(limits_) + device_.ScratchBytes(limits_.step) + kBusyBytes;
  if (needed > device_.BytesFree()) {
    return absl::ResourceExhaustedError(absl::StrCat("cache and buffers need ", needed, " bytes, ",
                                                     device_.Describe(), " has ",
                                                     device_.BytesFree(), " free"));
  }
  cache_ =
      KvCache::Allocate(device_, rank_config_, cache_dtype, blocks, options_.block_size, drafts());
  batch_.emplace(device_, limits_);
  graphs_.emplace(device_);
  sampler_.emplace(device_, communicator_, limits_.step);
  if (drafts()) drafter_.emplace(device_, *sampler_, limits_, dtype);
  for (int32_t i = 0; i < kStepsInFlight; ++i) events_.push_back(device_.NewEvent());
  device_.PlanScratch(limits_.step);
  if (cuda) busy_ = device_.Allocate(kBusyBytes);
  device_.Seal();
  return absl::OkStatus();
}

void Machine::Meet() {
  device_.Synchronize();
  gate_.Pass(true);
}

void Machine::Compute() {
  device_.ops().store_tokens(device_, {.batch = batch_->view(), .cache = cache_.tokens});
  model_->Forward(batch_->view(), cache_, batch_->logits(), batch_->logit_row_view());
  sampler_->Run(batch_->sample_args(cache_.tokens));
  if (batch_->sizes().draft_layer) drafter_->Run(*model_, cache_, *batch_);
}

void Machine::Issue(const StepPlan& plan) {
  const auto staging = static_cast<int32_t>(issued_++ % kStepsInFlight);
  batch_->Upload(plan, staging);
  graphs_->Run(batch_->sizes(), [&] { Compute(); });
  batch_->Download(staging);
  events_[staging]->Record();
}

std::map<std::string, TimedDevice::OpTime> Machine::TimeOps(const StepPlan& plan) {
  Meet();
  batch_->Upload(plan, 0);
  if (busy_ != nullptr) {
    for (int i = 0; i < kBusyFills; ++i) device_.Fill(busy_, 0, kBusyBytes);
  }
  device_.StartTiming();
  Compute();
  return device_.TakeTimes();
}

int64_t Machine::CountOperations(const StepPlan& plan) {
  if (!device_.CanCapture()) return 0;
  Meet();
  batch_->Upload(plan, 0);
  device_.BeginCapture();
  Compute();
  return device_.EndCapture()->operations();
}

/// Positions of a sequence of the decode steps, what its drafts may reach included.
int32_t LengthOf(const StepBenchOptions& options) {
  return options.context + 1 + 2 * options.drafts;
}

/// Tokens of a sequence's step: its own, and the drafts that are taken to be right.
double TokensAStep(const StepBenchOptions& options) {
  double tokens = 1;
  double right = 1;
  for (int32_t draft = 0; draft < options.drafts; ++draft) {
    right *= options.acceptance;
    tokens += right;
  }
  return tokens;
}

/// Makes plans; sequence s has blocks s * `blocks_each` on.
class Plans {
 public:
  Plans(const ModelConfig& config, int32_t block_size, int64_t blocks_each, int32_t drafts)
      : config_(config),
        block_size_(block_size),
        blocks_each_(static_cast<int32_t>(blocks_each)),
        drafts_(drafts) {}

  /// A decode step of `count` sequences, each with its newest token and drafts behind it.
  StepPlan MakeDecode(int32_t count, int32_t cached) {
    StepPlan plan = Make(0, count, 1 + drafts_, cached);
    if (drafts_ == 0) return plan;
    plan.blocks_max = static_cast<int32_t>(BlocksFor(cached + 1 + 2 * drafts_, block_size_));
    plan.block_tables.clear();
    plan.logit_tokens.clear();
    plan.sample_rows.clear();
    plan.next_ids.clear();
    for (int32_t s = 0; s < count; ++s) {
      AddTable(s, &plan);
      plan.draft_rows.push_back({s, static_cast<int32_t>(plan.logit_tokens.size()), drafts_});
      for (int32_t t = 0; t <= drafts_; ++t) {
        plan.next_ids.push_back(~static_cast<int32_t>(plan.logit_tokens.size()));
        AddRow(s, s * (1 + drafts_) + t, cached + t + 1, &plan);
        plan.sample_rows.back().slot = -1;
      }
    }
    plan.drafts = drafts_;
    return plan;
  }

  /// `tokens` tokens of each of `count` sequences from `first` on, `cached` in the cache before.
  StepPlan Make(int32_t first, int32_t count, int32_t tokens, int32_t cached) {
    StepPlan plan;
    plan.blocks_max = static_cast<int32_t>(BlocksFor(cached + tokens, block_size_));
    plan.query_starts = {0};
    for (int32_t s = 0; s < count; ++s) {
      for (int32_t t = 0; t < tokens; ++t) {
        plan.token_ids.push_back(static_cast<int32_t>(random_() % config_.vocabulary_used));
        plan.positions.push_back(cached + t);
        plan.token_sequences.push_back(s);
      }
      plan.query_starts.push_back((s + 1) * tokens);
      plan.kv_lengths.push_back(cached + tokens);
      AddTable(first + s, &plan);
      AddRow(s, (s + 1) * tokens - 1, cached + tokens, &plan);
    }
    // The draft layer's cache is filled too.
    if (drafts_ > 0) plan.next_ids = plan.token_ids;
    return plan;
  }

 private:
  void AddTable(int32_t sequence, StepPlan* plan) const {
    for (int32_t b = 0; b < plan->blocks_max; ++b) {
      plan->block_tables.push_back(sequence * blocks_each_ + b);
    }
  }
  static void AddRow(int32_t sequence, int32_t token, int32_t position, StepPlan* plan) {
    plan->logit_tokens.push_back(token);
    SampleRow row;
    row.sequence = sequence;
    row.position = static_cast<uint32_t>(position);
    row.slot = sequence;
    plan->sample_rows.push_back(row);
  }

  const ModelConfig& config_;
  const int32_t block_size_;
  const int32_t blocks_each_;
  const int32_t drafts_;
  std::mt19937_64 random_{7};
};

class StepBench {
 public:
  StepBench(const StepBenchOptions& options, const ModelConfig& config, Machine& machine)
      : options_(options),
        config_(config),
        machine_(machine),
        plans_(config, options.block_size, BlocksFor(LengthOf(options), options.block_size),
               options.drafts) {
    terms_.peaks = PeaksOf(machine.device().Describe());
    terms_.exchange = options.ranks.gpu_exchange != "none";
    terms_.fp8_weights = options.quantization == "fp8" ||
                         config.quantization.weights != engine::WeightScaling::kNone;
    const bool fp8_cache = options.kv_cache_dtype == "fp8";
    terms_.cache_bytes = fp8_cache ? 1 : options.device == "cuda" ? 2 : ByteSize(config.dtype);
  }

  void FillCache(int32_t sequences);
  void Decode(int32_t batch);
  void Prefill(int32_t tokens);

 private:
  void Report(const char* phase, int32_t sequences, int32_t tokens, double seconds,
              double floor_seconds, const StepPlan& plan);

  const StepBenchOptions& options_;
  const ModelConfig& config_;
  Machine& machine_;
  Plans plans_;
  FloorTerms terms_;
};

/// Computes the cached tokens of the decode steps, several sequences a step.
void StepBench::FillCache(int32_t sequences) {
  const int32_t room = options_.max_num_batched_tokens;
  const int32_t chunk = std::min(options_.context, room);
  const int32_t together = std::max(1, room / std::max(chunk, 1));
  for (int32_t first = 0; first < sequences; first += together) {
    const int32_t count = std::min(together, sequences - first);
    for (int32_t cached = 0; cached < options_.context; cached += chunk) {
      machine_.Run(plans_.Make(first, count, std::min(chunk, options_.context - cached), cached));
    }
  }
}

void StepBench::Decode(int32_t batch) {
  std::vector<StepPlan> plans;
  for (int32_t i = 0; i < kPlans; ++i) plans.push_back(plans_.MakeDecode(batch, options_.context));
  // The second of a size is captured: on a shared GPU while no kernel waits for another rank.
  for (int32_t i = 0; i < 4; ++i) {
    machine_.Meet();
    machine_.Run(plans[i % kPlans]);
  }
  machine_.Meet();
  // As the engine does it: a step is issued while the one before runs.
  const Clock::time_point begin = Clock::now();
  machine_.Issue(plans[0]);
  for (int32_t i = 1; i < options_.steps; ++i) {
    machine_.Issue(plans[i % kPlans]);
    machine_.Await();
  }
  machine_.Await();
  const double seconds =
      std::chrono::duration<double>(Clock::now() - begin).count() / options_.steps;
  Report("decode", batch, options_.context, seconds,
         DecodeFloor(machine_.rank_config(), terms_, batch, options_.context), plans[0]);
}

void StepBench::Prefill(int32_t tokens) {
  const StepPlan plan = plans_.Make(0, 1, tokens, 0);
  machine_.Run(plan);
  std::vector<double> seconds;
  for (int i = 0; i < 5; ++i) {
    const Clock::time_point begin = Clock::now();
    machine_.Run(plan);
    seconds.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
  }
  std::sort(seconds.begin(), seconds.end());
  Report("prefill", 1, tokens, seconds[2], PrefillFloor(machine_.rank_config(), terms_, tokens),
         plan);
}

void StepBench::Report(const char* phase, int32_t sequences, int32_t tokens, double seconds,
                       double floor_seconds, const StepPlan& plan) {
  const bool decode = phase[0] == 'd';
  const int64_t operations = machine_.CountOperations(plan);
  std::map<std::string, TimedDevice::OpTime> times;
  if (options_.op_times) times = machine_.TimeOps(plan);
  if (machine_.rank() != 0) return;
  std::printf(
      "{\"bench\": \"step\", \"phase\": \"%s\", \"sequences\": %d, \"%s\": %d, \"layers\": %d, "
      "\"ms\": %.3f, \"tokens_per_s\": %.1f",
      phase, sequences, decode ? "context" : "tokens", tokens, config_.layers, seconds * 1e3,
      (decode ? sequences * TokensAStep(options_) : tokens) / seconds);
  if (options_.ranks.tensor_parallel_size > 1) {
    std::printf(
        ", \"tensor_parallel_size\": %d, \"gpu_exchange\": \"%s\", "
        "\"gpu_exchange_overlap\": %s",
        options_.ranks.tensor_parallel_size, options_.ranks.gpu_exchange.c_str(),
        options_.gpu_exchange_overlap ? "true" : "false");
  }
  if (decode && options_.drafts > 0) {
    std::printf(", \"drafts\": %d, \"acceptance\": %.2f", options_.drafts, options_.acceptance);
  }
  // The floor is that of a step without drafts.
  if (terms_.peaks.memory_gbps > 0 && !(decode && options_.drafts > 0)) {
    std::printf(", \"floor_ms\": %.3f, \"share\": %.3f", floor_seconds * 1e3,
                floor_seconds / seconds);
  }
  if (operations > 0) {
    std::printf(", \"operations\": %ld, \"operations_a_layer\": %.1f",
                static_cast<long>(operations),
                static_cast<double>(operations) / static_cast<double>(config_.layers));
  }
  std::printf("}\n");
  if (options_.op_times) {
    double total = 0;
    for (const auto& [name, time] : times) total += time.seconds;
    for (const auto& [name, time] : times) {
      std::printf(
          "{\"bench\": \"step\", \"phase\": \"%s\", \"sequences\": %d, \"op\": \"%s\", "
          "\"calls\": %ld, \"us\": %.2f, \"ms_all\": %.3f, \"share\": %.3f}\n",
          phase, sequences, name.c_str(), static_cast<long>(time.calls),
          time.seconds / static_cast<double>(time.calls) * 1e6, time.seconds * 1e3,
          time.seconds / total);
    }
  }
  std::fflush(stdout);
}

int32_t Largest(const std::vector<int32_t>& values) {
  return values.empty() ? 0 : *std::max_element(values.begin(), values.end());
}

int32_t SequencesOf(const StepBenchOptions& options) { return std::max(1, Largest(options.batch)); }

/// Of the largest step.
StepLimits LimitsOf(const StepBenchOptions& options, const ModelConfig& config) {
  const int64_t sequences = SequencesOf(options);
  const int64_t tokens_each = 1 + options.drafts;
  StepLimits step;
  step.tokens_max = std::max<int64_t>(options.max_num_batched_tokens, sequences * tokens_each);
  step.sequences_max = sequences;
  step.logit_rows_max = sequences * tokens_each;
  return Glm::CompleteLimits(config.OfRank(options.ranks.tensor_parallel_size), step);
}

/// The benchmark on one rank; all ranks run the same steps.
absl::Status RunStepRank(const StepBenchOptions& options, const ModelConfig& config,
                         RankSeat& seat) {
  if (seat.rank == 0) std::fprintf(stderr, "%s\n", seat.device->Describe().c_str());
  engine::StartGate& gate = *seat.gate;
  Machine machine(options, config, seat);
  const int64_t context = options.batch.empty() ? 0 : LengthOf(options);
  const int64_t prompt = Largest(options.prompt);
  const int32_t sequences = SequencesOf(options);
  // Every sequence has the blocks of its context; a prompt, which comes before, those of several.
  const absl::Status status =
      machine.SetUp(LimitsOf(options, config), std::max(context, prompt),
                    std::max(sequences * BlocksFor(context, options.block_size),
                             BlocksFor(prompt, options.block_size)));
  if (!gate.Pass(status.ok())) {
    return status.ok() ? absl::AbortedError("another rank failed to start") : status;
  }
  StepBench bench(options, config, machine);
  for (const int32_t tokens : options.prompt) bench.Prefill(tokens);
  if (!options.batch.empty()) bench.FillCache(sequences);
  for (const int32_t batch : options.batch) bench.Decode(batch);
  machine.Meet();
  return absl::OkStatus();
}

}  // namespace

absl::Status StepBenchOptions::Validate() const {
  const auto refuse = [](const std::string& field, const auto& value, const char* accepted) {
    return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, ", accepted: ", accepted));
  };
  if (device != "cpu" && device != "cuda") return refuse("device", device, "cpu, cuda");
  if (quantization != "none" && quantization != "fp8") {
    return refuse("quantization", quantization, "none, fp8");
  }
  if (kv_cache_dtype != "auto" && kv_cache_dtype != "fp8") {
    return refuse("kv_cache_dtype", kv_cache_dtype, "auto, fp8");
  }
  if (layers < 0) return refuse("layers", layers, "0 (all) and above");
  if (context < 1) return refuse("context", context, "1 and above");
  if (steps < 1) return refuse("steps", steps, "1 and above");
  if (drafts < 0 || drafts > 5) return refuse("drafts", drafts, "0 to 5");
  if (!(acceptance >= 0 && acceptance <= 1)) return refuse("acceptance", acceptance, "0 to 1");
  if (cpu_threads < 1) return refuse("cpu_threads", cpu_threads, "1 and above");
  if (load_threads < 1) return refuse("load_threads", load_threads, "1 and above");
  for (const int32_t sequences : batch) {
    if (sequences < 1 || sequences > 4096) return refuse("batch", sequences, "1 to 4096");
  }
  for (const int32_t tokens : prompt) {
    if (tokens < 1 || tokens > max_num_batched_tokens) {
      return refuse("prompt", tokens, "1 to max_num_batched_tokens");
    }
  }
  const absl::Status ranks_valid = ranks.Validate(device);
  if (!ranks_valid.ok()) return ranks_valid;
  if (batch.empty() && prompt.empty()) return refuse("batch", "empty", "some, or a prompt");
  return absl::OkStatus();
}

absl::Status RunStepBench(const StepBenchOptions& options) {
  absl::StatusOr<ModelConfig> config = ModelConfig::Read(options.model);
  if (!config.ok()) return config.status();
  if (options.drafts > 0 && config->mtp_layers == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("drafts is ", options.drafts, ", the model has no draft layer, accepted: 0"));
  }
  if (options.layers > 0 && options.layers < config->layers) {
    if (options.drafts > 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("layers is ", options.layers,
                       " with drafts, whose layer is the last, accepted: 0 (all)"));
    }
    config->layers = options.layers;
  }
  const absl::Status divides = Glm::CheckRanks(*config, options.ranks.tensor_parallel_size);
  if (!divides.ok()) return divides;
  return OnEveryRank(options.ranks, options.device, options.cpu_threads, LimitsOf(options, *config),
                     [&](RankSeat& seat) { return RunStepRank(options, *config, seat); });
}

}  // namespace glm::bench
