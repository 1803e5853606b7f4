#include "engine/model/loader.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "proto/base/log.h"

namespace glm::engine {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kProgressEvery{2};
// Host memory through which converted and cut parts go.
constexpr int64_t kStagingBytes = 4 << 20;

int64_t RowsOf(const Tensor& tensor) {
  return tensor.rank == 1 ? tensor.shape[0] : tensor.elements() / tensor.shape[tensor.rank - 1];
}
int64_t ColumnsOf(const Tensor& tensor) {
  return tensor.rank == 1 ? 1 : tensor.shape[tensor.rank - 1];
}
int64_t ColumnsOf(const std::vector<int64_t>& shape) { return shape.size() == 1 ? 1 : shape[1]; }

bool CanConvert(DType source, DType target) {
  if (source == target) return true;
  return (source == DType::kF32 && target == DType::kBF16) ||
         (source == DType::kBF16 && target == DType::kF32);
}

// `count` elements at `source`, of any alignment, as `target_type` to `target`.
void Convert(DType source_type, const std::byte* source, DType target_type, std::byte* target,
             int64_t count) {
  if (source_type == target_type) {
    std::memcpy(target, source, static_cast<size_t>(count * ByteSize(source_type)));
  } else if (source_type == DType::kBF16) {
    for (int64_t i = 0; i < count; ++i) {
      BFloat16 value;
      std::memcpy(&value, source + i * 2, 2);
      const float wide = ToFloat(value);
      std::memcpy(target + i * 4, &wide, 4);
    }
  } else {
    for (int64_t i = 0; i < count; ++i) {
      float value;
      std::memcpy(&value, source + i * 4, 4);
      const BFloat16 narrow = ToBFloat16(value);
      std::memcpy(target + i * 2, &narrow, 2);
    }
  }
}

bool IsAside(const WeightPlan& plan, const std::string& name) {
  const auto& prefixes = plan.prefixes_aside();
  return std::any_of(prefixes.begin(), prefixes.end(),
                     [&](const std::string& prefix) { return absl::StartsWith(name, prefix); });
}

// Copies the slot's part of the tensor into its rows of the weight.
void FillSlot(Device& device, const Slot& slot, const StoredTensor& stored, const Tensor& weight,
              std::vector<std::byte>* staging) {
  const int64_t columns = ColumnsOf(stored.shape);
  const int64_t source_size = ByteSize(stored.dtype);
  const int64_t target_size = ByteSize(weight.dtype);
  const std::byte* source =
      stored.data + (slot.rows.begin * columns + slot.columns.begin) * source_size;
  std::byte* target = weight.Data<std::byte>() + slot.weight_row * slot.columns.count * target_size;
  if (stored.dtype == weight.dtype && slot.columns.count == columns) {
    device.CopyToDevice(target, source, slot.rows.count * columns * source_size);
    device.Synchronize();
    return;
  }
  const int64_t row_bytes = slot.columns.count * target_size;
  const int64_t rows_at_once = std::max<int64_t>(1, kStagingBytes / row_bytes);
  for (int64_t row = 0; row < slot.rows.count; row += rows_at_once) {
    const int64_t rows = std::min(rows_at_once, slot.rows.count - row);
    staging->resize(static_cast<size_t>(rows * row_bytes));
    for (int64_t r = 0; r < rows; ++r) {
      Convert(stored.dtype, source + (row + r) * columns * source_size, weight.dtype,
              staging->data() + r * row_bytes, slot.columns.count);
    }
    device.CopyToDevice(target + row * row_bytes, staging->data(), rows * row_bytes);
    device.Synchronize();  // the staging memory is used again
  }
}

// The plan's own promise: with rows filled in order, which Fill checks, every row is filled once.
void CheckComplete(const WeightPlan& plan) {
  for (const WeightPlan::Entry& entry : plan.entries()) {
    CHECK_EQ(entry.rows_filled, RowsOf(entry.layout)) << "rows of a weight of the plan";
  }
}

std::string Gigabytes(int64_t bytes) {
  return absl::StrFormat("%.3f GB", static_cast<double>(bytes) * 1e-9);
}

}  // namespace

int32_t WeightPlan::Add(Tensor* target, const Tensor& layout) {
  entries_.push_back({.layout = layout, .target = target});
  return static_cast<int32_t>(entries_.size()) - 1;
}

void WeightPlan::Fill(Slot slot) {
  Entry& entry = entries_.at(slot.weight);
  CHECK_EQ(slot.columns.count, ColumnsOf(entry.layout)) << "columns of " << slot.name;
  CHECK_EQ(slot.weight_row, entry.rows_filled) << "rows are filled in order, at " << slot.name;
  CHECK_LE(slot.rows.begin + slot.rows.count, slot.shape[0]) << "rows of " << slot.name;
  CHECK_LE(slot.columns.begin + slot.columns.count, ColumnsOf(slot.shape))
      << "columns of " << slot.name;
  entry.rows_filled += slot.rows.count;
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

void WeightPlan::SetAside(std::string prefix) { prefixes_aside_.push_back(std::move(prefix)); }

int64_t WeightPlan::bytes() const {
  int64_t bytes = 0;
  for (const Entry& entry : entries_) bytes += entry.layout.bytes();
  return bytes;
}

absl::Status CheckPlan(const WeightPlan& plan, const Checkpoint& checkpoint) {
  CheckComplete(plan);
  std::set<std::string> used;
  for (const Slot& slot : plan.slots()) {
    used.insert(slot.name);
    const auto found = checkpoint.tensors().find(slot.name);
    if (found == checkpoint.tensors().end()) {
      return absl::NotFoundError(
          absl::StrCat(checkpoint.folder(), ": tensor ", slot.name, " is missing"));
    }
    const StoredTensor& stored = found->second;
    const DType target = plan.entries()[slot.weight].layout.dtype;
    if (stored.shape != slot.shape) {
      return absl::InvalidArgumentError(absl::StrCat(checkpoint.folder(), ": tensor ", slot.name,
                                                     " has shape ", ShapeText(stored.shape),
                                                     "; expected: ", ShapeText(slot.shape)));
    }
    if (!CanConvert(stored.dtype, target)) {
      return absl::InvalidArgumentError(absl::StrCat(checkpoint.folder(), ": tensor ", slot.name,
                                                     " is ", Name(stored.dtype),
                                                     "; accepted: F32, BF16"));
    }
  }
  for (const auto& [name, stored] : checkpoint.tensors()) {
    if (used.count(name) == 0 && !IsAside(plan, name)) {
      return absl::InvalidArgumentError(absl::StrCat(checkpoint.folder(), ": tensor ", name, " ",
                                                     ShapeText(stored.shape),
                                                     " has no place in this model"));
    }
  }
  return absl::OkStatus();
}

absl::Status LoadWeights(Device& device, const Checkpoint& checkpoint, const WeightPlan& plan) {
  const absl::Status checked = CheckPlan(plan, checkpoint);
  if (!checked.ok()) return checked;
  if (plan.bytes() > device.BytesFree()) {
    return absl::ResourceExhaustedError(absl::StrCat("the weights take ", Gigabytes(plan.bytes()),
                                                     ", ", device.Describe(), " has ",
                                                     Gigabytes(device.BytesFree()), " free"));
  }
  for (const WeightPlan::Entry& entry : plan.entries()) {
    *entry.target = entry.layout;
    entry.target->data = device.Allocate(entry.layout.bytes());
  }

  const Clock::time_point start = Clock::now();
  Clock::time_point last_line = start;
  std::vector<std::byte> staging;
  int64_t bytes_done = 0;
  for (const Slot& slot : plan.slots()) {
    const Tensor& weight = *plan.entries()[slot.weight].target;
    FillSlot(device, slot, checkpoint.tensors().at(slot.name), weight, &staging);
    bytes_done += slot.rows.count * slot.columns.count * ByteSize(weight.dtype);
    const Clock::time_point now = Clock::now();
    if (now - last_line < kProgressEvery) continue;
    last_line = now;
    const double seconds = std::chrono::duration<double>(now - start).count();
    const double rate = static_cast<double>(bytes_done) / seconds;
    LOG(INFO) << "loading weights: " << Gigabytes(bytes_done) << " of " << Gigabytes(plan.bytes())
              << ", " << Gigabytes(static_cast<int64_t>(rate)) << "/s, "
              << absl::StrFormat("%.0f s to go",
                                 static_cast<double>(plan.bytes() - bytes_done) / rate);
  }
  CHECK_EQ(bytes_done, plan.bytes()) << "bytes of the plan";

  int64_t aside = 0;
  for (const auto& [name, stored] : checkpoint.tensors()) aside += IsAside(plan, name) ? 1 : 0;
  LOG(INFO) << "loaded " << plan.slots().size() << " tensors of " << checkpoint.folder() << ", "
            << Gigabytes(plan.bytes()) << " of weights in "
            << absl::StrFormat("%.2f s",
                               std::chrono::duration<double>(Clock::now() - start).count())
            << (aside > 0 ? absl::StrCat("; ", aside, " tensors of the MTP layer set aside") : "");
  return absl::OkStatus();
}

}  // namespace glm::engine
