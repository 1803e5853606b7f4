#include "engine/schedule/prefix_cache.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace glm::engine {
namespace {

constexpr int32_t kBlockSize = 2;
using Ids = std::vector<int32_t>;

class PrefixCacheTest : public testing::Test {
 protected:
  explicit PrefixCacheTest(int64_t blocks = 4)
      : pool(blocks), cache(&pool, kBlockSize, *ParseHashKey("")) {}

  /// Computes and publishes all full blocks of `tokens`; holds them.
  Ids Store(const Ids& tokens, const std::string& salt = "") {
    std::vector<BlockKey> keys;
    cache.Name(salt, tokens, &keys);
    Ids held;
    for (size_t i = 0; i < keys.size(); ++i) {
      const int32_t block = cache.Allocate();
      const std::span<const int32_t> ids(tokens.data() + i * kBlockSize, kBlockSize);
      held.push_back(cache.Publish(keys[i], salt, ids, block, i == 0 ? -1 : held.back()));
      EXPECT_EQ(held.back(), block);
    }
    cache.CheckConsistent();
    pool.CheckConsistent();
    return held;
  }
  void Release(const Ids& blocks) {
    for (auto it = blocks.rbegin(); it != blocks.rend(); ++it) pool.Release(*it);
    cache.CheckConsistent();
    pool.CheckConsistent();
  }
  Ids Match(const Ids& tokens, const std::string& salt = "") {
    std::vector<BlockKey> keys;
    cache.Name(salt, tokens, &keys);
    return cache.Match(salt, tokens, keys);
  }
  StepEvents Changes() {
    StepEvents events;
    cache.TakeChanges(&events);
    return events;
  }

  BlockPool pool;
  PrefixCache cache;
};

TEST_F(PrefixCacheTest, FindsTheLongestPrefixOfFullBlocks) {
  const Ids held = Store({1, 2, 3, 4, 5});
  ASSERT_EQ(held.size(), 2u);
  EXPECT_EQ(Match({1, 2, 3, 4, 5, 6}), held);
  EXPECT_EQ(Match({1, 2, 3, 9}), (Ids{held[0]}));
  EXPECT_EQ(Match({1, 2, 3}), (Ids{held[0]}));
  EXPECT_TRUE(Match({3, 4}).empty()) << "a block is found only after what came before it";
  EXPECT_TRUE(Match({1}).empty());
}

TEST_F(PrefixCacheTest, SaltsAreApart) {
  const Ids plain = Store({1, 2});
  const Ids salted = Store({1, 2}, "tenant");
  EXPECT_EQ(Match({1, 2}), plain);
  EXPECT_EQ(Match({1, 2}, "tenant"), salted);
  EXPECT_TRUE(Match({1, 2}, "other").empty());
}

TEST_F(PrefixCacheTest, AKeyAloneIsNoHit) {
  const Ids held = Store({1, 2});
  std::vector<BlockKey> keys;
  cache.Name("", Ids{1, 2}, &keys);
  // Other tokens, or another salt, under the same key: as if two hashes were equal.
  EXPECT_TRUE(cache.Match("", Ids{1, 3}, keys).empty());
  EXPECT_TRUE(cache.Match("x", Ids{1, 2}, keys).empty());
  const int32_t block = cache.Allocate();
  EXPECT_EQ(cache.Publish(keys[0], "", Ids{1, 3}, block, -1), -1);
  EXPECT_EQ(cache.Publish(keys[0], "", Ids{1, 2}, block, held[0]), -1);
  EXPECT_EQ(cache.Publish(keys[0], "", Ids{1, 2}, block, -1), held[0]) << "the one that is there";
  pool.Release(block);
  EXPECT_EQ(pool.blocks_free(), 3);
}

TEST_F(PrefixCacheTest, EvictsTheOldestIdleAndAChildBeforeItsParent) {
  const Ids first = Store({1, 2, 3, 4});
  const Ids second = Store({5, 6, 7, 8});
  Release(first);
  Release(second);
  EXPECT_EQ(pool.blocks_idle(), 4);
  EXPECT_EQ(pool.blocks_used(), 0);
  // A hit makes the first chain the younger one.
  const Ids again = Match({1, 2, 3, 4});
  ASSERT_EQ(again, first);
  for (const int32_t block : again) pool.Share(block);
  Release(again);
  Changes();
  Ids evicted;
  for (int i = 0; i < 4; ++i) evicted.push_back(cache.Allocate());
  EXPECT_EQ(evicted, (Ids{second[1], second[0], first[1], first[0]}));
  EXPECT_EQ(cache.evictions(), 4u);
  const StepEvents events = Changes();
  ASSERT_EQ(events.cache_changes.size(), 4u);
  for (const CacheChange& change : events.cache_changes) EXPECT_FALSE(change.stored);
  EXPECT_EQ(events.cache_digest, 0u);
  EXPECT_TRUE(Match({1, 2}).empty());
}

TEST_F(PrefixCacheTest, ABlockInUseIsNeverEvicted) {
  const Ids held = Store({1, 2, 3, 4});
  Release(Store({1, 9, 3, 9}));
  for (int i = 0; i < 2; ++i) cache.Allocate();
  EXPECT_EQ(cache.blocks_available(), 0);
  EXPECT_EQ(Match({1, 2, 3, 4}), held);
}

TEST_F(PrefixCacheTest, ChangesAreNumberedAndASnapshotIsWhereTheyStand) {
  EXPECT_EQ(Changes().cache_sequence, 1u);
  Release(Store({1, 2, 3, 4}));
  const StepEvents events = Changes();
  EXPECT_EQ(events.cache_sequence, 1u);
  ASSERT_EQ(events.cache_changes.size(), 2u);
  EXPECT_EQ(events.cache_changes[0].parent, BlockKey{});
  EXPECT_EQ(events.cache_changes[1].parent, events.cache_changes[0].block);
  Store({5, 6});
  EXPECT_EQ(Changes().cache_sequence, 3u);

  const auto snapshot = cache.Snapshot();
  EXPECT_EQ(snapshot->sequence, 3u);
  ASSERT_EQ(snapshot->blocks.size(), 3u);
  Digest digest;
  std::vector<BlockKey> known{BlockKey{}};
  for (const CacheChange& block : snapshot->blocks) {
    EXPECT_NE(std::find(known.begin(), known.end(), block.parent), known.end());
    known.push_back(block.block);
    digest.Store(block.block);
  }
  EXPECT_EQ(digest.value(), snapshot->digest);
  EXPECT_EQ(Changes().cache_digest, snapshot->digest);
}

}  // namespace
}  // namespace glm::engine
