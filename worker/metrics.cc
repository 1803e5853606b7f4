#include "worker/metrics.h"

#include <initializer_list>
#include <limits>
#include <string>
#include <utility>

namespace glm::worker {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

prometheus::Histogram* NewHistogram(prometheus::Registry& registry, const std::string& name,
                                    const std::string& help,
                                    prometheus::Histogram::BucketBoundaries bounds) {
  return &prometheus::BuildHistogram().Name(name).Help(help).Register(registry).Add({}, bounds);
}

using LabelledValue = std::pair<std::string, double>;

/// A family of one metric a label value; an empty `label` makes a single metric without labels.
MetricFamily NewFamily(const std::string& name, const std::string& help, MetricType type,
                       const std::string& label, std::initializer_list<LabelledValue> values) {
  MetricFamily family{name, help, type, {}};
  for (const LabelledValue& value : values) {
    ClientMetric metric;
    if (!label.empty()) metric.label.push_back({label, value.first});
    if (type == MetricType::Counter) {
      metric.counter.value = value.second;
    } else {
      metric.gauge.value = value.second;
    }
    family.metric.push_back(metric);
  }
  return family;
}

MetricFamily Counter(const std::string& name, const std::string& help, double value) {
  return NewFamily(name, help, MetricType::Counter, "", {{"", value}});
}

MetricFamily Gauge(const std::string& name, const std::string& help, double value) {
  return NewFamily(name, help, MetricType::Gauge, "", {{"", value}});
}

/// How long the device stood still between two steps, as a histogram.
MetricFamily IdleHistogram(const engine::EngineStats& stats) {
  MetricFamily family{"glmserve_worker_device_idle_seconds",
                      "How long the device stood still between two steps while requests ran.",
                      MetricType::Histogram,
                      {{}}};
  auto& histogram = family.metric.back().histogram;
  for (size_t i = 0; i < engine::kIdleSecondsBounds.size(); ++i) {
    histogram.sample_count += stats.idle_gaps[i];
    histogram.bucket.push_back({histogram.sample_count, engine::kIdleSecondsBounds[i]});
  }
  histogram.sample_count += stats.idle_gaps.back();
  histogram.bucket.push_back({histogram.sample_count, std::numeric_limits<double>::infinity()});
  histogram.sample_sum = stats.idle_seconds;
  return family;
}

double Number(uint64_t count) { return static_cast<double>(count); }

void AppendPrefixCache(const engine::EngineStats& stats, std::vector<MetricFamily>* families) {
  families->push_back(Counter("glmserve_worker_prefix_cache_queried_tokens_total",
                              "Prompt tokens looked up in the prefix cache.",
                              Number(stats.prompt_tokens_queried)));
  families->push_back(Counter("glmserve_worker_prefix_cache_hit_tokens_total",
                              "Prompt tokens found in the prefix cache.",
                              Number(stats.prompt_tokens_cached)));
  families->push_back(Counter("glmserve_worker_prefix_cache_evicted_blocks_total",
                              "Blocks that the prefix cache gave up for others.",
                              Number(stats.cache_blocks_evicted)));
}

void AppendDrafts(const engine::EngineStats& stats, std::vector<MetricFamily>* families) {
  families->push_back(Counter("glmserve_worker_draft_rounds_total",
                              "Sequences' steps in which drafts were judged.",
                              Number(stats.draft_rounds)));
  families->push_back(Counter("glmserve_worker_draft_tokens_total", "Tokens drafted and judged.",
                              Number(stats.draft_tokens)));
  // The first draft has position 1; those beyond what was ever drafted say 0.
  MetricFamily accepted{"glmserve_worker_draft_accepted_tokens_total",
                        "Drafts accepted, by position.",
                        MetricType::Counter,
                        {}};
  for (size_t i = 0; i < stats.draft_accepted.size(); ++i) {
    ClientMetric metric;
    metric.label.push_back({"position", std::to_string(i + 1)});
    metric.counter.value = Number(stats.draft_accepted[i]);
    accepted.metric.push_back(metric);
  }
  families->push_back(std::move(accepted));
  families->push_back(Gauge("glmserve_worker_drafts", "Drafts a sequence and step, as chosen last.",
                            stats.drafts_now));
}

void AppendStepTimes(const engine::EngineStats& stats, std::vector<MetricFamily>* families) {
  const engine::StepTimes& times = stats.load.step_times;
  families->push_back(
      NewFamily("glmserve_worker_step_time_seconds",
                "What a step takes, as fitted: each step, sequence that decodes, prompt token "
                "computed, and token of context read.",
                MetricType::Gauge, "part",
                {{"base", 1e-6 * times.base_us},
                 {"sequence", 1e-6 * times.sequence_us},
                 {"prompt_token", 1e-6 * times.prompt_token_us},
                 {"context_token", 1e-6 * times.context_token_us}}));
  families->push_back(Gauge("glmserve_worker_step_age_seconds",
                            "Since the step under way began; 0: none is.", stats.step_age_s));
  families->push_back(Gauge("glmserve_worker_step_expected_seconds",
                            "What the step under way should take; 0: not known.",
                            stats.step_expected_s));
}

}  // namespace

WorkerMetrics::WorkerMetrics()
    : time_to_first_token_(
          NewHistogram(registry_, "glmserve_worker_time_to_first_token_seconds",
                       "From the worker's receipt of a request to its first token.",
                       {.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60})),
      inter_token_(NewHistogram(registry_, "glmserve_worker_inter_token_seconds",
                                "Between two tokens of one request.",
                                {.001, .0025, .005, .01, .015, .02, .03, .05, .1, .25, .5, 1, 5})),
      end_to_end_(NewHistogram(registry_, "glmserve_worker_request_seconds",
                               "From the worker's receipt of a request to its end.",
                               {.01, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600})),
      heartbeats_(&prometheus::BuildCounter()
                       .Name("glmserve_worker_heartbeats_total")
                       .Help("Heartbeats sent to routers, since no step had ended for a while.")
                       .Register(registry_)
                       .Add({})) {
  auto& refused = prometheus::BuildCounter()
                      .Name("glmserve_worker_sessions_refused_total")
                      .Help("Routers' sessions refused, by why.")
                      .Register(registry_);
  refused_sessions_[static_cast<size_t>(RefusedSession::kToken)] = &refused.Add({{"why", "token"}});
  refused_sessions_[static_cast<size_t>(RefusedSession::kLimit)] = &refused.Add({{"why", "limit"}});
}

std::vector<MetricFamily> WorkerMetrics::Collect() const {
  std::vector<MetricFamily> families = registry_.Collect();
  if (engine_ == nullptr) return families;
  const engine::EngineStats stats = engine_->Stats();
  families.push_back(NewFamily("glmserve_worker_requests_total", "Requests that ended, by how.",
                               MetricType::Counter, "finish",
                               {{"stop", static_cast<double>(stats.requests_finished_stop)},
                                {"length", static_cast<double>(stats.requests_finished_length)},
                                {"cancelled", static_cast<double>(stats.requests_cancelled)}}));
  families.push_back(Counter("glmserve_worker_prompt_tokens_total", "Prompt tokens computed.",
                             static_cast<double>(stats.prompt_tokens)));
  families.push_back(Counter("glmserve_worker_generated_tokens_total", "Tokens generated.",
                             static_cast<double>(stats.generated_tokens)));
  families.push_back(
      Counter("glmserve_worker_steps_total", "Engine steps.", static_cast<double>(stats.steps)));
  families.push_back(Counter("glmserve_worker_step_seconds_total",
                             "Seconds that the device spent in steps.", stats.step_seconds));
  families.push_back(IdleHistogram(stats));
  families.push_back(Gauge("glmserve_worker_requests_running", "Requests in the running batch.",
                           stats.load.requests_running));
  families.push_back(Gauge("glmserve_worker_requests_waiting", "Requests waiting for a first step.",
                           stats.load.requests_waiting));
  families.push_back(Gauge("glmserve_worker_tokens_waiting", "Prompt tokens not yet computed.",
                           static_cast<double>(stats.load.tokens_waiting)));
  families.push_back(Gauge("glmserve_worker_context_tokens",
                           "Tokens of context that the running requests hold.",
                           static_cast<double>(stats.load.context_tokens)));
  families.push_back(Gauge("glmserve_worker_kv_blocks_used", "KV blocks in use.",
                           static_cast<double>(stats.load.kv_blocks_used)));
  families.push_back(Gauge("glmserve_worker_kv_blocks_total", "KV blocks there are.",
                           static_cast<double>(stats.load.kv_blocks_total)));
  families.push_back(Counter("glmserve_worker_preemptions_total",
                             "Running requests that gave their KV blocks up, to compute anew.",
                             Number(stats.preemptions)));
  AppendPrefixCache(stats, &families);
  AppendDrafts(stats, &families);
  AppendStepTimes(stats, &families);
  return families;
}

}  // namespace glm::worker
