// What knowing the caches is worth: chats of several turns with one system prompt, over four
// workers, by policy `prefix`, by `round-robin`, and with all caches in one place: one worker that
// has the memory of four.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/cluster.h"
#include "tests/support/server_process.h"

namespace glm::tests {
namespace {

constexpr int kChats = 24;
constexpr int kTurns = 5;
constexpr int kChatsAtOnce = 6;
constexpr int kBlocks = 1000;  // of 16 tokens, of one worker of four

/// What was seen of all turns of all chats.
struct Seen {
  std::vector<double> first_s;  // to the first token
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;
  int failed = 0;

  double HitRate() const {
    return static_cast<double>(cached_tokens) / static_cast<double>(prompt_tokens);
  }
  int64_t Computed() const { return prompt_tokens - cached_tokens; }
  double Quantile(double q) const {
    std::vector<double> sorted = first_s;
    std::sort(sorted.begin(), sorted.end());
    return sorted[static_cast<size_t>(q * static_cast<double>(sorted.size() - 1))];
  }
};

/// Some 1,000 tokens that all chats share.
std::string SystemPrompt() {
  std::string text = "You are a helpful assistant. These are the rules of the house:";
  for (int i = 0; i < 110; ++i) text += " Rule " + std::to_string(i) + " is to be kind.";
  return text;
}

class Clients {
 public:
  explicit Clients(int port) : port_(port) {}

  Seen Run() {
    std::vector<std::thread> threads;
    for (int first = 0; first < kChatsAtOnce; ++first) {
      threads.emplace_back([this, first] {
        for (int chat = first; chat < kChats; chat += kChatsAtOnce) Chat(chat);
      });
    }
    for (std::thread& thread : threads) thread.join();
    return seen_;
  }

 private:
  void Chat(int chat) {
    nlohmann::json messages = {{{"role", "system"}, {"content", SystemPrompt()}}};
    for (int turn = 0; turn < kTurns; ++turn) {
      messages.push_back({{"role", "user"},
                          {"content", "Question " + std::to_string(turn) + " of guest " +
                                          std::to_string(chat * 7919 % 1000) +
                                          ": what do the rules say of dogs, cats and birds?"}});
      const std::string answer = Ask(messages);
      messages.push_back({{"role", "assistant"}, {"content", answer}});
    }
  }

  std::string Ask(const nlohmann::json& messages) {
    const nlohmann::json body = {{"messages", messages},
                                 {"max_tokens", 24},
                                 {"temperature", 0},
                                 {"ignore_eos", true},
                                 {"chat_template_kwargs", {{"enable_thinking", false}}},
                                 {"stream", true},
                                 {"stream_options", {{"include_usage", true}}}};
    const double begin = MonotonicSeconds();
    EventStream stream(port_, "/v1/chat/completions", body.dump());
    std::string text;
    double first = 0;
    nlohmann::json usage;
    while (true) {
      const std::string event = stream.Next();
      if (event.empty() || event == "[DONE]") break;
      const nlohmann::json chunk = nlohmann::json::parse(event, nullptr, false);
      if (!chunk.is_object() || !chunk.contains("choices")) break;
      if (chunk.contains("usage") && chunk["usage"].is_object()) usage = chunk["usage"];
      for (const nlohmann::json& choice : chunk["choices"]) {
        if (!choice["delta"].contains("content") || !choice["delta"]["content"].is_string())
          continue;
        text += choice["delta"]["content"].get<std::string>();
        if (first == 0 && !text.empty()) first = MonotonicSeconds() - begin;
      }
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!usage.is_object()) {
      ++seen_.failed;
      return text;
    }
    seen_.first_s.push_back(first);
    seen_.prompt_tokens += usage["prompt_tokens"].get<int64_t>();
    if (usage.contains("prompt_tokens_details") && usage["prompt_tokens_details"].is_object()) {
      seen_.cached_tokens += usage["prompt_tokens_details"].value("cached_tokens", int64_t{0});
    }
    return text;
  }

  const int port_;
  std::mutex mutex_;
  Seen seen_;
};

Seen RunCluster(const std::string& name, int workers, int blocks, const std::string& policy) {
  std::vector<std::unique_ptr<WorkerProcess>> processes;
  std::string addresses;
  for (int i = 0; i < workers; ++i) {
    processes.push_back(std::make_unique<WorkerProcess>(
        std::vector<std::string>{"--block-size=16", "--kv-blocks=" + std::to_string(blocks),
                                 "--max-num-batched-tokens=512"}));
    addresses += (i == 0 ? "" : ",") + processes.back()->address();
  }
  RouterProcess router({"--workers=" + addresses, "--policy=" + policy});
  EXPECT_TRUE(Eventually(
      30, [&] { return router.Metric("glmserve_router_workers{state=\"ready\"}") == workers; }));
  const double begin = MonotonicSeconds();
  const Seen seen = Clients(router.http_port()).Run();
  const double seconds = MonotonicSeconds() - begin;
  EXPECT_EQ(seen.failed, 0);
  std::printf(
      "{\"case\": \"prefix_benefit\", \"run\": \"%s\", \"workers\": %d, \"chats\": %d, "
      "\"turns\": %d, \"prompt_tokens\": %lld, \"computed_tokens\": %lld, \"hit_rate\": %.3f, "
      "\"ttft_p50_ms\": %.1f, \"ttft_p99_ms\": %.1f, \"seconds\": %.2f}\n",
      name.c_str(), workers, kChats, kTurns, static_cast<long long>(seen.prompt_tokens),
      static_cast<long long>(seen.Computed()), seen.HitRate(), seen.Quantile(0.5) * 1e3,
      seen.Quantile(0.99) * 1e3, seconds);
  return seen;
}

TEST(PrefixBenefitTest, RequestsFindTheirPrefixes) {
  const Seen one_place = RunCluster("all caches in one place", 1, 4 * kBlocks, "prefix");
  const Seen by_prefix = RunCluster("prefix", 4, kBlocks, "prefix");
  const Seen in_turn = RunCluster("round-robin", 4, kBlocks, "round-robin");
  EXPECT_GT(by_prefix.HitRate(), one_place.HitRate() - 0.05);
  EXPECT_LT(by_prefix.Computed(), in_turn.Computed() * 0.7);
  EXPECT_LT(by_prefix.Quantile(0.5), in_turn.Quantile(0.5));
}

}  // namespace
}  // namespace glm::tests
