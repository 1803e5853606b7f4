// What the queue in front of the workers promises, held by the real exchange, fleet and queue over
// a virtual clock and network: goodput under overload, shares of tenants, and a storm of errors.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "router/admit/admission.h"
#include "router/admit/retry_after.h"
#include "router/exchange.h"
#include "router/fleet/fleet.h"
#include "router/metrics.h"
#include "router/route/placement.h"
#include "tests/router/golden_text.h"
#include "tests/router/virtual/virtual_time.h"
#include "tests/router/virtual/virtual_worker.h"

namespace glm::router {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

const TextModel& Text() {
  static const std::unique_ptr<const TextModel> model = GoldenModel(ChatDialect::kGlm45);
  return *model;
}

double MetricOf(const RouterMetrics& metrics, const std::string& name) {
  const std::string text = metrics.Text();
  const size_t begin = text.find("\n" + name + " ");
  CHECK(begin != std::string::npos) << name;
  return std::stod(text.substr(begin + name.size() + 2));
}

/// One request, and what came of it.
struct Call {
  uint64_t tenant = 0;
  Loop* loop = nullptr;
  bool left = false;
  std::unique_ptr<Exchange> exchange;
  VirtualTime::Time began;
  VirtualTime::Time first;
  VirtualTime::Time ended;
  bool has_token = false;
  bool is_over = false;
  absl::Status error;

  bool answered() const { return is_over && error.ok(); }
  double first_ms() const {
    return std::chrono::duration<double, std::milli>(first - began).count();
  }
};

double Percentile(std::vector<double> values, double share) {
  CHECK(!values.empty());
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1))];
}

/// A router over virtual workers, and clients that come by chance at a given rate.
class Cluster {
 public:
  struct Options {
    int32_t workers = 2;
    VirtualWorkerOptions worker;
    FleetOptions fleet;
    AdmitOptions admit;
    int32_t prompt_tokens = 16;
    int32_t answer_tokens = 25;
    int32_t answer_spread = 0;
  };

  explicit Cluster(Options options) : options_(std::move(options)) {
    options_.worker.vocabulary = std::max(1000, Text().tokenizer().vocabulary());
    for (int32_t i = 0; i < options_.workers; ++i) {
      workers_.push_back(std::make_unique<VirtualWorker>(&time_, absl::StrCat("worker-", i),
                                                         options_.worker, PlantedBugs{}));
      network_.Add(workers_.back().get());
      options_.fleet.workers.push_back(workers_.back()->address());
    }
    const std::vector<Loop*> loops{&loops_[0], &loops_[1]};
    admission_ = std::make_unique<Admission>(
        options_.admit, *ParseHashKey(""),
        AdmissionRooms{
            .loop = loops[0], .metrics = &metrics_, .room = [this] { return fleet_->Room(); }});
    fleet_ = std::make_unique<Fleet>(options_.fleet,
                                     WorkerDemand{"tiny", Text().tokenizer().vocabulary()},
                                     FleetRooms{.loops = loops,
                                                .index = &placement_.index(),
                                                .metrics = &metrics_,
                                                .dial = network_.dialer(),
                                                .on_room = [this] { admission_->RoomChanged(); }},
                                     nullptr);
    fleet_->Start();
    Pass(seconds(1));
    EXPECT_EQ(fleet_->Snapshot()->ready, options_.workers);
  }

  ~Cluster() {
    StopOffers();
    for (const auto& call : calls_) Leave(call.get());
    EXPECT_EQ(admission_->counts(), Admission::Counts{});
    fleet_->BeginStop();
    Pass(seconds(1));
    fleet_->Stop();
  }

  void Pass(std::chrono::microseconds time) { time_.RunUntil(time_.now() + time); }

  Call* Ask(uint64_t tenant) {
    calls_.push_back(std::make_unique<Call>());
    Call* const call = calls_.back().get();
    call->tenant = tenant;
    VirtualLoop* const loop = &loops_[calls_.size() % 2];
    call->loop = loop;
    loop->Post([this, call, loop] {
      if (call->left) return;
      ExchangeRequest request;
      std::vector<int32_t> ids;
      for (int32_t i = 0; i < options_.prompt_tokens; ++i) {
        ids.push_back(static_cast<int32_t>(time_.Draw(300, 999)));
      }
      request.prompt = std::move(ids);
      // Of all lengths, or all that began together would end together.
      const int32_t spread = options_.answer_spread;
      request.max_tokens =
          options_.answer_tokens + static_cast<int32_t>(time_.Draw(-spread, spread));
      request.tenant = {.high = 1, .low = call->tenant};
      call->began = time_.now();
      ExchangeRooms rooms{.loop = loop,
                          .fleet = fleet_.get(),
                          .admission = admission_.get(),
                          .placement = &placement_,
                          .text = &Text(),
                          .metrics = &metrics_,
                          .model_name = "tiny",
                          .options = {}};
      call->exchange =
          Exchange::Start(rooms, std::move(request),
                          {.on_delta =
                               [this, call](const AnswerDelta& delta) {
                                 if (!call->has_token) call->first = time_.now();
                                 call->has_token = true;
                                 if (delta.end.has_value()) End(call, {});
                               },
                           .on_error = [this, call](absl::Status status) { End(call, status); }});
    });
    return call;
  }

  /// Requests of `tenant` at `rate` a second, for as long as the cluster lives.
  void Offer(uint64_t tenant, double rate) {
    const double wait_s = -std::log(1 - static_cast<double>(time_.Draw(0, 999'999)) / 1e6) / rate;
    time_.After(std::chrono::microseconds(static_cast<int64_t>(wait_s * 1e6)),
                [this, tenant, rate] {
                  if (!offering_) return;
                  Ask(tenant);
                  Offer(tenant, rate);
                });
  }
  void StopOffers() { offering_ = false; }

  void Leave(Call* call) {
    call->loop->Run([&] {
      call->exchange = nullptr;
      call->left = true;
    });
  }

  /// Answers that ended in [begin, now), a second.
  double GoodputSince(VirtualTime::Time begin) const {
    const auto good = std::count_if(calls_.begin(), calls_.end(), [&](const auto& call) {
      return call->answered() && call->ended >= begin;
    });
    return static_cast<double>(good) / std::chrono::duration<double>(time_.now() - begin).count();
  }

  VirtualTime& time() { return time_; }
  RouterMetrics& metrics() { return metrics_; }
  Admission& admission() { return *admission_; }
  Fleet& fleet() { return *fleet_; }
  VirtualWorker& worker(size_t i) { return *workers_[i]; }
  const std::vector<std::unique_ptr<Call>>& calls() const { return calls_; }

 private:
  void End(Call* call, const absl::Status& status) {
    call->is_over = true;
    call->ended = time_.now();
    call->error = status;
  }

  Options options_;
  VirtualTime time_{7};
  VirtualNetwork network_{&time_};
  RouterMetrics metrics_;
  Placement placement_{Policy::kLeastLoad, *ParseHashKey(""), 1000, 1000};
  std::vector<std::unique_ptr<VirtualWorker>> workers_;
  VirtualLoop loops_[2] = {{&time_, 0}, {&time_, 1}};
  std::unique_ptr<Admission> admission_;
  std::unique_ptr<Fleet> fleet_;
  std::vector<std::unique_ptr<Call>> calls_;
  bool offering_ = true;
};

/// Two workers of 8 sequences, steps of 20 ms, answers of 25 tokens: about 32 requests a second.
Cluster::Options Small() {
  Cluster::Options options;
  options.worker.sequences_max = 8;
  options.worker.step_us = 20'000;
  options.worker.prompt_tokens_per_step = 128;
  options.admit.queue_wait_max_ms = 2000;
  options.admit.queue_tenant_share = 1;
  return options;
}

/// The most that the fleet answers: many clients that ask again as soon as they may.
double PeakGoodput(Cluster::Options options) {
  options.fleet.worker_queue_requests = 100;
  options.admit.queue_wait_max_ms = 3'600'000;
  options.worker.waiting_max = 1000;
  Cluster cluster(options);
  for (int i = 0; i < 2000; ++i) cluster.Ask(1);
  cluster.Pass(seconds(5));
  const auto begin = cluster.time().now();
  cluster.Pass(seconds(20));
  return cluster.GoodputSince(begin);
}

TEST(Overload, TwiceTheLoadIsAnsweredAsFastAsTheFleetCan) {
  const double peak = PeakGoodput(Small());
  Cluster cluster(Small());
  cluster.Offer(1, 2 * peak);
  cluster.Pass(seconds(10));
  const auto begin = cluster.time().now();
  cluster.Pass(seconds(300));
  const double goodput = cluster.GoodputSince(begin);
  int64_t refused = 0;
  std::vector<double> first_ms;
  for (const auto& call : cluster.calls()) {
    if (!call->is_over) continue;
    if (call->error.ok()) {
      first_ms.push_back(call->first_ms());
      continue;
    }
    ++refused;
    ASSERT_TRUE(absl::IsResourceExhausted(call->error)) << call->error;
    ASSERT_TRUE(RetryAfterOf(call->error).has_value());
    ASSERT_LE(*RetryAfterOf(call->error), 4);
    ASSERT_LT(call->ended - call->began, milliseconds(10));
  }
  std::cout << "peak " << peak << " requests/s, at 200 % " << goodput << " and " << refused
            << " refused of " << cluster.calls().size() << "; first token p50 "
            << Percentile(first_ms, 0.5) << " ms, p99 " << Percentile(first_ms, 0.99) << " ms\n";
  EXPECT_GE(goodput, 0.95 * peak);
  EXPECT_GT(refused, 8000);
  EXPECT_LE(Percentile(first_ms, 0.99), 3000);  // the wait that is allowed, and the way
}

/// First-token times of quiet tenants, with or without a loud one at 50 times the rate of each.
/// Four workers of 64 sequences, steps of 100 ms, answers of 20 tokens: about 120 requests a
/// second.
std::vector<double> QuietTenants(bool loud) {
  Cluster::Options options;
  options.workers = 4;
  options.worker.sequences_max = 64;
  options.worker.step_us = 100'000;
  options.worker.prompt_tokens_per_step = 2000;
  options.prompt_tokens = 200;
  options.answer_tokens = 20;
  options.answer_spread = 15;
  options.fleet.worker_queue_requests = 1;
  Cluster cluster(options);
  constexpr double kRate = 5;
  for (uint64_t tenant = 1; tenant <= 4; ++tenant) cluster.Offer(tenant, kRate);
  if (loud) cluster.Offer(99, 50 * kRate);
  cluster.Pass(seconds(20));
  const auto begin = cluster.time().now();
  cluster.Pass(seconds(30));
  cluster.StopOffers();
  cluster.Pass(seconds(20));
  std::vector<double> first_ms;
  for (const auto& call : cluster.calls()) {
    if (call->tenant == 99 || call->began < begin) continue;
    EXPECT_TRUE(call->answered()) << call->error;
    if (call->answered()) first_ms.push_back(call->first_ms());
  }
  return first_ms;
}

TEST(Overload, ALoudTenantDoesNotMakeOthersWait) {
  const std::vector<double> alone = QuietTenants(false);
  const std::vector<double> beside = QuietTenants(true);
  std::cout << "first token p50 " << Percentile(alone, 0.5) << " ms alone, "
            << Percentile(beside, 0.5) << " beside a loud one; p99 " << Percentile(alone, 0.99)
            << " and " << Percentile(beside, 0.99) << "\n";
  // It waits for the next step that ends an answer, and for another to begin; not for the loud
  // one's queue, which is tens of seconds long.
  EXPECT_LE(Percentile(beside, 0.99), Percentile(alone, 0.99) + 500);
}

TEST(Overload, AStormOfErrorsIsNotMadeWorse) {
  Cluster::Options options = Small();
  options.workers = 8;
  options.worker.step_us = 5000;
  Cluster cluster(options);
  cluster.Offer(1, 200);
  cluster.Pass(seconds(5));
  int64_t submits_before = 0;
  for (size_t i = 0; i < 8; ++i) submits_before += cluster.worker(i).submits();
  const size_t offered_before = cluster.calls().size();
  for (size_t i = 0; i < 8; ++i) cluster.worker(i).Refuse(absl::InternalError("storm"));
  for (int i = 0; i < 500; ++i) {
    cluster.Pass(milliseconds(10));
    ASSERT_LE(cluster.fleet().Snapshot()->ejected, 4);
  }
  int64_t submits = -submits_before;
  for (size_t i = 0; i < 8; ++i) submits += cluster.worker(i).submits();
  const auto offered = static_cast<double>(cluster.calls().size() - offered_before);
  std::cout << "storm: " << offered << " requests, " << submits << " attempts, "
            << MetricOf(cluster.metrics(), "glmserve_router_worker_ejections_total")
            << " ejections\n";
  EXPECT_LE(static_cast<double>(submits), 1.1 * offered);
  EXPECT_GT(MetricOf(cluster.metrics(), "glmserve_router_retries_denied_total"), 0);
  EXPECT_GT(MetricOf(cluster.metrics(), "glmserve_router_worker_ejections_total"), 0);

  for (size_t i = 0; i < 8; ++i) cluster.worker(i).Refuse(absl::OkStatus());
  const auto over = cluster.time().now();
  cluster.Pass(seconds(5));
  EXPECT_EQ(cluster.fleet().Snapshot()->ejected, 0);
  for (const auto& call : cluster.calls()) {
    if (call->began < over + milliseconds(100)) continue;
    EXPECT_TRUE(!call->is_over || call->answered()) << call->error;
  }
  cluster.Pass(seconds(5));
}

TEST(Overload, OneBadWorkerIsKeptOut) {
  Cluster::Options options = Small();
  options.workers = 4;
  options.worker.step_us = 5000;
  Cluster cluster(options);
  cluster.worker(1).Refuse(absl::UnknownError("its own"));
  cluster.Offer(1, 100);
  cluster.Pass(seconds(60));
  int64_t failed = 0;
  for (const auto& call : cluster.calls()) failed += call->is_over && !call->error.ok() ? 1 : 0;
  // It answers its errors at once and so seems idle; without ejection it would draw them all.
  EXPECT_LE(cluster.worker(1).submits(), 100);
  EXPECT_EQ(failed, 0);
}

TEST(Overload, ADrainCostsNoRetryBudget) {
  Cluster::Options options = Small();
  options.workers = 2;
  options.admit.retry_percent = 0;
  options.admit.retry_burst = 0;
  Cluster cluster(options);
  cluster.Pass(seconds(1));
  // The requests and the word that it drains cross on the way.
  for (int i = 0; i < 12; ++i) cluster.Ask(1);
  cluster.worker(0).Drain();
  cluster.Pass(seconds(20));
  ASSERT_EQ(cluster.calls().size(), 12u);
  for (const auto& call : cluster.calls()) EXPECT_TRUE(call->answered()) << call->error;
  EXPECT_GT(MetricOf(cluster.metrics(), "glmserve_router_retries_total{reason=\"refused\"}"), 0);
}

TEST(Overload, RequestsThatLeaveInAnyPhaseLeaveNothingBehind) {
  Cluster cluster(Small());
  for (int i = 0; i < 400; ++i) {
    cluster.Pass(milliseconds(cluster.time().Draw(0, 20)));
    cluster.Ask(static_cast<uint64_t>(cluster.time().Draw(1, 3)));
    if (i == 150) cluster.worker(0).Kill();
    if (i == 250) cluster.worker(1).Kill();
    if (i == 300) cluster.worker(0).Start();
    // Wherever it stands: in the queue, when it is its turn, at a worker, on its way elsewhere.
    const auto& calls = cluster.calls();
    if (i > 20 && i % 2 == 0) {
      cluster.Leave(calls[calls.size() - static_cast<size_t>(cluster.time().Draw(1, 20))].get());
    }
  }
  for (const auto& call : cluster.calls()) cluster.Leave(call.get());
  EXPECT_EQ(cluster.admission().counts(), Admission::Counts{});
  for (const char* const gauge : {"requests_open", "requests_waiting", "tokens_waiting",
                                  "requests_running", "prompt_bytes"}) {
    EXPECT_EQ(MetricOf(cluster.metrics(), absl::StrCat("glmserve_router_", gauge)), 0) << gauge;
  }
}

}  // namespace
}  // namespace glm::router
