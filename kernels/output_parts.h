// The two parts of a product whose output is summed over ranks: first columns, then the others.
//
// Ranks must wait for each other's products before they can sum them. Cut by columns, the sum of
// the first part goes over the links while the second is multiplied; only the second's sum is then
// waited for. Not by tokens: with half of them the experts' tiles would be half as full.
//
// Who calls: linear and moe_experts of every backend, when they are given `sum_over`.
#pragma once

#include <algorithm>

#include "kernels/communicator.h"
#include "kernels/ops.h"

namespace glm {

/// How many of `columns`, at least 2, the first part has: half, in whole units of what GPU tiles
/// and vectors are made of. Units of 128 where there are several, so that no block of scales is
/// cut.
inline int64_t FirstPart(int64_t columns) {
  CHECK_GE(columns, 2) << "columns to cut in two";
  const int64_t unit = columns > 128 ? 128 : columns >= 32 ? 16 : columns >= 16 ? 8 : 1;
  return (columns / 2 + unit - 1) / unit * unit;
}

/// The linear's outputs first .. first + count - 1 alone, where FirstPart cuts it; nothing is
/// summed.
inline LinearArgs OutputsOf(const LinearArgs& args, int64_t first, int64_t count) {
  CHECK(args.bias.empty() && !args.per_logit_row) << "linear.sum_over";
  LinearArgs part = args;
  const int64_t outputs = args.weight.values.shape[0];
  part.weight.values = args.weight.values.Rows(first, count);
  const Tensor& scales = args.weight.scales;
  if (!scales.empty() && scales.shape[0] == outputs) {
    part.weight.scales = scales.Rows(first, count);
  } else if (!scales.empty()) {
    // Both parts of a single block of rows have its scales.
    constexpr int64_t kBlock = 128;
    const int64_t begin = first / kBlock;
    part.weight.scales = scales.Rows(begin, (first + count + kBlock - 1) / kBlock - begin);
  }
  part.out = args.out.Columns(first, count);
  part.sum_over = nullptr;
  return part;
}

/// out = the sum over `ranks` of what `multiply(first, count)` writes to so many of its columns.
template <typename Multiply>
void SumInParts(Device& device, Communicator& ranks, const Tensor& out, const Multiply& multiply) {
  const int64_t columns = out.shape[1];
  const int64_t first = FirstPart(columns);
  multiply(0, first);
  ranks.BeginSum(device, out.Columns(0, first));
  multiply(first, columns - first);
  ranks.EndSum(device, out.Columns(first, columns - first));
}

}  // namespace glm
