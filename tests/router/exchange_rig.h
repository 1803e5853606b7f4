// A router without fronts: loops, fleet, text model and metrics over scripted workers, and a client
// that collects what an exchange tells it.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "router/admit/admission.h"
#include "router/exchange.h"
#include "router/fleet/fleet.h"
#include "router/fleet/grpc_stream.h"
#include "router/metrics.h"
#include "router/route/placement.h"
#include "router/text/text_model.h"
#include "router/thread_loop.h"
#include "tests/router/golden_text.h"
#include "tests/support/fake_worker.h"

namespace glm::router {

class ExchangeRig {
 public:
  ~ExchangeRig() {
    if (fleet_ != nullptr) fleet_->Stop();
  }

  /// Options of a worker that fits the golden tokenizer.
  FakeWorkerOptions WorkerOptions() const {
    FakeWorkerOptions options;
    options.vocabulary = text().tokenizer().vocabulary();
    options.eos_ids = {*text().tokenizer().FindToken("<|endoftext|>"),
                       *text().tokenizer().FindToken("<|user|>")};
    return options;
  }
  /// Answers `script` after a prompt of `prompt_tokens`, then the first end id.
  FakeWorkerOptions Scripted(size_t prompt_tokens, std::vector<int32_t> script) const {
    FakeWorkerOptions options = WorkerOptions();
    options.next_token = [prompt_tokens, script = std::move(script),
                          eos = options.eos_ids[0]](const std::vector<int32_t>& ids) {
      const size_t place = ids.size() - prompt_tokens;
      return place < script.size() ? script[place] : eos;
    };
    return options;
  }

  FakeWorker* AddWorker(FakeWorkerOptions options) {
    workers_.push_back(FakeWorker::Start(std::move(options)));
    fleet_options.workers.push_back(workers_.back()->address());
    return workers_.back().get();
  }
  /// Starts the fleet and waits until `ready` workers are.
  void Start(int32_t ready) {
    admission_ = std::make_unique<Admission>(
        admit_options, *ParseHashKey(""),
        AdmissionRooms{.loop = &loops_.at(0), .metrics = &metrics_, .room = [this] {
                         return fleet_->Room();
                       }});
    fleet_ = std::make_unique<Fleet>(fleet_options,
                                     WorkerDemand{"tiny", text().tokenizer().vocabulary()},
                                     FleetRooms{.loops = loops_.all(),
                                                .index = &placement->index(),
                                                .metrics = &metrics_,
                                                .dial = DialOverGrpc(fleet_options),
                                                .on_room = [this] { admission_->RoomChanged(); }},
                                     [this](const FleetSnapshot& snapshot) {
                                       const std::lock_guard<std::mutex> lock(mutex_);
                                       ready_ = snapshot.ready;
                                       changed_.notify_all();
                                     });
    fleet_->Start();
    ASSERT_TRUE(AwaitReady(ready));
  }
  bool AwaitReady(int32_t ready) {
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(30), [&] { return ready_ == ready; });
  }

  ExchangeRooms Rooms(int32_t loop_index = 0) {
    return {.loop = &loops_.at(loop_index),
            .fleet = fleet_.get(),
            .admission = admission_.get(),
            .placement = placement.get(),
            .text = &text(),
            .metrics = &metrics_,
            .model_name = "tiny",
            .options = exchange_options};
  }
  LoopPool* loops() { return &loops_; }
  Fleet* fleet() { return fleet_.get(); }
  Admission* admission() { return admission_.get(); }
  RouterMetrics* metrics() { return &metrics_; }

  static const TextModel& text() {
    static const std::unique_ptr<const TextModel> model = GoldenModel(ChatDialect::kGlm45);
    return *model;
  }

  /// Workers that are stepped by hand are no hung ones.
  FleetOptions fleet_options{
      .backoff_initial_ms = 5, .backoff_max_ms = 20, .hang_timeout_ms = 600'000};
  AdmitOptions admit_options;
  ExchangeOptions exchange_options;
  std::unique_ptr<Placement> placement = MakePlacement(Policy::kPrefix);

  static std::unique_ptr<Placement> MakePlacement(Policy policy) {
    return std::make_unique<Placement>(policy, *ParseHashKey(""), /*prefix_blocks_max=*/10'000,
                                       /*expect_ms=*/10'000);
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int32_t ready_ = 0;
  RouterMetrics metrics_;
  std::vector<std::unique_ptr<FakeWorker>> workers_;
  LoopPool loops_{2};
  std::unique_ptr<Admission> admission_;
  std::unique_ptr<Fleet> fleet_;
};

/// One client of an exchange; made and asked from the test's thread.
class ExchangeClient {
 public:
  ExchangeClient(const ExchangeRooms& rooms, ExchangeRequest request) : loop_(rooms.loop) {
    loop_->Run([&] {
      exchange_ = Exchange::Start(rooms, std::move(request),
                                  {.on_delta = [this](AnswerDelta delta) { Take(delta); },
                                   .on_error = [this](const absl::Status& e) { Take(e); }});
    });
  }
  ~ExchangeClient() { Leave(); }

  /// Destroys the exchange, as a client that closes its connection does.
  void Leave() {
    loop_->Run([this] { exchange_ = nullptr; });
  }
  /// Destroys the exchange inside its next delta.
  void LeaveAtNextDelta() {
    loop_->Run([this] { leave_at_delta_ = true; });
  }
  bool AwaitEnd() {
    return Await([this] { return end.has_value() || error.has_value(); });
  }
  bool AwaitTokens(size_t count) {
    return Await([this, count] { return token_ids.size() >= count; });
  }
  template <typename Condition>
  bool Await(Condition condition) {
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(30), condition);
  }

  // Read after an Await that says they are settled.
  std::string content;
  std::string reasoning;
  std::vector<int32_t> token_ids;
  std::vector<TokenScore> logprobs;
  std::vector<TokenScore> prompt_logprobs;
  std::optional<AnswerEnd> end;
  Usage usage;
  std::optional<absl::Status> error;
  int ends = 0;  // how often it was told of an end

 private:
  void Take(const AnswerDelta& delta) {
    const std::lock_guard<std::mutex> lock(mutex_);
    content += delta.content;
    reasoning += delta.reasoning;
    token_ids.insert(token_ids.end(), delta.token_ids.begin(), delta.token_ids.end());
    logprobs.insert(logprobs.end(), delta.logprobs.begin(), delta.logprobs.end());
    prompt_logprobs.insert(prompt_logprobs.end(), delta.prompt_logprobs.begin(),
                           delta.prompt_logprobs.end());
    if (delta.end.has_value()) {
      end = delta.end;
      usage = delta.usage;
      ++ends;
    }
    if (leave_at_delta_) exchange_ = nullptr;
    changed_.notify_all();
  }
  void Take(const absl::Status& status) {
    const std::lock_guard<std::mutex> lock(mutex_);
    error = status;
    ++ends;
    changed_.notify_all();
  }

  Loop* const loop_;
  std::unique_ptr<Exchange> exchange_;  // the loop's
  bool leave_at_delta_ = false;         // the loop's
  std::mutex mutex_;
  std::condition_variable changed_;
};

}  // namespace glm::router
