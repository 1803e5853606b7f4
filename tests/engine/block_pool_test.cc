#include "engine/schedule/block_pool.h"

#include <gtest/gtest.h>

#include <set>

namespace glm::engine {
namespace {

TEST(BlockPoolTest, HandsOutEachBlockOnce) {
  BlockPool pool(5);
  std::set<int32_t> blocks;
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(pool.blocks_free(), 5 - i);
    const int32_t block = pool.Allocate();
    EXPECT_EQ(pool.references(block), 1);
    blocks.insert(block);
    pool.CheckConsistent();
  }
  EXPECT_EQ(blocks, (std::set<int32_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(pool.blocks_free(), 0);
  EXPECT_EQ(pool.blocks_used(), pool.blocks_total());
}

TEST(BlockPoolTest, SharedBlockIsFreeAfterItsLastRelease) {
  BlockPool pool(2);
  const int32_t block = pool.Allocate();
  pool.Share(block);
  pool.Share(block);
  EXPECT_EQ(pool.references(block), 3);
  pool.Release(block);
  pool.Release(block);
  EXPECT_EQ(pool.blocks_used(), 1);
  pool.Release(block);
  EXPECT_EQ(pool.blocks_used(), 0);
  EXPECT_EQ(pool.references(block), 0);
  pool.CheckConsistent();
}

TEST(BlockPoolTest, KeptBlocksAreIdleInTheOrderOfTheirLastRelease) {
  BlockPool pool(4);
  for (int i = 0; i < 4; ++i) pool.Allocate();
  for (const int32_t block : {0, 1, 2}) pool.Keep(block);
  for (const int32_t block : {2, 0, 1, 3}) pool.Release(block);
  pool.CheckConsistent();
  EXPECT_EQ(pool.blocks_idle(), 3);
  EXPECT_EQ(pool.blocks_free(), 1);
  EXPECT_EQ(pool.blocks_used(), 0);
  EXPECT_EQ(pool.OldestIdle(), 2);
  pool.Share(0);  // from the middle of the queue
  EXPECT_EQ(pool.references(0), 1);
  EXPECT_EQ(pool.blocks_used(), 1);
  pool.CheckConsistent();
  pool.Forget(2);
  EXPECT_EQ(pool.OldestIdle(), 1);
  pool.Release(0);
  pool.Forget(1);
  EXPECT_EQ(pool.OldestIdle(), 0);
  pool.Forget(0);
  EXPECT_EQ(pool.OldestIdle(), -1);
  EXPECT_EQ(pool.blocks_free(), 4);
  pool.CheckConsistent();
}

TEST(BlockPoolDeathTest, RefusesWhatTheCallerDoesNotHold) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  BlockPool pool(1);
  EXPECT_DEATH(pool.Release(0), "KV block 0 is not held");
  EXPECT_DEATH(pool.Share(0), "KV block 0 is free");
  EXPECT_DEATH(pool.Release(1), "KV block 1 of 1");
  pool.Allocate();
  EXPECT_DEATH(pool.Allocate(), "no KV block of 1 is free");
}

}  // namespace
}  // namespace glm::engine
