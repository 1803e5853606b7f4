#include "router/route/placement.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace glm::router {
namespace {

TEST(PlacementTest, TheChainNamesFullBlocksOfAllButTheLastToken) {
  const Placement placement(Policy::kPrefix, *ParseHashKey(""), 100, 1000);
  std::vector<int32_t> ids(49);
  std::iota(ids.begin(), ids.end(), 10);
  const std::vector<BlockKey> chain = placement.Chain("", ids, 16);
  ASSERT_EQ(chain.size(), 3u);
  BlockHasher hasher(*ParseHashKey(""));
  const std::span<const int32_t> all(ids);
  EXPECT_EQ(chain[0], hasher.First("", all.subspan(0, 16)));
  EXPECT_EQ(chain[1], hasher.Next(chain[0], all.subspan(16, 16)));
  ids.pop_back();
  EXPECT_EQ(placement.Chain("", ids, 16).size(), 2u) << "the last token is always computed";
  EXPECT_NE(placement.Chain("salt", ids, 16)[0], chain[0]);
  EXPECT_TRUE(placement.Chain("", std::vector<int32_t>(16), 16).empty());
}

TEST(PlacementTest, OnlyPoliciesThatCountPrefixesNameBlocks) {
  const std::vector<int32_t> ids(50, 1);
  for (const Policy policy : {Policy::kLeastLoad, Policy::kRoundRobin, Policy::kPowerOfTwo}) {
    const Placement placement(policy, *ParseHashKey(""), 100, 1000);
    EXPECT_TRUE(placement.Chain("", ids, 16).empty());
  }
  const Placement placement(Policy::kSession, *ParseHashKey(""), 100, 1000);
  EXPECT_EQ(placement.Chain("", ids, 16).size(), 3u);
}

TEST(PlacementTest, NamesHashAlikeUnderOneKey) {
  const Placement a(Policy::kSession, *ParseHashKey(""), 100, 1000);
  const Placement b(Policy::kSession, *ParseHashKey(""), 200, 1);
  const Placement c(Policy::kSession, *ParseHashKey("000102030405060708090a0b0c0d0e0f"), 100, 1);
  EXPECT_EQ(a.HashOf("worker-1:7000"), b.HashOf("worker-1:7000"));
  EXPECT_NE(a.HashOf("worker-1:7000"), a.HashOf("worker-2:7000"));
  EXPECT_NE(a.HashOf("worker-1:7000"), c.HashOf("worker-1:7000"));
}

TEST(PlacementTest, TurnsCount) {
  Placement placement(Policy::kRoundRobin, *ParseHashKey(""), 100, 1000);
  EXPECT_EQ(placement.NextTurn(), 0u);
  EXPECT_EQ(placement.NextTurn(), 1u);
}

}  // namespace
}  // namespace glm::router
