#include "engine/model/weight_plan.h"

#include <utility>

#include "proto/base/log.h"

namespace glm::engine {
namespace {

int64_t ColumnsOf(const Tensor& tensor) {
  return tensor.rank == 1 ? 1 : tensor.shape[tensor.rank - 1];
}
int64_t ColumnsOf(const std::vector<int64_t>& shape) { return shape.size() == 1 ? 1 : shape[1]; }

}  // namespace

int32_t WeightPlan::Add(Tensor* target, const Tensor& layout) {
  return Add(target, layout, ColumnsOf(layout));
}

int32_t WeightPlan::Add(Tensor* target, const Tensor& layout, int64_t columns) {
  entries_.push_back({.layout = layout, .target = target, .columns = columns});
  return static_cast<int32_t>(entries_.size()) - 1;
}

void WeightPlan::Fill(Slot slot) {
  Entry& entry = entries_.at(slot.weight);
  CHECK_EQ(slot.columns.count, entry.columns) << "columns of " << slot.name;
  CHECK_EQ(slot.weight_row, entry.rows_filled) << "rows are filled in order, at " << slot.name;
  CHECK_LE(slot.rows.begin + slot.rows.count, slot.shape[0] * slot.repeat)
      << "rows of " << slot.name;
  CHECK_LE(slot.columns.begin + slot.columns.count, ColumnsOf(slot.shape))
      << "columns of " << slot.name;
  entry.rows_filled += slot.rows.count;
  if (slot.kind == SlotKind::kQuantized) {
    entries_.at(slot.scale_weight).rows_filled += slot.rows.count;
  }
  slots_.push_back(std::move(slot));
}

void WeightPlan::Fill(int32_t weight, int64_t weight_row, std::string name,
                      std::vector<int64_t> shape) {
  const Range rows{0, shape[0]};
  const Range columns{0, ColumnsOf(shape)};
  Fill({.name = std::move(name),
        .shape = std::move(shape),
        .rows = rows,
        .columns = columns,
        .weight = weight,
        .weight_row = weight_row});
}

void WeightPlan::AddWhole(Tensor* target, const Tensor& layout, std::string name) {
  const std::vector<int64_t> shape(layout.shape.begin(), layout.shape.begin() + layout.rank);
  Fill(Add(target, layout), 0, std::move(name), shape);
}

void WeightPlan::AddRows(Tensor* target, DType dtype, std::string name, int64_t rows,
                         int64_t columns) {
  const Range share = terms_.slice.Of(rows);
  Fill({.name = std::move(name),
        .shape = {rows, columns},
        .rows = share,
        .columns = {0, columns},
        .weight = Add(target, Tensor(nullptr, dtype, {share.count, columns}))});
}

void WeightPlan::SetAside(std::string prefix) { prefixes_aside_.push_back(std::move(prefix)); }

void WeightPlan::Take(std::string name) { names_taken_.push_back(std::move(name)); }

void WeightPlan::Refuse(absl::Status fault) { status_.Update(std::move(fault)); }

int64_t WeightPlan::bytes() const {
  int64_t bytes = 0;
  for (const Entry& entry : entries_) bytes += entry.layout.bytes();
  return bytes;
}

void WeightPlan::Detach() {
  for (Entry& entry : entries_) entry.target = nullptr;
}

}  // namespace glm::engine
