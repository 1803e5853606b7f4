// The generator against the known answers that its authors publish with Random123 (kat_vectors).
#include "kernels/philox.h"

#include <gtest/gtest.h>

#include <set>

namespace glm {
namespace {

using Block = std::array<uint32_t, 4>;

TEST(PhiloxTest, KnownAnswers) {
  EXPECT_EQ(Philox({0, 0, 0, 0}, {0, 0}), (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(PhiloxTest, UniformIsInsideAndUneventful) {
  constexpr int kDraws = 100000;
  constexpr int kCells = 64;
  int cells[kCells] = {};
  for (uint32_t position = 0; position < kDraws; ++position) {
    const float u = PhiloxUniform(42, PhiloxStream::kSample, position);
    ASSERT_GT(u, 0.0f);
    ASSERT_LT(u, 1.0f);
    ++cells[static_cast<int>(u * kCells)];
  }
  double chi_square = 0;
  for (const int cell : cells) {
    const double expected = static_cast<double>(kDraws) / kCells;
    chi_square += (cell - expected) * (cell - expected) / expected;
  }
  EXPECT_LT(chi_square, 103.4);  // 63 degrees of freedom, p = 0.001
}

TEST(PhiloxTest, EveryArgumentMatters) {
  std::set<float> draws;
  for (const uint64_t seed : {uint64_t{1}, uint64_t{2}, uint64_t{1} << 40}) {
    for (const PhiloxStream stream : {PhiloxStream::kSample, PhiloxStream::kVerify}) {
      for (const uint32_t position : {0u, 1u}) {
        for (const uint32_t lane : {0u, 1u}) {
          draws.insert(PhiloxUniform(seed, stream, position, lane));
        }
      }
    }
  }
  EXPECT_EQ(draws.size(), 3u * 2 * 2 * 2);
}

}  // namespace
}  // namespace glm
