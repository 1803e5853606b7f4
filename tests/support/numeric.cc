#include "tests/support/numeric.h"

#include <algorithm>
#include <cmath>
#include <sstream>

namespace glm::test {

double Similarity(std::span<const double> x, std::span<const double> y) {
  double cross = 0;
  double squares = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    cross += x[i] * y[i];
    squares += x[i] * x[i] + y[i] * y[i];
  }
  return squares == 0 ? 1 : 2 * cross / squares;
}

double MaxError(std::span<const double> x, std::span<const double> y) {
  double largest = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double error = std::abs(x[i] - y[i]);
    if (std::isnan(error)) return error;
    largest = std::max(largest, error);
  }
  return largest;
}

std::string Compare(std::span<const double> got, std::span<const double> want,
                    const Tolerance& tolerance, int64_t columns) {
  std::ostringstream message;
  message.precision(9);
  if (got.size() != want.size()) {
    message << got.size() << " elements, expected " << want.size();
    return message.str();
  }
  size_t bad = got.size();
  size_t bad_count = 0;
  for (size_t i = got.size(); i-- > 0;) {
    const double bound = tolerance.absolute + tolerance.relative * std::abs(want[i]);
    const bool same = got[i] == want[i] || (std::isnan(got[i]) && std::isnan(want[i]));
    if (same || std::abs(got[i] - want[i]) <= bound) continue;
    bad = i;
    ++bad_count;
  }
  const double similarity = Similarity(got, want);
  if (bad_count == 0 && !(similarity < tolerance.similarity)) return "";
  message << "similarity " << similarity << " (at least " << tolerance.similarity
          << "), largest error " << MaxError(got, want);
  if (bad_count > 0) {
    const size_t width = static_cast<size_t>(std::max<int64_t>(columns, 1));
    message << ", " << bad_count << " of " << got.size() << " elements bad, first at row "
            << bad / width << ", column " << bad % width << ": " << got[bad] << ", expected "
            << want[bad];
  }
  return message.str();
}

}  // namespace glm::test
