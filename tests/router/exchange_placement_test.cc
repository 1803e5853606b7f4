// Where exchanges send their requests: prefixes, sessions, turns.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "router/exchange.h"
#include "tests/router/exchange_rig.h"

namespace glm::router {
namespace {

class ExchangePlacementTest : public ::testing::Test {
 protected:
  void StartWorkers(Policy policy) {
    rig_.placement = ExchangeRig::MakePlacement(policy);
    for (int32_t i = 0; i < 3; ++i) {
      FakeWorkerOptions options = rig_.WorkerOptions();
      options.prefix_caching = true;
      workers_.push_back(rig_.AddWorker(options));
    }
    rig_.Start(3);
    for (FakeWorker* worker : workers_) {
      ASSERT_TRUE(worker->Await([](const auto& seen) { return seen.snapshots == 1; }));
    }
  }
  /// Asks for one token after a prompt of 800 tokens of `prefix`, more than a request costs, and
  /// one of its own.
  void Ask(int32_t prefix, const std::string& session = "") {
    ExchangeRequest request;
    std::vector<int32_t> ids(800, 300 + prefix);
    ids.push_back(1000 + asked_++);
    request.prompt = ids;
    request.max_tokens = 1;
    request.ignore_eos = true;
    request.session = session;
    ExchangeClient client(rig_.Rooms(), std::move(request));
    ASSERT_TRUE(client.AwaitEnd());
    ASSERT_FALSE(client.error.has_value()) << *client.error;
  }
  std::vector<int32_t> Submits() const {
    std::vector<int32_t> submits;
    for (const FakeWorker* worker : workers_) submits.push_back(worker->seen().submits);
    return submits;
  }
  /// The worker that got the requests since `before`; -1: several did.
  int32_t OnlyOne(const std::vector<int32_t>& before) const {
    int32_t one = -1;
    const std::vector<int32_t> now = Submits();
    for (size_t i = 0; i < now.size(); ++i) {
      if (now[i] == before[i]) continue;
      if (one >= 0) return -1;
      one = static_cast<int32_t>(i);
    }
    return one;
  }

  ExchangeRig rig_;
  std::vector<FakeWorker*> workers_;
  int32_t asked_ = 0;
};

TEST_F(ExchangePlacementTest, APrefixGoesToTheWorkerThatHasIt) {
  StartWorkers(Policy::kPrefix);
  for (int32_t prefix = 0; prefix < 5; ++prefix) {
    const std::vector<int32_t> before = Submits();
    for (int32_t i = 0; i < 6; ++i) Ask(prefix);
    EXPECT_GE(OnlyOne(before), 0) << "prefix " << prefix;
  }
}

TEST_F(ExchangePlacementTest, ALostWorkersPrefixIsForgotten) {
  StartWorkers(Policy::kPrefix);
  Ask(0);
  const int32_t owner = OnlyOne({0, 0, 0});
  ASSERT_GE(owner, 0);
  workers_[owner]->Stop();
  ASSERT_TRUE(rig_.AwaitReady(2));
  for (int32_t i = 0; i < 4; ++i) Ask(0);
  EXPECT_EQ(workers_[owner]->seen().submits, 1);
}

TEST_F(ExchangePlacementTest, RoundRobinGoesAround) {
  StartWorkers(Policy::kRoundRobin);
  for (int32_t i = 0; i < 6; ++i) Ask(0);
  EXPECT_EQ(Submits(), (std::vector<int32_t>{2, 2, 2}));
}

TEST_F(ExchangePlacementTest, ASessionStaysWithItsWorker) {
  StartWorkers(Policy::kSession);
  for (const std::string session : {"a", "b", "c"}) {
    const std::vector<int32_t> before = Submits();
    for (int32_t prefix = 0; prefix < 5; ++prefix) Ask(prefix, session);
    EXPECT_GE(OnlyOne(before), 0) << session;
  }
}

}  // namespace
}  // namespace glm::router
