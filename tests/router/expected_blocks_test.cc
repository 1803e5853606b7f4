#include "router/route/expected_blocks.h"

#include <gtest/gtest.h>

#include <vector>

namespace glm::router {
namespace {

BlockKey Key(uint64_t number) { return {number * 0x9E3779B97F4A7C15u, number}; }

std::vector<BlockKey> Chain(uint64_t first, int32_t count) {
  std::vector<BlockKey> chain;
  for (int32_t i = 0; i < count; ++i) chain.push_back(Key(first + static_cast<uint64_t>(i)));
  return chain;
}

TEST(ExpectedBlocksTest, NotesOfAChain) {
  EXPECT_EQ(ExpectedBlocks::Notes(0), 0);
  EXPECT_EQ(ExpectedBlocks::Notes(6250), 427);
  for (int32_t length = 1; length < 1000; ++length) {
    const int32_t notes = ExpectedBlocks::Notes(length);
    int32_t before = 0;
    for (int32_t i = 0; i < notes; ++i) {
      const int32_t at = ExpectedBlocks::LengthAt(i, length);
      ASSERT_GT(at, before);
      // Between two notes less than a sixth is lost, or the fifteen of sixteen beyond 128.
      ASSERT_LE(at - before - 1, before < 16 ? 0 : before < 128 ? 3 : 15) << length;
      before = at;
    }
    ASSERT_EQ(before, length) << "the last block is noted";
  }
}

TEST(ExpectedBlocksTest, CountsUntilTheEndThatWasSaidLast) {
  HolderSets sets(1000);
  ExpectedBlocks expected(1000, &sets);
  const std::vector<BlockKey> chain = Chain(1, 10);
  expected.Expect(1, chain, 100, 200);
  EXPECT_TRUE(expected.Holders(chain[9], 199).Has(1));
  EXPECT_TRUE(expected.Holders(chain[9], 200).empty());
  expected.Expect(2, chain, 150, 300);
  EXPECT_TRUE(expected.Holders(chain[0], 250).Has(2));
  // Once the end has passed, a later time begins anew.
  expected.Expect(3, chain, 300, 400);
  EXPECT_EQ(expected.Holders(chain[0], 350).count(), 1);
  EXPECT_TRUE(expected.Holders(chain[0], 350).Has(3));
  expected.RemoveWorker(3);
  EXPECT_TRUE(expected.Holders(chain[0], 350).empty());
}

TEST(ExpectedBlocksTest, ABlockExpectedAgainAndAgainHasOneNote) {
  HolderSets sets(1000);
  ExpectedBlocks expected(100'000, &sets);
  for (int64_t now = 0; now < 5000; ++now) expected.Expect(1, Chain(1, 16), now, now + 100);
  EXPECT_EQ(expected.blocks(), 16);
  EXPECT_TRUE(expected.Holders(Key(16), 5050).Has(1));
  // What has passed goes as new notes come, and with it the sets.
  for (int64_t now = 6000; now < 7000; ++now) {
    for (int32_t slot = 0; slot < 5; ++slot) {
      expected.Expect(slot, Chain(1000 + 20 * static_cast<uint64_t>(now), 16), now, now + 10);
    }
  }
  EXPECT_LE(expected.blocks(), 16 * 200);
  EXPECT_TRUE(expected.Holders(Key(16), 7000).empty());
}

TEST(ExpectedBlocksTest, TheOldestGoesWhenThereIsNoRoom) {
  HolderSets sets(1000);
  ExpectedBlocks expected(640, &sets);
  for (uint64_t n = 0; n < 10'000; ++n) expected.Expect(1, Chain(1 + n, 1), 0, 1'000'000);
  EXPECT_LE(expected.blocks(), 640);
  EXPECT_GE(expected.blocks(), 500);
  EXPECT_TRUE(expected.Holders(Key(1), 1).empty());
  EXPECT_TRUE(expected.Holders(Key(10'000), 1).Has(1));
}

}  // namespace
}  // namespace glm::router
