// Loader: from names in a checkpoint to weights in device memory.
//
// Three steps, so that a wrong checkpoint is refused before memory is taken or a byte is copied:
// the model's parts write a WeightPlan (pure: names, shapes, places), the plan is checked against
// the checkpoint, then memory is allocated and filled. A slot may take a part of the rows or
// columns of a checkpoint tensor, which is what a rank of a tensor-parallel worker needs.
//
// Who calls: Glm::Load, on the thread that owns the device.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/model/safetensors.h"
#include "kernels/device.h"
#include "kernels/tensor.h"

namespace glm::engine {

/// [begin, begin + count) of a dimension.
struct Range {
  int64_t begin = 0;
  int64_t count = 0;
};

/// A part of one checkpoint tensor, and the rows of the weight that it fills. Everything counts as
/// a matrix of rows: a vector has one column, and all dimensions of a weight but the last are one.
struct Slot {
  std::string name;            // of the checkpoint tensor
  std::vector<int64_t> shape;  // of the whole checkpoint tensor: [rows] or [rows, columns]
  Range rows;                  // that this slot takes
  Range columns;               // that this slot takes: as many as the weight has
  int32_t weight = 0;          // number that WeightPlan::Add gave
  int64_t weight_row = 0;      // row of the weight that gets the first of `rows`
};

/// The weights of a model on one rank, and where in the checkpoint each of their rows comes from.
class WeightPlan {
 public:
  struct Entry {
    Tensor layout;            // dtype and shape, no memory
    Tensor* target;           // gets the memory when the plan is loaded
    int64_t rows_filled = 0;  // by the slots so far
  };

  /// A weight of `layout`. `target` must stay where it is until the plan is loaded.
  int32_t Add(Tensor* target, const Tensor& layout);
  /// Fills rows of a weight with a part of a checkpoint tensor.
  void Fill(Slot slot);
  /// Fills rows of a weight with a whole checkpoint tensor.
  void Fill(int32_t weight, int64_t weight_row, std::string name, std::vector<int64_t> shape);
  /// A weight that is one whole checkpoint tensor.
  void AddWhole(Tensor* target, const Tensor& layout, std::string name);
  /// Checkpoint tensors whose names begin so may be there, and are not loaded.
  void SetAside(std::string prefix);

  const std::vector<Entry>& entries() const { return entries_; }
  const std::vector<Slot>& slots() const { return slots_; }
  const std::vector<std::string>& prefixes_aside() const { return prefixes_aside_; }
  /// Device bytes of all weights.
  int64_t bytes() const;

 private:
  std::vector<Entry> entries_;
  std::vector<Slot> slots_;
  std::vector<std::string> prefixes_aside_;
};

/// OK when every slot's tensor is there with its shape and a type that can be converted, and every
/// tensor of the checkpoint is used or set aside. NOT_FOUND or INVALID_ARGUMENT names the tensor.
absl::Status CheckPlan(const WeightPlan& plan, const Checkpoint& checkpoint);

/// Checks, allocates every weight of the plan and fills it: F32 and BF16 are converted into each
/// other where the weight's type asks for it (rounded to nearest even). Logs a line of progress
/// every two seconds, and one at the end.
absl::Status LoadWeights(Device& device, const Checkpoint& checkpoint, const WeightPlan& plan);

}  // namespace glm::engine
