#include "bench/engine_bench.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/engine.h"
#include "proto/base/log.h"
#include "proto/base/mutex.h"

namespace glm::bench {
namespace {

using engine::Engine;
using engine::EngineStats;
using engine::FinishReason;
using engine::RequestId;

constexpr int32_t kWarmUpTokens = 16;  // of every sequence, before the clock starts
constexpr int32_t kTokensAStep = 4096;

/// What the sink has seen of the requests of one batch, and the engine's figures between two points
/// of it. They are read on the engine thread, where no step can come between.
class Progress {
 public:
  /// Before the requests are submitted: `count` of them, measured for `steps` steps once each has
  /// made its warm-up tokens.
  void Begin(const Engine* engine, size_t count, int32_t steps) {
    MutexLock lock(&mutex_);
    engine_ = engine;
    count_ = count;
    steps_ = steps;
    tokens_.clear();
    ended_ = 0;
    before_.reset();
    after_.reset();
  }
  void Take(const engine::StepEvents& events) {
    MutexLock lock(&mutex_);
    for (const engine::RequestEvent& event : events.requests) {
      tokens_[event.id] += static_cast<int32_t>(event.token_ids.size());
      ended_ += event.finish != FinishReason::kNone ? 1 : 0;
    }
    if (!before_.has_value() && Reached(kWarmUpTokens)) before_ = engine_->Stats();
    if (!after_.has_value() && Reached(kWarmUpTokens + steps_)) after_ = engine_->Stats();
    if (ended_ == count_) changed_.SignalAll();
  }
  /// Blocks until all requests ended, and gives the figures at the two points.
  std::pair<EngineStats, EngineStats> AwaitEnd() {
    MutexLock lock(&mutex_);
    while (ended_ < count_) changed_.Wait(&mutex_);
    CHECK(before_.has_value() && after_.has_value()) << "answers shorter than AnswerTokens";
    return {*before_, *after_};
  }

 private:
  bool Reached(int32_t tokens) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (tokens_.size() < count_) return false;
    return std::all_of(tokens_.begin(), tokens_.end(),
                       [&](const auto& entry) { return entry.second >= tokens; });
  }

  Mutex mutex_;
  Condition changed_;
  const Engine* engine_ ABSL_GUARDED_BY(mutex_) = nullptr;
  size_t count_ ABSL_GUARDED_BY(mutex_) = 0;
  int32_t steps_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<RequestId, int32_t> tokens_ ABSL_GUARDED_BY(mutex_);
  size_t ended_ ABSL_GUARDED_BY(mutex_) = 0;
  std::optional<EngineStats> before_ ABSL_GUARDED_BY(mutex_);
  std::optional<EngineStats> after_ ABSL_GUARDED_BY(mutex_);
};

int32_t Largest(const EngineBenchOptions& options) {
  return *std::max_element(options.batch.begin(), options.batch.end());
}

/// Tokens of each answer: the first sequences go on while the prompts of the last are computed, and
/// none may end before the clock stops.
int32_t AnswerTokens(const EngineBenchOptions& options) {
  const int64_t prompt_steps =
      int64_t{Largest(options)} * (options.context + kTokensAStep) / kTokensAStep + 2;
  return static_cast<int32_t>(options.steps + 2 * kWarmUpTokens + prompt_steps) *
         (1 + options.drafts);
}

engine::EngineOptions EngineOptionsOf(const EngineBenchOptions& options) {
  const int32_t sequences = Largest(options);
  engine::EngineOptions out;
  out.model = options.model;
  out.load_format = "dummy";
  out.device = options.device;
  out.device_index = options.ranks.device_index;
  out.tensor_parallel_size = options.ranks.tensor_parallel_size;
  out.ranks_per_device = options.ranks.ranks_per_device;
  out.gpu_exchange = options.ranks.gpu_exchange;
  out.load_threads = options.load_threads;
  out.quantization = options.quantization;
  out.kv_cache_dtype = options.kv_cache_dtype;
  out.max_num_seqs = sequences;
  out.num_speculative_tokens = options.drafts;
  out.adaptive_drafts = false;
  out.enable_prefix_caching = false;
  out.max_num_batched_tokens = std::max(kTokensAStep, sequences * (1 + options.drafts));
  out.max_model_len = options.context + AnswerTokens(options);
  // What a sequence drafts may reach into one block more.
  const int64_t blocks = out.max_model_len / out.block_size + 2;
  out.kv_blocks = blocks * sequences;
  out.max_waiting_requests = std::max(sequences, out.max_waiting_requests);
  return out;
}

void Report(int32_t batch, const EngineBenchOptions& options, const EngineStats& before,
            const EngineStats& after) {
  const auto steps = static_cast<double>(after.steps - before.steps);
  const double seconds = after.step_seconds - before.step_seconds;
  uint64_t gaps = 0;
  std::string histogram;
  for (size_t i = 0; i < after.idle_gaps.size(); ++i) {
    const uint64_t count = after.idle_gaps[i] - before.idle_gaps[i];
    gaps += count;
    const std::string bound = i < engine::kIdleSecondsBounds.size()
                                  ? absl::StrCat(engine::kIdleSecondsBounds[i] * 1e6)
                                  : "more";
    absl::StrAppend(&histogram, i == 0 ? "" : ", ", "\"", bound, "\": ", count);
  }
  std::printf(
      "{\"bench\": \"engine\", \"sequences\": %d, \"context\": %d, \"drafts\": %d, \"steps\": "
      "%.0f, \"ms\": %.3f, \"tokens_per_s\": %.1f, \"idle_us\": %.1f, \"idle_gaps_up_to_us\": "
      "{%s}}\n",
      batch, options.context, options.drafts, steps, seconds / steps * 1e3,
      static_cast<double>(after.generated_tokens - before.generated_tokens) / seconds,
      (after.idle_seconds - before.idle_seconds) /
          static_cast<double>(std::max<uint64_t>(gaps, 1)) * 1e6,
      histogram.c_str());
  std::fflush(stdout);
}

absl::Status RunBatch(Engine& engine, Progress& progress, const EngineBenchOptions& options,
                      int32_t batch, RequestId first_id) {
  progress.Begin(&engine, static_cast<size_t>(batch), options.steps);
  std::mt19937_64 random(first_id);
  const int32_t tokens = AnswerTokens(options);
  for (int32_t i = 0; i < batch; ++i) {
    engine::Request request;
    request.id = first_id + i;
    for (int32_t t = 0; t < options.context; ++t) {
      request.prompt_ids.push_back(static_cast<int32_t>(random() % engine.shape().vocabulary));
    }
    request.stop.max_tokens = tokens;
    request.stop.min_tokens = tokens;
    const absl::Status status = engine.Submit(std::move(request));
    if (!status.ok()) return status;
  }
  const auto [before, after] = progress.AwaitEnd();
  Report(batch, options, before, after);
  return absl::OkStatus();
}

}  // namespace

absl::Status EngineBenchOptions::Validate() const {
  const auto refuse = [](const std::string& field, const auto& value, const char* accepted) {
    return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, ", accepted: ", accepted));
  };
  if (batch.empty()) return refuse("batch", "empty", "one or more numbers");
  for (const int32_t sequences : batch) {
    if (sequences < 1 || sequences > 4096) return refuse("batch", sequences, "1 to 4096");
  }
  if (context < 1 || context > 1'000'000) return refuse("context", context, "1 to 1000000");
  if (steps < 1 || steps > 100'000) return refuse("steps", steps, "1 to 100000");
  if (drafts < 0 || drafts > 5) return refuse("drafts", drafts, "0 to 5");
  return absl::OkStatus();
}

absl::Status RunEngineBench(const EngineBenchOptions& options) {
  Progress progress;
  absl::StatusOr<std::unique_ptr<Engine>> engine =
      Engine::Create(EngineOptionsOf(options),
                     [&progress](engine::StepEvents&& events) { progress.Take(events); });
  if (!engine.ok()) return engine.status();
  RequestId first_id = 1;
  for (const int32_t batch : options.batch) {
    const absl::Status status = RunBatch(**engine, progress, options, batch, first_id);
    if (!status.ok()) return status;
    first_id += batch;
  }
  (*engine)->Stop();
  return absl::OkStatus();
}

}  // namespace glm::bench
