#include "router/route/block_table.h"

#include <gtest/gtest.h>

#include <bit>
#include <map>
#include <random>
#include <vector>

namespace glm::router {
namespace {

constexpr int64_t kMax = 100'000;

BlockKey Key(uint64_t number) { return {number * 0x9E3779B97F4A7C15u, number}; }

void Put(BlockTable* table, const BlockKey& key, HolderSet holders) {
  HolderSet* const place = table->FindOrInsert(key, BlockTable::HashOf(key), kMax);
  ASSERT_NE(place, nullptr);
  ASSERT_EQ(*place, 0u);
  *place = holders;
}

HolderSet Get(const BlockTable& table, const BlockKey& key) {
  const HolderSet* const place = table.Find(key, BlockTable::HashOf(key));
  return place == nullptr ? 0 : *place;
}

/// Random inserts, changes and erases against a plain map; keys from `key_of`.
template <typename KeyOf>
void CheckAgainstMap(uint64_t numbers, KeyOf key_of) {
  std::mt19937_64 random(7);
  BlockTable table;
  std::map<uint64_t, HolderSet> want;
  // Grows first, then shrinks, so that both are met.
  for (int32_t round = 0; round < 40'000; ++round) {
    const uint64_t number = random() % numbers;
    const BlockKey key = key_of(number);
    HolderSet* const place = table.Find(key, BlockTable::HashOf(key));
    ASSERT_EQ(place != nullptr, want.count(number) != 0) << "block " << number;
    const bool erases = random() % 10 < (round < 20'000 ? 3u : 7u);
    if (place == nullptr) {
      if (erases) continue;
      want[number] = 1 + static_cast<HolderSet>(round);
      Put(&table, key, want[number]);
    } else {
      ASSERT_EQ(*place, want[number]);
      ASSERT_EQ(table.FindOrInsert(key, BlockTable::HashOf(key), kMax), place);
      if (erases) {
        table.Erase(place);
        want.erase(number);
      }
    }
    if (round % 997 != 0) continue;
    ASSERT_EQ(table.size(), static_cast<int64_t>(want.size()));
    for (uint64_t k = 0; k < numbers; ++k) {
      const auto found = want.find(k);
      ASSERT_EQ(Get(table, key_of(k)), found == want.end() ? 0 : found->second) << "block " << k;
    }
  }
}

TEST(BlockTableTest, AgreesWithAMap) { CheckAgainstMap(3000, Key); }

// All names have one hash, so all stand in one cluster; the last places too.
TEST(BlockTableTest, NamesThatCollide) {
  for (const uint64_t hash : {uint64_t{0}, ~uint64_t{0} << 1 | 1}) {
    // HashOf is a product with an odd number, its halves mixed: undo it.
    uint64_t inverse = 1;
    for (int i = 0; i < 6; ++i) inverse *= 2 - inverse * 0x9E3779B97F4A7C15u;
    const uint64_t sum = (hash ^ hash >> 32) * inverse;
    ASSERT_EQ(BlockTable::HashOf({0, sum}), hash);
    CheckAgainstMap(30, [&](uint64_t n) { return BlockKey{n, sum - std::rotl(n, 31)}; });
  }
}

TEST(BlockTableTest, MemoryFollowsTheBlocks) {
  BlockTable table;
  EXPECT_EQ(table.bytes(), 0);
  for (uint64_t n = 0; n < 50'000; ++n) {
    Put(&table, Key(n), 1);
    if (n < 2000) continue;
    ASSERT_LE(table.bytes(), static_cast<int64_t>(n + 1) * 33);
    ASSERT_LE(table.bytes(), BlockTable::BytesMax(kMax));
  }
  const int64_t most = table.bytes();
  for (uint64_t n = 0; n < 49'000; ++n) {
    table.Erase(table.Find(Key(n), BlockTable::HashOf(Key(n))));
  }
  EXPECT_LT(table.bytes(), most / 10);
  for (uint64_t n = 49'000; n < 50'000; ++n) EXPECT_EQ(Get(table, Key(n)), 1u);
}

TEST(BlockTableTest, ThereIsABound) {
  BlockTable table;
  int64_t taken = 0;
  for (uint64_t n = 0; n < 1000; ++n) {
    HolderSet* const place = table.FindOrInsert(Key(n), BlockTable::HashOf(Key(n)), 100);
    if (place == nullptr) continue;
    *place = 1;
    ++taken;
  }
  EXPECT_EQ(taken, 100);
  EXPECT_EQ(table.size(), 100);
  EXPECT_LE(table.bytes(), BlockTable::BytesMax(100));
  table.Erase(table.Find(Key(5), BlockTable::HashOf(Key(5))));
  EXPECT_NE(table.FindOrInsert(Key(2000), BlockTable::HashOf(Key(2000)), 100), nullptr);
}

TEST(BlockTableTest, ASweepMeetsEachBlockOnce) {
  BlockTable table;
  constexpr uint64_t kBlocks = 5000;
  for (uint64_t n = 0; n < kBlocks; ++n) Put(&table, Key(n), 1 + static_cast<HolderSet>(n));
  std::vector<int32_t> met(kBlocks, 0);
  table.Sweep([&](HolderSet* holders) {
    const HolderSet n = *holders - 1;
    ++met[n];
    if (n % 3 != 0) *holders = 0;
  });
  EXPECT_EQ(met, std::vector<int32_t>(kBlocks, 1));
  EXPECT_EQ(table.size(), int64_t{(kBlocks + 2) / 3});
  for (uint64_t n = 0; n < kBlocks; ++n) {
    EXPECT_EQ(Get(table, Key(n)), n % 3 == 0 ? 1 + n : 0);
  }
}

}  // namespace
}  // namespace glm::router
