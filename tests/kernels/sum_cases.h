// Products of several ranks whose outputs are summed, with numbers of their own on each rank.
//
// Who calls: tests that hold an op with `sum_over` to the same op without it and AllReduceSum of
// its output, to the bit. A GPU may sum a product's terms in another order when it computes fewer
// columns, so the terms of linears are small integers, whose sums are exact in any order.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/communicator.h"
#include "kernels/ops.h"

namespace glm::test {

/// What a rank needs for a product, in its device's memory.
struct RankProduct {
  /// Issues the op.
  std::function<void(Device&, Communicator* sum_over, const Tensor& out)> issue;
  // act [rows, columns], filled with NaN: for two runs
  Tensor apart;
  Tensor beside;
};

struct SumCase {
  std::string name;
  DType act;
  int64_t rows;       // valid; there is padding behind them
  StepLimits limits;  // what the device must have planned
  std::function<RankProduct(Device&, int32_t rank)> prepare;
};

/// Small: for the CPU, and for GPU kernels of few rows.
std::vector<SumCase> SumCases();
/// BF16, of sizes at which GPU kernels take their other paths; at most 400 rows of 5120.
std::vector<SumCase> SumLargeCases();

/// The bytes of a product's valid rows, which must be finite.
std::vector<uint8_t> ValidBytes(Device& device, const SumCase& one, const Tensor& out);

}  // namespace glm::test
