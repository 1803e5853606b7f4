#include "router/admit/fair_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <vector>

namespace glm::router {
namespace {

using ::testing::ElementsAre;

TenantId Tenant(uint64_t number) { return {.high = 7, .low = number}; }

/// Tickets, in the order in which they come out.
std::vector<uint64_t> Drain(FairQueue* queue) {
  std::vector<uint64_t> tickets;
  while (const auto next = queue->Pop()) tickets.push_back(next->ticket);
  return tickets;
}

TEST(FairQueueTest, IsEmptyAtFirst) {
  FairQueue queue({});
  EXPECT_FALSE(queue.Pop().has_value());
  EXPECT_FALSE(queue.Remove(1));
  EXPECT_EQ(queue.requests(), 0);
  EXPECT_EQ(queue.CostAhead(Tenant(1), 0), 0);
}

TEST(FairQueueTest, OneTenantIsServedInTheOrderOfArrival) {
  FairQueue queue({});
  for (uint64_t i = 0; i < 5; ++i) {
    queue.Push({.ticket = i, .tenant = Tenant(1), .cost_tokens = static_cast<int64_t>(100 - i)});
  }
  EXPECT_EQ(queue.requests(), 5);
  EXPECT_EQ(queue.RequestsOf(Tenant(1)), 5);
  EXPECT_THAT(Drain(&queue), ElementsAre(0, 1, 2, 3, 4));
  EXPECT_EQ(queue.RequestsOf(Tenant(1)), 0);
}

TEST(FairQueueTest, TenantsShareTokensNotRequests) {
  FairQueue queue({});
  uint64_t ticket = 0;
  // The one sends many and large ones first; the other few and small ones, later.
  for (int i = 0; i < 500; ++i) {
    queue.Push({.ticket = ++ticket, .tenant = Tenant(1), .cost_tokens = 1000});
  }
  for (int i = 0; i < 1000; ++i) {
    queue.Push({.ticket = ++ticket, .tenant = Tenant(2), .cost_tokens = 100});
  }
  std::map<uint64_t, int64_t> served;
  for (int i = 0; i < 440; ++i) {
    const auto next = queue.Pop();
    served[next->tenant.low] += next->cost_tokens;
    EXPECT_LE(std::abs(served[1] - served[2]), 1000) << "after " << i;
  }
  EXPECT_EQ(served[1], 40'000);
  EXPECT_EQ(served[2], 40'000);
}

TEST(FairQueueTest, NobodySavesUpWhatHeDidNotUse) {
  FairQueue queue({});
  uint64_t ticket = 0;
  for (int i = 0; i < 100; ++i) {
    queue.Push({.ticket = ++ticket, .tenant = Tenant(1), .cost_tokens = 10});
  }
  for (int i = 0; i < 50; ++i) queue.Pop();
  for (int i = 0; i < 100; ++i) {
    queue.Push({.ticket = ++ticket, .tenant = Tenant(2), .cost_tokens = 10});
  }
  int served = 0;
  for (int i = 0; i < 20; ++i) served += queue.Pop()->tenant == Tenant(2) ? 1 : 0;
  EXPECT_GE(served, 10);  // its half, and at most one more
  EXPECT_LE(served, 11);
}

TEST(FairQueueTest, WhoComesBackIsNotAheadOfWhatHeWasServed) {
  FairQueue queue({});
  uint64_t ticket = 0;
  for (int i = 0; i < 10; ++i) {
    queue.Push({.ticket = ++ticket, .tenant = Tenant(1), .cost_tokens = 10});
  }
  // One at a time, each of them large: no way to more than a share.
  int64_t served_other = 0;
  for (int i = 0; i < 5; ++i) {
    queue.Push({.ticket = ++ticket, .tenant = Tenant(2), .cost_tokens = 30});
    while (queue.RequestsOf(Tenant(2)) > 0) {
      if (queue.Pop()->tenant == Tenant(2)) served_other += 30;
      if (queue.RequestsOf(Tenant(1)) == 0) break;
    }
    if (queue.RequestsOf(Tenant(1)) == 0) break;
  }
  EXPECT_LE(served_other, 100 + 30);
}

/// How long 99 of 100 requests wait at most, in requests served, of 9 tenants that always have 4
/// waiting, beside one that always has `loud`.
int64_t WaitBeside(int loud) {
  FairQueue queue({});
  std::map<uint64_t, int64_t> since;
  std::vector<int64_t> waits;
  uint64_t ticket = 0;
  int64_t now = 0;
  const auto ask = [&](uint64_t tenant) {
    queue.Push({.ticket = ++ticket, .tenant = Tenant(tenant), .cost_tokens = 100});
    since[ticket] = now;
  };
  for (int i = 0; i < loud; ++i) ask(99);
  for (uint64_t i = 0; i < 36; ++i) ask(i % 9);
  for (; now < 10'000; ++now) {
    const auto next = queue.Pop();
    if (next->tenant != Tenant(99)) waits.push_back(now - since[next->ticket]);
    ask(next->tenant.low);
  }
  std::sort(waits.begin(), waits.end());
  return waits[waits.size() * 99 / 100];
}

TEST(FairQueueTest, OneThatAsksFiftyTimesAsOftenHardlyMakesOthersWait) {
  const int64_t alone = WaitBeside(0);
  EXPECT_NEAR(static_cast<double>(alone), 36, 1);
  EXPECT_LE(static_cast<double>(WaitBeside(50 * 4)), 1.3 * static_cast<double>(alone));
}

TEST(FairQueueTest, LowerPrioritiesComeFirstWhosoeverTheyAre) {
  FairQueue queue({});
  queue.Push({.ticket = 1, .tenant = Tenant(1), .priority = 5});
  queue.Push({.ticket = 2, .tenant = Tenant(1), .priority = 0});
  queue.Push({.ticket = 3, .tenant = Tenant(2), .priority = -1000});
  queue.Push({.ticket = 4, .tenant = Tenant(2), .priority = 0});
  queue.Push({.ticket = 5, .tenant = Tenant(2), .priority = -1000});
  EXPECT_EQ(queue.CostAhead(Tenant(3), -1001), 0);
  EXPECT_EQ(queue.CostAhead(Tenant(3), -1), 2);
  EXPECT_EQ(queue.CostAhead(Tenant(3), 1000), 5);
  const std::vector<uint64_t> order = Drain(&queue);
  EXPECT_THAT(std::vector<uint64_t>(order.begin(), order.begin() + 2), ElementsAre(3, 5));
  EXPECT_EQ(order.back(), 1u);
}

TEST(FairQueueTest, PrioritiesMayCountWithinATenantOnly) {
  FairQueue queue({.priority_across_tenants = false});
  uint64_t ticket = 0;
  for (int i = 0; i < 10; ++i) queue.Push({.ticket = ++ticket, .tenant = Tenant(1)});
  for (int i = 0; i < 10; ++i) {
    queue.Push({.ticket = ++ticket, .tenant = Tenant(2), .priority = -1000});
  }
  queue.Push({.ticket = ++ticket, .tenant = Tenant(1), .priority = -1});
  EXPECT_EQ(queue.CostAhead(Tenant(1), -2), 1);  // only the other's first
  int greedy = 0;
  bool overtook = false;
  for (int i = 0; i < 10; ++i) {
    const auto next = queue.Pop();
    greedy += next->tenant == Tenant(2) ? 1 : 0;
    overtook |= i < 2 && next->ticket == ticket;
  }
  EXPECT_EQ(greedy, 5);
  EXPECT_TRUE(overtook);
}

TEST(FairQueueTest, WhatIsTakenOutCostsItsTenantNothing) {
  FairQueue queue({});
  queue.Push({.ticket = 1, .tenant = Tenant(1), .cost_tokens = 1000, .prompt_tokens = 900});
  queue.Push({.ticket = 2, .tenant = Tenant(1), .cost_tokens = 10, .prompt_tokens = 9});
  queue.Push({.ticket = 3, .tenant = Tenant(2), .cost_tokens = 10, .prompt_tokens = 9});
  queue.Push({.ticket = 4, .tenant = Tenant(2), .cost_tokens = 10, .prompt_tokens = 9});
  EXPECT_EQ(queue.PromptTokensOf(Tenant(1)), 909);
  EXPECT_TRUE(queue.Remove(1));
  EXPECT_FALSE(queue.Remove(1));
  EXPECT_EQ(queue.PromptTokensOf(Tenant(1)), 9);
  EXPECT_EQ(queue.requests(), 3);
  std::vector<uint64_t> order = Drain(&queue);
  EXPECT_EQ(order.size(), 3u);
  EXPECT_NE(order.back(), 2u);  // not behind both of the other's
}

TEST(FairQueueTest, SaysWhatIsServedBeforeANewcomer) {
  FairQueue queue({});
  for (uint64_t i = 0; i < 100; ++i) {
    queue.Push({.ticket = i, .tenant = Tenant(1), .cost_tokens = 50});
  }
  EXPECT_EQ(queue.CostAhead(Tenant(1), 0), 5000);
  EXPECT_EQ(queue.CostAhead(Tenant(2), 0), 50);  // one of the other's may come first
  queue.Push({.ticket = 200, .tenant = Tenant(2), .cost_tokens = 120});
  // Its own, and what the other gets in the same time.
  EXPECT_EQ(queue.CostAhead(Tenant(2), 0), 240);
}

TEST(FairQueueTest, WhatIsSaidToBeAheadIsWhatIsServed) {
  std::mt19937 random(5);
  for (int round = 0; round < 300; ++round) {
    FairQueue queue({.priority_across_tenants = round % 2 == 0});
    uint64_t ticket = 0;
    const int32_t tenants = 1 + static_cast<int32_t>(random() % 5);
    const auto push = [&] {
      queue.Push({.ticket = ++ticket,
                  .tenant = Tenant(random() % tenants),
                  .priority = static_cast<int32_t>(random() % 2),
                  .cost_tokens = 1 + static_cast<int64_t>(random() % 100)});
    };
    for (int i = 0; i < 40; ++i) {
      push();
      if (random() % 3 == 0) queue.Pop();
    }
    const TenantId tenant = Tenant(random() % tenants);
    const int32_t priority = static_cast<int32_t>(random() % 2);
    const int64_t said = queue.CostAhead(tenant, priority);
    queue.Push({.ticket = 1000, .tenant = tenant, .priority = priority, .cost_tokens = 10});
    int64_t served = 0;
    for (;;) {
      const auto next = queue.Pop();
      ASSERT_TRUE(next.has_value());
      if (next->ticket == 1000) break;
      served += next->cost_tokens;
    }
    // One request of each other tenant stands across the line.
    EXPECT_NEAR(static_cast<double>(served), static_cast<double>(said), 100.0 * tenants);
  }
}

TEST(FairQueueTest, TellsOnlySoManyTenantsApart) {
  FairQueue queue({.tenants_max = 3});
  for (uint64_t i = 0; i < 10; ++i) queue.Push({.ticket = i, .tenant = Tenant(i)});
  EXPECT_EQ(queue.tenants(), 4);  // three, and the one that the others share
  EXPECT_EQ(queue.RequestsOf(Tenant(1)), 1);
  EXPECT_EQ(queue.RequestsOf(Tenant(3)), 7);
  EXPECT_EQ(queue.RequestsOf(Tenant(99)), 7);
  EXPECT_EQ(Drain(&queue).size(), 10u);
  // Those without requests make room, the longest unheard first.
  queue.LearnAnswer(Tenant(50), 3);
  EXPECT_EQ(queue.tenants(), 4);
  EXPECT_EQ(queue.ExpectedAnswer(Tenant(50), 1000), 3);
}

TEST(FairQueueTest, TenantsThatComeOnceEachStopNobody) {
  FairQueue queue({.tenants_max = 8});
  queue.Push({.ticket = 1, .tenant = Tenant(1'000'000), .cost_tokens = 10});
  queue.Push({.ticket = 2, .tenant = Tenant(1'000'000), .cost_tokens = 10});
  std::set<uint64_t> served;
  for (uint64_t i = 3; i < 2000; ++i) {
    queue.Push({.ticket = i, .tenant = Tenant(i), .cost_tokens = 10});
    served.insert(queue.Pop()->ticket);
  }
  EXPECT_TRUE(served.contains(1));
  EXPECT_TRUE(served.contains(2));
  EXPECT_LE(queue.tenants(), 9);
}

TEST(FairQueueTest, LearnsHowLongATenantsAnswersAre) {
  FairQueue queue({});
  EXPECT_EQ(queue.ExpectedAnswer(Tenant(1), 1000), 256);
  EXPECT_EQ(queue.ExpectedAnswer(Tenant(1), 100), 100);
  queue.LearnAnswer(Tenant(1), 20);
  EXPECT_EQ(queue.ExpectedAnswer(Tenant(1), 1000), 20);
  for (int i = 0; i < 100; ++i) queue.LearnAnswer(Tenant(1), 500);
  EXPECT_NEAR(static_cast<double>(queue.ExpectedAnswer(Tenant(1), 1000)), 500, 5);
  EXPECT_EQ(queue.ExpectedAnswer(Tenant(2), 1000), 256);  // another's
}

TEST(FairQueueTest, NothingIsLostNorLeftBehind) {
  std::mt19937 random(3);
  FairQueue queue({.tenants_max = 4});
  std::set<uint64_t> waiting;
  uint64_t ticket = 0;
  for (int i = 0; i < 20'000; ++i) {
    switch (random() % 4) {
      case 0:
      case 1:
        queue.Push({.ticket = ++ticket,
                    .tenant = Tenant(random() % 7),
                    .priority = static_cast<int32_t>(random() % 3),
                    .cost_tokens = 1 + static_cast<int64_t>(random() % 9),
                    .prompt_tokens = 1});
        waiting.insert(ticket);
        break;
      case 2:
        if (const auto next = queue.Pop()) {
          ASSERT_EQ(waiting.erase(next->ticket), 1u);
        } else {
          ASSERT_TRUE(waiting.empty());
        }
        break;
      case 3: {
        const uint64_t victim = 1 + random() % (ticket + 1);
        ASSERT_EQ(queue.Remove(victim), waiting.erase(victim) == 1);
        break;
      }
    }
    ASSERT_EQ(queue.requests(), static_cast<int64_t>(waiting.size()));
  }
  EXPECT_EQ(Drain(&queue).size(), waiting.size());
  for (uint64_t i = 0; i < 7; ++i) {
    EXPECT_EQ(queue.RequestsOf(Tenant(i)), 0);
    EXPECT_EQ(queue.PromptTokensOf(Tenant(i)), 0);
  }
  EXPECT_EQ(queue.CostAhead(Tenant(1), 1000), 0);
}

}  // namespace
}  // namespace glm::router
