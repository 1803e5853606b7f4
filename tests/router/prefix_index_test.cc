#include "router/route/prefix_index.h"

#include <gtest/gtest.h>

#include <bit>
#include <random>
#include <set>
#include <thread>
#include <vector>

namespace glm::router {
namespace {

BlockKey Key(uint64_t number) { return {number * 0x9E3779B97F4A7C15u, number}; }

std::vector<BlockKey> Chain(uint64_t first, int32_t count) {
  std::vector<BlockKey> chain;
  for (int32_t i = 0; i < count; ++i) chain.push_back(Key(first + static_cast<uint64_t>(i)));
  return chain;
}

void StoreAll(PrefixIndex* index, int32_t slot, absl::Span<const BlockKey> chain) {
  for (const BlockKey& key : chain) index->Store(slot, key);
}

TEST(PrefixIndexTest, DepthsAreTheBlocksThatEachWorkerHolds) {
  PrefixIndex index(1000);
  const std::vector<BlockKey> chain = Chain(1, 37);
  std::vector<int32_t> slots;
  for (const int32_t held : {0, 1, 2, 17, 36, 37}) {
    slots.push_back(index.AddWorker());
    StoreAll(&index, slots.back(), absl::MakeConstSpan(chain).first(held));
  }
  const std::vector<int32_t> depths = index.Depths(chain, 0);
  const std::vector<int32_t> want = {0, 1, 2, 17, 36, 37};
  for (size_t i = 0; i < slots.size(); ++i) EXPECT_EQ(depths[slots[i]], want[i]);
  EXPECT_EQ(index.blocks(), 37);
  EXPECT_EQ(index.Depths({}, 0)[slots[5]], 0);
  EXPECT_EQ(index.Depths(Chain(500, 9), 0)[slots[5]], 0);
}

TEST(PrefixIndexTest, RemovedAndForgotten) {
  PrefixIndex index(1000);
  const std::vector<BlockKey> chain = Chain(1, 10);
  const int32_t a = index.AddWorker();
  const int32_t b = index.AddWorker();
  StoreAll(&index, a, chain);
  StoreAll(&index, b, chain);
  index.Remove(a, chain[9]);
  EXPECT_EQ(index.Depths(chain, 0)[a], 9);
  EXPECT_EQ(index.Depths(chain, 0)[b], 10);
  index.ClearWorker(b);
  EXPECT_EQ(index.Depths(chain, 0)[b], 0);
  EXPECT_EQ(index.blocks(), 9);
  index.RemoveWorker(a);
  EXPECT_EQ(index.blocks(), 0);
  EXPECT_EQ(index.AddWorker(), a) << "the slot is free again";
  EXPECT_EQ(index.Depths(chain, 0)[a], 0);
}

TEST(PrefixIndexTest, WhatIsOnItsWayCountsForAWhile) {
  PrefixIndex index(1000);
  const std::vector<BlockKey> chain = Chain(1, 10);
  const int32_t a = index.AddWorker();
  const int32_t b = index.AddWorker();
  index.Expect(a, chain, /*now_ms=*/100, /*until_ms=*/200);
  EXPECT_EQ(index.Depths(chain, 150)[a], 10);
  EXPECT_EQ(index.Depths(chain, 150)[b], 0);
  EXPECT_EQ(index.Depths(chain, 200)[a], 0);
  StoreAll(&index, a, absl::MakeConstSpan(chain).first(4));
  index.Expect(b, Chain(100, 400), 250, 300);  // sweeps what has passed
  EXPECT_EQ(index.Depths(chain, 250)[a], 4);
  EXPECT_EQ(index.blocks(), 4);
  EXPECT_EQ(index.Depths(Chain(100, 400), 250)[b], 400);
  EXPECT_EQ(index.Depths(Chain(100, 399), 250)[b], 384) << "in steps of 16 so far out";
  // Expected again before the first expectation ends: the later one holds.
  index.Expect(b, chain, 260, 500);
  index.Expect(a, Chain(1000, 200), 400, 450);
  EXPECT_EQ(index.Depths(chain, 450)[b], 10);
  // A worker that left is not awaited, and its successor in the slot neither.
  index.RemoveWorker(b);
  EXPECT_EQ(index.AddWorker(), b);
  EXPECT_EQ(index.Depths(chain, 450)[b], 0);
}

TEST(PrefixIndexTest, BlocksHaveABound) {
  PrefixIndex index(160);
  const int32_t a = index.AddWorker();
  StoreAll(&index, a, Chain(1, 10'000));
  EXPECT_EQ(index.blocks(), 160);
  EXPECT_EQ(index.blocks() + index.blocks_refused(), 10'000);
  index.ClearWorker(a);
  EXPECT_EQ(index.blocks(), 0);
}

TEST(PrefixIndexTest, MemoryHasABound) {
  constexpr int64_t kBlocks = 200'000;
  EXPECT_LE(PrefixIndex::BytesMax(kBlocks), 64 * kBlocks);
  PrefixIndex index(kBlocks);
  std::mt19937_64 random(9);
  std::vector<int32_t> slots;
  for (int32_t w = 0; w < 64; ++w) slots.push_back(index.AddWorker());
  const std::vector<BlockKey> all = Chain(1, kBlocks);
  index.Store(slots[0], all);
  EXPECT_GT(index.blocks(), kBlocks * 95 / 100);
  // Nearly all blocks, each with one holder.
  EXPECT_LE(index.bytes(), 33 * kBlocks);
  // The worst there is: a set of its own for each block, as far as there is room for them.
  for (const BlockKey& block : all) {
    for (uint64_t some = random(); some != 0; some &= some - 1) {
      index.Store(slots[static_cast<size_t>(std::countr_zero(some))], block);
    }
  }
  EXPECT_LE(index.bytes(), PrefixIndex::BytesMax(kBlocks));
  EXPECT_GT(index.blocks_refused(), kBlocks);
  for (const int32_t slot : slots) index.RemoveWorker(slot);
  EXPECT_EQ(index.blocks(), 0);
}

TEST(PrefixIndexTest, ManyAtOnceAreAsOneByOne) {
  PrefixIndex index(100'000);
  const int32_t a = index.AddWorker();
  const int32_t b = index.AddWorker();
  const std::vector<BlockKey> chain = Chain(1, 5000);
  index.Store(a, chain);
  StoreAll(&index, b, chain);
  index.Store(a, chain);  // again
  EXPECT_EQ(index.Depths(chain, 0)[a], 5000);
  EXPECT_EQ(index.Depths(chain, 0)[b], 5000);
  index.Remove(a, absl::MakeConstSpan(chain).subspan(100));
  EXPECT_EQ(index.Depths(chain, 0)[a], 100);
  EXPECT_EQ(index.Depths(chain, 0)[b], 5000);
  index.ClearWorker(b);
  EXPECT_EQ(index.blocks(), 100);
  index.Remove(a, chain);
  EXPECT_EQ(index.blocks(), 0);
}

TEST(PrefixIndexTest, SlotsRunOut) {
  PrefixIndex index(10);
  for (int32_t i = 0; i < WorkerMask::kWorkersMax; ++i) EXPECT_EQ(index.AddWorker(), i);
  EXPECT_EQ(index.AddWorker(), -1);
  index.RemoveWorker(100);
  EXPECT_EQ(index.AddWorker(), 100);
}

// Trees of prefixes, stored from the root and removed from the leaves, against plain sets.
void CheckAgainstPlainSets(int32_t workers) {
  std::mt19937 random(5);
  PrefixIndex index(100'000);
  std::vector<std::set<uint64_t>> held(workers);
  for (int32_t w = 0; w < workers; ++w) ASSERT_EQ(index.AddWorker(), w);
  // Block n's parent is n / 3; a chain goes from the root to n.
  const auto chain_of = [](uint64_t n) {
    std::vector<uint64_t> chain;
    for (; n > 0; n /= 3) chain.insert(chain.begin(), n);
    return chain;
  };
  const auto keys_of = [](const std::vector<uint64_t>& chain) {
    std::vector<BlockKey> keys;
    for (const uint64_t n : chain) keys.push_back(Key(n));
    return keys;
  };
  for (int32_t round = 0; round < 5000; ++round) {
    const auto worker = static_cast<int32_t>(random() % workers);
    const uint64_t n = 1 + random() % 2000;
    if (random() % 3 != 0) {
      for (const uint64_t block : chain_of(n)) {
        held[worker].insert(block);
        index.Store(worker, Key(block));
      }
    } else if (held[worker].count(n) != 0) {
      const bool leaf = held[worker].count(3 * n) + held[worker].count(3 * n + 1) +
                            held[worker].count(3 * n + 2) ==
                        0;
      if (leaf) {
        held[worker].erase(n);
        index.Remove(worker, Key(n));
      }
    }
    if (round % 50 != 0) continue;
    const std::vector<uint64_t> chain = chain_of(1 + random() % 2000);
    const std::vector<int32_t> depths = index.Depths(keys_of(chain), 0);
    for (int32_t w = 0; w < workers; ++w) {
      int32_t want = 0;
      for (const uint64_t block : chain) {
        if (held[w].count(block) == 0) break;
        ++want;
      }
      ASSERT_EQ(depths[w], want) << "worker " << w;
    }
  }
}

// A mask of one word, of four, of all.
TEST(PrefixIndexTest, AgreesWithPlainSets) { CheckAgainstPlainSets(60); }
TEST(PrefixIndexTest, AgreesWithPlainSetsOfSomeWorkers) { CheckAgainstPlainSets(70); }
TEST(PrefixIndexTest, AgreesWithPlainSetsOfManyWorkers) { CheckAgainstPlainSets(300); }

TEST(PrefixIndexTest, ThreadsAtOnce) {
  PrefixIndex index(100'000);
  std::vector<std::thread> threads;
  for (int32_t i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      const int32_t slot = index.AddWorker();
      const std::vector<BlockKey> chain = Chain(1, 50);
      for (int32_t round = 0; round < 100; ++round) {
        StoreAll(&index, slot, chain);
        EXPECT_EQ(index.Depths(chain, 0)[slot], 50);
        for (size_t b = chain.size(); b-- > 0;) index.Remove(slot, chain[b]);
        index.Expect(slot, Chain(1000 + 100 * i, 10), round, round + 5);
      }
      index.RemoveWorker(slot);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(index.Depths(Chain(1, 50), 0), std::vector<int32_t>(WorkerMask::kWorkersMax, 0));
}

}  // namespace
}  // namespace glm::router
