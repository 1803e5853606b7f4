// Distances between two sets of logits, one row a position.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace glm::test {

using Rows = std::vector<std::vector<float>>;

/// The largest difference of any two logits; NaN if there is one.
inline double MaxDifference(const Rows& a, const Rows& b) {
  EXPECT_EQ(a.size(), b.size());
  double largest = 0;
  for (size_t r = 0; r < a.size(); ++r) {
    EXPECT_EQ(a[r].size(), b[r].size());
    for (size_t i = 0; i < a[r].size(); ++i) {
      const double difference = std::abs(double{a[r][i]} - double{b[r][i]});
      if (!(difference <= largest)) largest = difference;  // NaN is the largest
    }
  }
  return largest;
}

/// The root mean square of all differences.
inline double RmsDifference(const Rows& a, const Rows& b) {
  EXPECT_EQ(a.size(), b.size());
  double sum = 0;
  int64_t count = 0;
  for (size_t r = 0; r < a.size(); ++r) {
    for (size_t i = 0; i < a[r].size(); ++i, ++count) {
      sum += std::pow(double{a[r][i]} - double{b[r][i]}, 2);
    }
  }
  return std::sqrt(sum / static_cast<double>(count));
}

/// The median over positions of a position's root mean square. Now and then a rounding chooses
/// another expert, or another FP8 code, which moves one position by tenths: this is not moved by
/// it.
inline double MedianDifference(const Rows& a, const Rows& b) {
  std::vector<double> differences;
  for (size_t r = 0; r < a.size(); ++r) differences.push_back(RmsDifference({a[r]}, {b[r]}));
  const auto middle = differences.begin() + static_cast<int64_t>(differences.size() / 2);
  std::nth_element(differences.begin(), middle, differences.end());
  return *middle;
}

}  // namespace glm::test
