// Comparing computed numbers with what they should be.
//
// Who calls: tests of kernels and of the model. Any thread.
#pragma once

#include <span>
#include <string>

namespace glm::test {

/// How near is near. An element is bad when |got - want| > absolute + relative * |want|, or when
/// only one of the two is NaN.
struct Tolerance {
  double relative = 0;
  double absolute = 0;
  double similarity = 0;  // of all elements, at least
};

/// 1 for equal vectors, falling with their distance: 2 <x, y> / (<x, x> + <y, y>). Two zero vectors
/// are equal.
double Similarity(std::span<const double> x, std::span<const double> y);

/// max |x - y|; NaN if any element is.
double MaxError(std::span<const double> x, std::span<const double> y);

/// Empty when `got` is near `want`; else a message with the similarity, the largest error and the
/// first bad element. `columns` splits the element's number into row and column.
std::string Compare(std::span<const double> got, std::span<const double> want,
                    const Tolerance& tolerance, int64_t columns);

}  // namespace glm::test
