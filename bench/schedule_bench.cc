#include "bench/schedule_bench.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <deque>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "engine/engine_loop.h"
#include "engine/rank/step_runner.h"
#include "engine/schedule/scheduler.h"
#include "proto/base/log.h"
#include "proto/base/mutex.h"

namespace glm::bench {
namespace {

using Clock = std::chrono::steady_clock;
using engine::StepPlan;
using engine::StepResult;

constexpr int32_t kVocabulary = 151552;
constexpr int32_t kBudget = 8192;

double Microseconds(Clock::duration duration) {
  return std::chrono::duration<double, std::micro>(duration).count();
}

double Quantile(std::vector<double> values, double share) {
  const auto at = static_cast<size_t>(share * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + at, values.end());
  return values[at];
}

engine::SchedulerLimits LimitsOf(const ScheduleBenchOptions& options, int32_t plans_in_flight) {
  engine::SchedulerLimits limits;
  limits.block_size = options.block_size;
  limits.length_max = options.prompt_tokens + (options.steps + 100) * (1 + options.drafts);
  const int64_t blocks = limits.length_max / options.block_size + 2;
  limits.kv_blocks = blocks * options.sequences;
  limits.sequences_max = options.sequences;
  limits.batched_tokens_max = std::max(kBudget, options.sequences * (1 + options.drafts));
  limits.logit_rows_max = options.sequences * (1 + options.drafts);
  limits.vocabulary = kVocabulary;
  limits.plans_in_flight_max = plans_in_flight;
  limits.drafts_max = options.drafts;
  limits.adaptive_drafts = false;
  limits.prefix_caching = options.prefix_caching;
  return limits;
}

engine::Request RequestOf(const ScheduleBenchOptions& options, engine::RequestId id,
                          int32_t max_tokens) {
  engine::Request request;
  request.id = id;
  for (int32_t i = 0; i < options.prompt_tokens; ++i) {
    request.prompt_ids.push_back(static_cast<int32_t>((id * 7919 + i * 31) % kVocabulary));
  }
  request.stop.max_tokens = max_tokens;
  request.stop.stop_ids = {kVocabulary - 1, kVocabulary - 2, kVocabulary - 3};
  return request;
}

/// Ids that end nothing; every second draft is right.
StepResult ResultOf(const StepPlan& plan) {
  StepResult result;
  result.step = plan.step;
  result.seconds = 0.001;
  for (size_t r = 0; r < plan.logit_tokens.size(); ++r) {
    result.ids.push_back(static_cast<int32_t>((plan.step * 13 + r) % 1000));
    const auto next = static_cast<size_t>(plan.logit_tokens[r]) + 1;
    const bool draft_next = next < plan.token_ids.size() && r + 1 < plan.logit_tokens.size() &&
                            plan.sample_rows[r].sequence == plan.sample_rows[r + 1].sequence;
    if (draft_next && (plan.step + r) % 2 == 0) result.ids.back() = plan.token_ids[next];
  }
  result.drafts.assign(plan.draft_rows.size() * plan.drafts, 2000);
  return result;
}

void MeasureScheduler(const ScheduleBenchOptions& options) {
  const int32_t depth = options.drafts > 0 ? 1 : 2;
  const engine::SchedulerLimits limits = LimitsOf(options, depth);
  engine::Scheduler scheduler(limits);
  for (int32_t i = 0; i < options.sequences; ++i) {
    scheduler.Admit(RequestOf(options, i + 1, limits.length_max - options.prompt_tokens));
  }
  std::vector<StepPlan> plans(depth);
  std::vector<double> plan_us;
  std::vector<double> apply_us;
  std::vector<double> host_us;
  uint64_t planned = 0;
  uint64_t applied = 0;
  while (static_cast<int32_t>(host_us.size()) < options.steps) {
    const Clock::time_point begin = Clock::now();
    CHECK(scheduler.Plan(&plans[planned % depth]));
    const Clock::time_point plan_end = Clock::now();
    const bool decodes = plans[planned++ % depth].token_ids.size() <=
                         static_cast<size_t>(options.sequences) * (1 + options.drafts);
    if (scheduler.plans_in_flight() < depth) continue;
    const StepPlan& plan = plans[applied++ % depth];
    const StepResult result = ResultOf(plan);
    engine::StepEvents events;
    const Clock::time_point apply_begin = Clock::now();
    scheduler.Apply(plan, result, &events);
    scheduler.TakeCacheChanges(&events);
    const Clock::time_point end = Clock::now();
    if (!decodes || events.requests.size() < static_cast<size_t>(options.sequences)) continue;
    plan_us.push_back(Microseconds(plan_end - begin));
    apply_us.push_back(Microseconds(end - apply_begin));
    host_us.push_back(plan_us.back() + apply_us.back());
  }
  std::printf(
      "{\"benchmark\": \"schedule\", \"sequences\": %d, \"plans_in_flight\": %d, \"drafts\": %d, "
      "\"prefix_caching\": %s, \"plan_us\": %.1f, \"apply_us\": %.1f, \"host_us\": %.1f, "
      "\"host_us_p99\": %.1f}\n",
      options.sequences, depth, options.drafts, options.prefix_caching ? "true" : "false",
      Quantile(plan_us, 0.5), Quantile(apply_us, 0.5), Quantile(host_us, 0.5),
      Quantile(host_us, 0.99));
}

/// A device that is busy for a set time a step, one step after the other.
class IdleDevice final : public engine::StepRunner {
 public:
  explicit IdleDevice(std::chrono::microseconds step) : step_(step) {}

  void Submit(const StepPlan* plan) override {
    const Clock::time_point now = Clock::now();
    if (steps_ > 0 && plan->token_ids.size() == decode_tokens_) {
      idle_us_.push_back(std::max(0.0, Microseconds(now - free_)));
    }
    decode_tokens_ = plan->token_ids.size();
    free_ = std::max(now, free_) + step_;
    open_.push_back({plan, free_});
    ++steps_;
  }
  StepResult Wait() override {
    const auto [plan, end] = open_.front();
    open_.pop_front();
    StepResult result = ResultOf(*plan);
    std::this_thread::sleep_until(end);
    return result;
  }
  const std::vector<double>& idle_us() const { return idle_us_; }

 private:
  const std::chrono::microseconds step_;
  Clock::time_point free_{};  // end of the last step handed over
  std::deque<std::pair<const StepPlan*, Clock::time_point>> open_;
  std::vector<double> idle_us_;  // of the device before each decode step
  size_t decode_tokens_ = 0;
  uint64_t steps_ = 0;
};

void MeasureOverlap(const ScheduleBenchOptions& options, int32_t depth) {
  const engine::SchedulerLimits limits = LimitsOf(options, depth);
  engine::EngineShape shape;
  shape.vocabulary = limits.vocabulary;
  shape.length_max = limits.length_max;
  shape.block_size = limits.block_size;
  shape.kv_blocks_total = limits.kv_blocks;
  shape.sequences_max = limits.sequences_max;
  shape.prefix_caching = limits.prefix_caching;
  shape.drafts_max = limits.drafts_max;
  Mutex mutex;
  Condition changed;
  int32_t ends = 0;
  auto runner = std::make_unique<IdleDevice>(std::chrono::microseconds(options.step_us));
  const IdleDevice* device = runner.get();
  engine::EngineLoop loop(shape, limits, options.sequences, std::move(runner),
                          [&](engine::StepEvents&& events) {
                            MutexLock lock(&mutex);
                            for (const engine::RequestEvent& event : events.requests) {
                              ends += event.finish != engine::FinishReason::kNone ? 1 : 0;
                            }
                            changed.SignalAll();
                          });
  for (int32_t i = 0; i < options.sequences; ++i) {
    const absl::Status status =
        loop.Submit(RequestOf(options, i + 1, options.steps * (1 + options.drafts)));
    CHECK(status.ok()) << status.message();
  }
  {
    MutexLock lock(&mutex);
    while (ends < options.sequences) changed.Wait(&mutex);
  }
  loop.Stop();
  const std::vector<double>& idle = device->idle_us();
  std::printf(
      "{\"benchmark\": \"overlap\", \"sequences\": %d, \"plans_in_flight\": %d, \"drafts\": %d, "
      "\"step_us\": %d, \"idle_us\": %.1f, \"idle_us_p99\": %.1f, \"busy\": %.4f}\n",
      options.sequences, depth, options.drafts, options.step_us, Quantile(idle, 0.5),
      Quantile(idle, 0.99), options.step_us / (options.step_us + Quantile(idle, 0.5)));
}

}  // namespace

absl::Status ScheduleBenchOptions::Validate() const {
  const auto check = [](const char* name, int64_t value, int64_t min, int64_t max) {
    if (value >= min && value <= max) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrFormat("%s is %d, must be in [%d, %d]", name, value, min, max));
  };
  absl::Status status = check("sequences", sequences, 1, 4096);
  status.Update(check("prompt_tokens", prompt_tokens, 1, 100000));
  status.Update(check("steps", steps, 10, 100000));
  status.Update(check("step_us", step_us, 1, 1000000));
  status.Update(check("block_size", block_size, 1, 128));
  status.Update(check("drafts", drafts, 0, 5));
  return status;
}

absl::Status RunScheduleBench(const ScheduleBenchOptions& options) {
  MeasureScheduler(options);
  MeasureOverlap(options, 1);
  if (options.drafts == 0) MeasureOverlap(options, 2);
  return absl::OkStatus();
}

}  // namespace glm::bench
