#include "proto/base/block_hash.h"

#include <gtest/gtest.h>

#include <numeric>
#include <set>
#include <string>
#include <utility>

namespace glm {
namespace {

/// A hash as it is written in the paper's vectors: first byte first.
std::string Hex(const BlockKey& key) {
  std::string text;
  for (const uint64_t half : {key.low, key.high}) {
    for (int i = 0; i < 8; ++i) {
      const auto byte = static_cast<int>(half >> (8 * i) & 0xff);
      text += "0123456789abcdef"[byte >> 4];
      text += "0123456789abcdef"[byte & 15];
    }
  }
  return text;
}

TEST(SipHashTest, GivesTheVectorsOfItsAuthors) {
  // Key 00 01 .. 0f, input 00 01 .. of each length; `openssl mac ... SIPHASH` says the same.
  const std::pair<int, const char*> vectors[] = {
      {0, "a3817f04ba25a8e66df67214c7550293"},  {1, "da87c1d86b99af44347659119b22fc45"},
      {2, "8177228da4a45dc7fca38bdef60affe4"},  {3, "9c70b60c5267a94e5f33b6b02985ed51"},
      {7, "a1f1ebbed8dbc153c0b84aa61ff08239"},  {8, "3b62a9ba6258f5610f83e264f31497b4"},
      {15, "5493e99933b0a8117e08ec0f97cfc3d9"}, {63, "5150d1772f50834a503e069a973fbd7c"},
  };
  HashKey key{};
  std::iota(key.begin(), key.end(), uint8_t{0});
  for (const auto& [length, expected] : vectors) {
    std::vector<uint8_t> input(length);
    std::iota(input.begin(), input.end(), uint8_t{0});
    EXPECT_EQ(Hex(SipHash128(key, input)), expected) << length << " bytes";
  }
}

TEST(BlockHashTest, KeysAreTheContractsBytes) {
  // Made with openssl from the bytes that the header states, under the public key.
  BlockHasher hasher(*ParseHashKey(""));
  const std::vector<int32_t> ids{1, 2, 3, 70000};
  const std::vector<int32_t> more{5, 6, 7, 8};
  EXPECT_EQ(Hex(hasher.First("abc", ids)), "ff2e7745787addae4f9dc3dcef5a514e");
  const BlockKey first = hasher.First("", ids);
  EXPECT_EQ(Hex(first), "099ebfa54c109bc8ea9456afd0213dcf");
  EXPECT_EQ(Hex(hasher.Next(first, more)), "5a417b2a2535d90bcdb69afc543a9b7c");
}

TEST(BlockHashTest, EverythingThatABlockMeansIsInItsKey) {
  BlockHasher hasher(*ParseHashKey(""));
  BlockHasher other(*ParseHashKey("000102030405060708090A0b0c0d0e0f"));
  const std::vector<int32_t> ids{1, 2};
  const std::vector<int32_t> changed{1, 3};
  const BlockKey first = hasher.First("", ids);
  const BlockKey keys[] = {
      first,
      hasher.First("", changed),
      hasher.First("a", ids),
      other.First("", ids),
      hasher.Next(first, ids),
      hasher.Next(hasher.First("a", ids), ids),
      hasher.Next(BlockKey{}, ids),
  };
  std::set<std::pair<uint64_t, uint64_t>> distinct;
  for (const BlockKey& key : keys) distinct.insert({key.high, key.low});
  EXPECT_EQ(distinct.size(), std::size(keys));
}

TEST(BlockHashTest, ParsesKeysOfThirtyTwoHexDigits) {
  const auto key = ParseHashKey("00112233445566778899aabbccddeeFF");
  ASSERT_TRUE(key.has_value());
  EXPECT_EQ((*key)[1], 0x11);
  EXPECT_EQ((*key)[15], 0xff);
  EXPECT_EQ((*ParseHashKey(""))[0], 'g');
  for (const char* wrong :
       {"0", "00112233445566778899aabbccddeef", "g0112233445566778899aabbccddeeff",
        "00112233445566778899aabbccddeeff0"}) {
    EXPECT_FALSE(ParseHashKey(wrong).has_value()) << wrong;
  }
}

TEST(DigestTest, IsOfTheSetAndNotOfTheWayThere) {
  Digest a;
  a.Store({1, 2});
  a.Store({3, 4});
  a.Remove({1, 2});
  Digest b;
  b.Store({3, 4});
  EXPECT_EQ(a.value(), b.value());
  b.Store({4, 3});
  EXPECT_NE(a.value(), b.value());
  b.Remove({3, 4});
  b.Remove({4, 3});
  EXPECT_EQ(b.value(), 0u);
}

TEST(DigestTest, HalvesOfTwoNamesMixedUpAreSeen) {
  Digest right;
  right.Store({11, 12});
  right.Store({21, 22});
  Digest mixed;
  mixed.Store({21, 12});
  mixed.Store({11, 22});
  EXPECT_NE(right.value(), mixed.value());
}

TEST(DigestTest, IsAWireContract) {
  Digest digest;
  digest.Store({0x0123456789ABCDEF, 0xFEDCBA9876543210});
  EXPECT_EQ(digest.value(), 0xbe4484c08ed5cfc7u);
}

}  // namespace
}  // namespace glm
