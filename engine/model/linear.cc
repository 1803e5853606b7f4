#include "engine/model/linear.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"

namespace glm::engine {
namespace {

constexpr int64_t kBlock = kScaleBlock;

int64_t BlocksOf(int64_t extent) { return (extent + kBlock - 1) / kBlock; }

Tensor Layout(DType dtype, int64_t experts, int64_t rows, int64_t columns) {
  if (experts == 0) return Tensor(nullptr, dtype, {rows, columns});
  return Tensor(nullptr, dtype, {experts, rows / experts, columns});
}

/// Plans one packed weight, part by part.
class LinearPlanner {
 public:
  LinearPlanner(const std::vector<LinearPart>& parts, int64_t columns, LinearSplit split,
                int64_t experts, WeightPlan* plan)
      : parts_(parts), columns_(columns), split_(split), experts_(experts), plan_(*plan) {
    const RankSlice& slice = plan->terms().slice;
    columns_taken_ = split == LinearSplit::kInputs ? slice.Of(columns) : Range{0, columns};
    for (const LinearPart& part : parts) {
      scales_.push_back(FindScales(plan->terms(), part, columns));
      scaling_.push_back(scales_.back().name.empty() ? WeightScaling::kNone
                         : scales_.back().blocks     ? WeightScaling::kBlock
                                                     : WeightScaling::kChannel);
      rows_ += RowsOf(part).count;
    }
  }

  WeightScaling Plan(DType dtype, Weight* weight) {
    const WeightScaling scaling = PartScaling(0);
    for (size_t i = 1; i < parts_.size(); ++i) {
      if (PartScaling(i) == scaling) continue;
      plan_.Refuse(absl::InvalidArgumentError(
          absl::StrCat("tensor ", parts_[i].name, ".weight is ", Describe(PartScaling(i)), ", but ",
                       parts_[0].name, ".weight is ", Describe(scaling),
                       "; accepted: all linears that are computed as one quantised alike")));
      return scaling;
    }
    if (scaling == WeightScaling::kBlock) {
      weight->scale_column_offset = columns_taken_.begin % kBlock;
      rows_cut_ = RowBlocksAreCut();
      if ((rows_cut_ || weight->scale_column_offset > 0) && !plan_.terms().cut_blocks) {
        RefuseCutBlocks();
        return scaling;
      }
    }
    const bool float8 = scaling != WeightScaling::kNone;
    values_ = plan_.Add(&weight->values, Layout(float8 ? DType::kF8E4M3 : dtype, experts_, rows_,
                                                columns_taken_.count));
    if (float8) AddScales(scaling, weight);
    for (size_t i = 0; i < parts_.size(); ++i) FillPart(i, scaling);
    return scaling;
  }

 private:
  Range RowsOf(const LinearPart& part) const {
    return split_ == LinearSplit::kOutputs ? plan_.terms().slice.Of(part.rows)
                                           : Range{0, part.rows};
  }
  /// How part `i` is scaled on the device.
  WeightScaling PartScaling(size_t i) const {
    if (scaling_[i] != WeightScaling::kNone) return scaling_[i];
    return plan_.terms().quantize ? WeightScaling::kChannel : WeightScaling::kNone;
  }
  static const char* Describe(WeightScaling scaling) {
    if (scaling == WeightScaling::kNone) return "not quantised";
    return scaling == WeightScaling::kChannel ? "quantised by channel" : "quantised by block";
  }

  // Scales of a packed weight are those of its parts one after the other. Unless each part fills
  // whole blocks, but for the last of a matrix, every row gets its own.
  bool RowBlocksAreCut() const {
    const size_t per_matrix = experts_ == 0 ? parts_.size() : parts_.size() / experts_;
    for (size_t i = 0; i < parts_.size(); ++i) {
      const Range rows = RowsOf(parts_[i]);
      const bool last = (i + 1) % per_matrix == 0;
      if (rows.begin % kBlock != 0 || (rows.count % kBlock != 0 && !last)) return true;
    }
    return false;
  }
  void RefuseCutBlocks() {
    plan_.Refuse(absl::InvalidArgumentError(absl::StrCat(
        "tensor ", parts_[0].name, ".weight ", ShapeText({parts_[0].rows, columns_}),
        " is quantised in blocks of 128 x 128, which packing on ", plan_.terms().slice.size,
        " ranks would cut; accepted on this device: parts of whole blocks, or scales by channel")));
  }
  // Blocks of columns that the rank's columns touch.
  Range ColumnBlocks() const {
    const int64_t begin = columns_taken_.begin / kBlock;
    return {begin, BlocksOf(columns_taken_.begin + columns_taken_.count) - begin};
  }

  // Rows of scales of a part with so many rows, scaled by block.
  int64_t ScaleRows(int64_t rows) const { return rows_cut_ ? rows : BlocksOf(rows); }

  void AddScales(WeightScaling scaling, Weight* weight) {
    if (scaling == WeightScaling::kBlock) {
      int64_t blocks = 0;
      for (const LinearPart& part : parts_) blocks += ScaleRows(RowsOf(part).count);
      scale_values_ =
          plan_.Add(&weight->scales, Layout(DType::kF32, experts_, blocks, ColumnBlocks().count));
      return;
    }
    const Tensor layout = experts_ == 0
                              ? Tensor(nullptr, DType::kF32, {rows_})
                              : Tensor(nullptr, DType::kF32, {experts_, rows_ / experts_});
    scale_values_ = plan_.Add(&weight->scales, layout, /*columns=*/1);
  }

  void FillPart(size_t i, WeightScaling scaling) {
    const LinearPart& part = parts_[i];
    const Range rows = RowsOf(part);
    Slot values{.name = part.name + ".weight",
                .shape = {part.rows, columns_},
                .rows = rows,
                .columns = columns_taken_,
                .weight = values_,
                .weight_row = row_,
                .fan_in = columns_};
    const bool quantize = scaling != WeightScaling::kNone && scaling_[i] == WeightScaling::kNone;
    if (quantize) {
      values.kind = SlotKind::kQuantized;
      values.scale_weight = scale_values_;
    }
    plan_.Fill(std::move(values));
    if (scaling != WeightScaling::kNone && !quantize) FillScales(scales_[i], rows, scaling);
    row_ += rows.count;
    scale_row_ += scaling == WeightScaling::kBlock ? ScaleRows(rows.count) : rows.count;
  }

  void FillScales(const StoredScales& stored, const Range& rows, WeightScaling scaling) {
    Slot slot{.name = stored.name,
              .shape = stored.shape,
              .rows = rows,
              .columns = {0, 1},
              .weight = scale_values_,
              .weight_row = scale_row_,
              .kind = SlotKind::kScales,
              .fan_in = columns_};
    if (scaling == WeightScaling::kBlock) {
      slot.columns = ColumnBlocks();
      if (rows_cut_) {
        slot.repeat = kBlock;
      } else {
        slot.rows = {rows.begin / kBlock, BlocksOf(rows.count)};
      }
    }
    plan_.Fill(std::move(slot));
  }

  const std::vector<LinearPart>& parts_;
  const int64_t columns_;
  const LinearSplit split_;
  const int64_t experts_;
  WeightPlan& plan_;
  Range columns_taken_;
  std::vector<StoredScales> scales_;    // of each part
  std::vector<WeightScaling> scaling_;  // and what they make of it
  bool rows_cut_ = false;               // block scales: every row has its own
  int64_t rows_ = 0;                    // of all parts, on this rank
  int32_t values_ = 0;                  // number of the values in the plan
  int32_t scale_values_ = 0;            // and of the scales
  int64_t row_ = 0;                     // of the next part, in the values
  int64_t scale_row_ = 0;               // and in the scales
};

}  // namespace

StoredScales FindScales(const PlanTerms& terms, const LinearPart& part, int64_t columns) {
  if (terms.scaling == WeightScaling::kNone) return {};
  StoredScales scales;
  const std::string inverse = part.name + ".weight_scale_inv";
  scales.name = part.name + ".weight_scale";
  if (terms.stored != nullptr) {
    if (terms.stored->count(inverse) != 0) scales.name = inverse;
    if (terms.stored->count(scales.name) == 0) return {};
  }
  scales.blocks = scales.name == inverse || terms.scaling == WeightScaling::kBlock;
  if (scales.blocks) {
    scales.shape = {BlocksOf(part.rows), BlocksOf(columns)};
    return scales;
  }
  scales.shape = {part.rows, 1};
  const bool flat = terms.stored != nullptr && terms.stored->at(scales.name).shape.size() == 1;
  if (flat) scales.shape = {part.rows};
  return scales;
}

void FillWide(const LinearPart& part, int64_t columns, const Range& rows, int32_t weight,
              WeightPlan* plan) {
  Slot slot{.name = part.name + ".weight",
            .shape = {part.rows, columns},
            .rows = rows,
            .columns = {0, columns},
            .weight = weight,
            .fan_in = columns};
  // Without a checkpoint there is nothing to dequantise.
  if (plan->terms().stored != nullptr) slot.scales = FindScales(plan->terms(), part, columns);
  if (!slot.scales.name.empty()) slot.kind = SlotKind::kDequantized;
  plan->Fill(std::move(slot));
}

Activation LinearInput::For(const Weight& weight) const {
  if (weight.scales.empty()) {
    CHECK(!plain.empty()) << "a linear that is not FP8 wants plain rows";
    return {plain, {}};
  }
  CHECK(!quantized.values.empty()) << "an FP8 linear wants FP8 rows";
  return quantized;
}

WeightScaling PlanLinear(const std::vector<LinearPart>& parts, int64_t columns, LinearSplit split,
                         int64_t experts, DType dtype, WeightPlan* plan, Weight* weight) {
  return LinearPlanner(parts, columns, split, experts, plan).Plan(dtype, weight);
}

WeightScaling ScalingOf(const Weight& weight) {
  if (weight.scales.empty()) return WeightScaling::kNone;
  return weight.scales.rank == weight.values.rank ? WeightScaling::kBlock : WeightScaling::kChannel;
}

QuantizedRows::QuantizedRows(Device& device, int64_t tokens, int64_t columns)
    : values_(device.NewTensor(DType::kF8E4M3, {tokens * columns})),
      scales_(device.NewTensor(DType::kF32, {tokens * BlocksOf(columns)})) {}

int64_t QuantizedRows::Bytes(int64_t tokens, int64_t columns) {
  return tokens * (columns + BlocksOf(columns) * ByteSize(DType::kF32));
}

Activation QuantizedRows::For(const Weight& weight, int64_t tokens, int64_t columns) const {
  const WeightScaling scaling = ScalingOf(weight);
  if (scaling == WeightScaling::kNone) return {};
  CHECK_LE(tokens * columns, values_.elements()) << "FP8 rows of a step";
  const Tensor values(values_.data, DType::kF8E4M3, {tokens, columns});
  if (scaling == WeightScaling::kChannel) {
    return {values, Tensor(scales_.data, DType::kF32, {tokens})};
  }
  return {values, Tensor(scales_.data, DType::kF32, {tokens, BlocksOf(columns)})};
}

}  // namespace glm::engine
