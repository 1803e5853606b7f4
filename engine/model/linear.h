// Linear layers of the model: how their weights are planned, and the rows that feed them.
//
// Who calls: attention, the feed-forward parts and Glm. A weight may pack the rows of several
// linears of the checkpoint (q, k and v; gate and up; all experts). Each rank holds its share of
// the outputs of a column-parallel linear, or of the inputs of a row-parallel one. Where a linear
// is FP8 is decided per tensor by the presence of its scales; what is packed must be alike.
#pragma once

#include <string>
#include <vector>

#include "engine/model/weight_plan.h"
#include "kernels/ops.h"

namespace glm::engine {

/// Rows that the op before a linear made: of activation type, in FP8, or both.
struct LinearInput {
  Tensor plain{};          // act [T, K], or empty
  Activation quantized{};  // FP8 [T, K] with scales, or empty

  LinearInput() = default;
  LinearInput(const Tensor& plain_in) : plain(plain_in) {}  // NOLINT: a tensor is one
  LinearInput(const Tensor& plain_in, const Activation& quantized_in)
      : plain(plain_in), quantized(quantized_in) {}

  /// The form that `weight` multiplies. REQUIRES that it was made.
  Activation For(const Weight& weight) const;
};

/// A linear of the checkpoint: tensors `name`.weight [rows, K] and maybe `name`.weight_scale.
struct LinearPart {
  std::string name;
  int64_t rows = 0;  // outputs, over all ranks
};

enum class LinearSplit : uint8_t {
  kNone,     // every rank holds all of it
  kOutputs,  // column parallel: each rank holds its share of every part's rows
  kInputs,   // row parallel: each rank holds its share of the columns
};

/// Plans `weight` from the rows of `parts`, of `columns` inputs over all ranks. With `experts` > 0
/// the parts make up as many matrices of equal size. Returns how the weight is scaled. A fault (a
/// part unlike the others, blocks of scales that a slice would cut on a device that does not take
/// that) goes to plan->Refuse.
WeightScaling PlanLinear(const std::vector<LinearPart>& parts, int64_t columns, LinearSplit split,
                         int64_t experts, DType dtype, WeightPlan* plan, Weight* weight);

/// Fills the rows of `weight`, a number of the plan and of a type that is not FP8, with `rows` of a
/// linear's weight: as it is in the checkpoint, or dequantised where its scales are there.
void FillWide(const LinearPart& part, int64_t columns, const Range& rows, int32_t weight,
              WeightPlan* plan);

/// The scales of a linear [rows, columns] in the checkpoint of `terms`; without a checkpoint, those
/// that the config promises. No name: it is not quantised.
StoredScales FindScales(const PlanTerms& terms, const LinearPart& part, int64_t columns);

/// How a loaded weight is scaled.
WeightScaling ScalingOf(const Weight& weight);

/// FP8 rows for the linears that want them: buffers for up to T x K, viewed as asked for.
class QuantizedRows {
 public:
  /// No buffers.
  QuantizedRows() = default;
  QuantizedRows(Device& device, int64_t tokens, int64_t columns);
  static int64_t Bytes(int64_t tokens, int64_t columns);

  /// Rows for `weight`, to be written by the op before it; empty when it is not FP8.
  Activation For(const Weight& weight, int64_t tokens, int64_t columns) const;

 private:
  Tensor values_;  // F8E4M3 [T * K]
  Tensor scales_;  // F32 [T * ceil(K / 128)]
};

}  // namespace glm::engine
