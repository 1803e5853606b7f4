// SIGTERM: a worker's requests end there or go on elsewhere, a router's clients notice nothing.
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <string>
#include <thread>

#include "tests/support/cluster.h"
#include "tests/support/server_process.h"

namespace glm::tests {
namespace {

std::string Body(int max_tokens, bool stream) {
  return nlohmann::json{{"prompt", "Once upon a time"},
                        {"max_tokens", max_tokens},
                        {"temperature", 0},
                        {"ignore_eos", true},
                        {"stream", stream}}
      .dump();
}

std::string TextOf(const HttpAnswer& answer) {
  EXPECT_EQ(answer.status, 200) << answer.body;
  return answer.Json()["choices"][0]["text"];
}

/// Reads to the stream's end; the text of all events, those in `text` first.
std::string Rest(EventStream& events, std::string text = "") {
  for (std::string event = events.Next(); event != "[DONE]"; event = events.Next()) {
    const nlohmann::json chunk = nlohmann::json::parse(event, nullptr, /*allow_exceptions=*/false);
    if (!chunk.contains("choices")) {
      ADD_FAILURE() << "'" << event << "' after '" << text << "'";
      return text;
    }
    if (!chunk["choices"].empty()) text += chunk["choices"][0]["text"].get<std::string>();
  }
  return text;
}

/// Reads the first events.
std::string Begin(EventStream& events, int count) {
  std::string text;
  for (int i = 0; i < count; ++i) {
    text += nlohmann::json::parse(events.Next())["choices"][0]["text"].get<std::string>();
  }
  return text;
}

/// Two workers, the first of them with a drain limit of `limit_s`, and a router that sends to the
/// first alone until the second is let in.
class DrainTest : public testing::Test {
 protected:
  void Start(int limit_s) {
    first_ = std::make_unique<WorkerProcess>(
        std::vector<std::string>{"--drain-timeout-s=" + std::to_string(limit_s)});
    second_ = std::make_unique<WorkerProcess>();
    router_ = std::make_unique<RouterProcess>(std::vector<std::string>{
        "--workers=" + first_->address() + "," + second_->address(), "--settle-s=2"});
    ASSERT_TRUE(Eventually(30, [&] {
      return router_->Log().find(second_->address() + " is ready") != std::string::npos &&
             router_->Log().find(first_->address() + " is ready") != std::string::npos;
    }));
  }
  int port() const { return router_->http_port(); }
  /// How many tokens take some `seconds` here and now.
  int TokensOf(double seconds) const {
    constexpr int kTrial = 50;
    const double begun = MonotonicSeconds();
    EXPECT_EQ(Call(port(), "/v1/completions", Body(kTrial, false)).status, 200);
    const double rate = kTrial / (MonotonicSeconds() - begun);
    return std::clamp(static_cast<int>(seconds * rate), 2 * kTrial, 3500);
  }

  std::unique_ptr<WorkerProcess> first_;
  std::unique_ptr<WorkerProcess> second_;
  std::unique_ptr<RouterProcess> router_;
};

TEST_F(DrainTest, WhatDoesNotEndInTimeGoesOnElsewhere) {
  Start(/*limit_s=*/1);
  const int tokens = TokensOf(5);
  const std::string whole = TextOf(Call(port(), "/v1/completions", Body(tokens, false)));
  // Both workers have one such request each, so one of the two is the first worker's.
  EventStream one(port(), "/v1/completions", Body(tokens, true));
  const std::string one_begun = Begin(one, 10);
  EventStream other(port(), "/v1/completions", Body(tokens, true));
  const std::string other_begun = Begin(other, 10);
  const double attempts = router_->Metric("glmserve_router_attempts_total");
  first_->Signal(SIGTERM);
  EXPECT_EQ(Rest(one, one_begun), whole);
  EXPECT_EQ(Rest(other, other_begun), whole);
  EXPECT_EQ(first_->AwaitExit(), 0);
  EXPECT_NE(first_->Log().find("drain limit reached"), std::string::npos);
  EXPECT_EQ(router_->Metric("glmserve_router_attempts_total"), attempts + 1);
  EXPECT_EQ(TextOf(Call(port(), "/v1/completions", Body(tokens, false))), whole);
}

TEST_F(DrainTest, WhatEndsInTimeEndsWhereItIsAndNothingNewComes) {
  Start(/*limit_s=*/60);
  const int tokens = TokensOf(1);
  const std::string whole = TextOf(Call(port(), "/v1/completions", Body(tokens, false)));
  EventStream one(port(), "/v1/completions", Body(tokens, true));
  const std::string one_begun = Begin(one, 2);
  EventStream other(port(), "/v1/completions", Body(tokens, true));
  const std::string other_begun = Begin(other, 2);
  const double attempts = router_->Metric("glmserve_router_attempts_total");
  first_->Signal(SIGTERM);
  ASSERT_TRUE(router_->AwaitLog(first_->address() + " drains"));
  EXPECT_EQ(Call(port(), "/v1/completions", Body(2, false)).status, 200);
  EXPECT_EQ(Rest(one, one_begun), whole);
  EXPECT_EQ(Rest(other, other_begun), whole);
  EXPECT_EQ(first_->AwaitExit(), 0);
  EXPECT_NE(first_->Log().find("] drained"), std::string::npos) << first_->Log();
  EXPECT_EQ(router_->Metric("glmserve_router_attempts_total"), attempts + 1)
      << "one for the new request, none again";
}

TEST_F(DrainTest, ARouterServesOnWhileItSettlesAndFinishesItsStreams) {
  Start(/*limit_s=*/1);
  const int tokens = TokensOf(5);
  const std::string whole = TextOf(Call(port(), "/v1/completions", Body(tokens, false)));
  EventStream events(port(), "/v1/completions", Body(tokens, true));
  const std::string begun = Begin(events, 10);
  router_->Signal(SIGTERM);
  ASSERT_TRUE(router_->AwaitLog("not ready, serving on for 2 s"));
  EXPECT_TRUE(Eventually(1, [&] { return Call(port(), "/readyz").status == 503; }));
  EXPECT_EQ(Call(port(), "/livez").status, 200);
  EXPECT_EQ(Call(port(), "/v1/completions", Body(2, false)).status, 200)
      << "a load balancer that has not looked yet sends on";
  EXPECT_EQ(Rest(events, begun), whole);
  EXPECT_EQ(router_->AwaitExit(), 0);
  EXPECT_EQ(Call(port(), "/livez").status, 0) << "nobody listens";
}

TEST_F(DrainTest, ASecondSignalEndsARouterAtOnce) {
  Start(/*limit_s=*/1);
  router_->Signal(SIGTERM);
  ASSERT_TRUE(router_->AwaitLog("not ready, serving on"));
  router_->Signal(SIGTERM);
  EXPECT_EQ(router_->AwaitExit(/*seconds=*/1), -1) << "by the signal, within its 2 s of settling";
  EXPECT_FALSE(router_->IsRunning());
}

}  // namespace
}  // namespace glm::tests
