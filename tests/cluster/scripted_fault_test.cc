// A router process over many scripted workers in this process, which can do what an engine never
// does: F8, a router that starts among a million blocks; F11, caches of which nonsense is told;
// F16, all workers failing at once.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "bench/scripted/scripted_worker.h"
#include "tests/support/cluster.h"
#include "tests/support/crowd.h"
#include "tests/support/server_process.h"

namespace glm::tests {
namespace {

class ScriptedFaultTest : public ::testing::Test {
 protected:
  void StartWorkers(int count, const bench::Script& script, int64_t blocks = 20'000) {
    bench::ScriptedWorkerOptions options;
    options.model_name = "demo-model";
    options.vocabulary = 8192;
    options.block_size = 16;
    options.kv_blocks_total = blocks;
    options.answer_ids_begin = 300;
    options.answer_ids_end = 400;
    options.script = script;
    auto workers = bench::ScriptedWorkers::Start(options, count);
    ASSERT_TRUE(workers.ok()) << workers.status();
    workers_ = *std::move(workers);
    for (int i = 0; i < count; ++i) {
      addresses_ += (i == 0 ? "" : ",") + workers_->address(i);
    }
  }
  std::unique_ptr<RouterProcess> StartRouter(std::vector<std::string> flags = {}) const {
    flags.push_back("--workers=" + addresses_);
    return std::make_unique<RouterProcess>(flags);
  }
  void SetAll(const bench::Script& script) {
    for (int i = 0; i < workers_->count(); ++i) workers_->SetScript(i, script);
  }
  static std::string Body(const std::string& prompt, int max_tokens) {
    return nlohmann::json{
        {"prompt", prompt}, {"max_tokens", max_tokens}, {"ignore_eos", true}, {"stream", true}}
        .dump();
  }
  int64_t CachedBlocks() const {
    int64_t blocks = 0;
    for (int i = 0; i < workers_->count(); ++i) blocks += workers_->cached_blocks(i);
    return blocks;
  }

  std::unique_ptr<bench::ScriptedWorkers> workers_;
  std::string addresses_;
};

TEST_F(ScriptedFaultTest, F8ARouterIsReadyAndWarmAmongAMillionBlocks) {
  constexpr int kWorkers = 64;
  constexpr int64_t kBlocks = 1'000'000;
  StartWorkers(kWorkers, {});
  for (int i = 0; i < kWorkers; ++i) workers_->FillCache(i, kBlocks / kWorkers);
  const double begin = MonotonicSeconds();
  // All routers there are come back at once.
  const auto first = StartRouter();
  const auto second = StartRouter();
  for (const auto* router : {first.get(), second.get()}) {
    ASSERT_TRUE(Eventually(30, [&] {
      return router->Metric("glmserve_router_workers{state=\"ready\"}") == kWorkers &&
             router->Metric("glmserve_router_prefix_index_blocks") == kBlocks;
    })) << router->Metric("glmserve_router_prefix_index_blocks");
  }
  const double seconds = MonotonicSeconds() - begin;
  const bench::ScriptedSeen seen = workers_->seen();
  std::cout << "two routers ready and warm after " << seconds << " s, " << seen.snapshots
            << " snapshots, " << static_cast<double>(seen.snapshot_bytes) / 2e6
            << " MB a router, index " << first->Metric("glmserve_router_prefix_index_bytes") / 1e6
            << " MB\n";
  EXPECT_EQ(seen.snapshots, 2 * kWorkers);
  EXPECT_LE(static_cast<double>(seen.snapshot_bytes) / 2, 30e6);
  EXPECT_LE(seconds, 2);
}

TEST_F(ScriptedFaultTest, F11NonsenseIsToldAndTheIndexIsRightAfterAll) {
  StartWorkers(4, {.tokens_per_s = 500, .garble = 0.2}, /*blocks=*/600);
  const auto router = StartRouter();
  ASSERT_TRUE(Eventually(
      30, [&] { return router->Metric("glmserve_router_workers{state=\"ready\"}") == 4; }));
  // More blocks than there is room for, so that they come and go.
  std::atomic<int> next{0};
  std::vector<std::thread> clients;
  for (int c = 0; c < 8; ++c) {
    clients.emplace_back([&] {
      for (int i = next++; i < 160; i = next++) {
        // Each of its own, so that no block is in two caches.
        std::string prompt = "Prompt " + std::to_string(i);
        for (int word = 0; word < 200; ++word) prompt += " " + std::to_string(i + word);
        Crowd(router->http_port(), "/v1/completions", {Body(prompt, 20)}).Await();
        if (i % 40 == 20) workers_->Restart(i / 40);  // numbers from the beginning again
      }
    });
  }
  for (std::thread& client : clients) client.join();
  SetAll({.tokens_per_s = 500});
  const double quiet = MonotonicSeconds();
  EXPECT_TRUE(Eventually(
      2, [&] { return router->Metric("glmserve_router_prefix_index_blocks") == CachedBlocks(); }))
      << router->Metric("glmserve_router_prefix_index_blocks") << " blocks are known, there are "
      << CachedBlocks();
  std::cout << "right after " << MonotonicSeconds() - quiet << " s, "
            << router->Metric("glmserve_router_cache_breaks_total") << " breaks, "
            << router->Metric("glmserve_router_cache_snapshots_total") << " snapshots\n";
  EXPECT_GT(router->Metric("glmserve_router_cache_breaks_total"), 0);
  EXPECT_GT(CachedBlocks(), 0);
}

TEST_F(ScriptedFaultTest, F16AllWorkersFailAndNothingMakesItWorse) {
  StartWorkers(4, {.tokens_per_s = 1000});
  const auto router = StartRouter();
  ASSERT_TRUE(Eventually(
      30, [&] { return router->Metric("glmserve_router_workers{state=\"ready\"}") == 4; }));
  std::atomic<bool> stopping{false};
  std::atomic<int> asked{0};
  std::atomic<int> answered{0};
  std::vector<std::thread> clients;
  for (int c = 0; c < 8; ++c) {
    clients.emplace_back([&] {
      while (!stopping) {
        const int number = asked++;
        nlohmann::json body = {{"prompt", "Number " + std::to_string(number)}, {"max_tokens", 4}};
        body["ignore_eos"] = true;
        const HttpAnswer answer = Call(router->http_port(), "/v1/completions", body.dump());
        if (answer.status == 200) ++answered;
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      }
    });
  }
  ASSERT_TRUE(Eventually(20, [&] { return answered > 200; }));
  const int64_t submits_before = workers_->seen().submits;
  const int asked_before = asked;
  SetAll({.mode = bench::Script::Mode::kFail});
  double ejected_max = 0;
  const double begin = MonotonicSeconds();
  while (MonotonicSeconds() < begin + 5) {
    ejected_max = std::max(ejected_max, router->Metric("glmserve_router_workers_ejected"));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  const double offered = asked - asked_before;
  const auto tried = static_cast<double>(workers_->seen().submits - submits_before);
  SetAll({.tokens_per_s = 1000});
  const double healed = MonotonicSeconds();
  const int answered_before = answered;
  EXPECT_TRUE(Eventually(2, [&] { return answered > answered_before + 50; }));
  std::cout << "offered " << offered << ", sent " << tried << ", at most " << ejected_max
            << " of 4 ejected, answers again after " << MonotonicSeconds() - healed << " s\n";
  // All are taken again, and none of them is avoided for long.
  EXPECT_TRUE(
      Eventually(2, [&] { return router->Metric("glmserve_router_workers_ejected") == 0; }));
  stopping = true;
  for (std::thread& client : clients) client.join();
  EXPECT_GT(offered, 100);
  EXPECT_LE(ejected_max, 2);
  EXPECT_LE(tried, 1.1 * offered + 20);  // and a small burst
}

}  // namespace
}  // namespace glm::tests
