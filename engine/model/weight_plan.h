// WeightPlan: which parts of which checkpoint tensors make up the weights of a model on one rank.
//
// Who calls: the model's parts write it, the loader reads it; on the thread that owns the device,
// or on any thread where no memory is wanted. A plan is pure: names, shapes, places. It can be made
// with a checkpoint's directory, which decides tensor by tensor what is quantised, or from the
// config alone, which then decides for all.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/model/quantization.h"
#include "engine/model/safetensors.h"
#include "kernels/tensor.h"

namespace glm::engine {

/// [begin, begin + count) of a dimension.
struct Range {
  int64_t begin = 0;
  int64_t count = 0;
};

/// Which of a tensor-parallel worker's ranks a plan is for.
struct RankSlice {
  int32_t rank = 0;
  int32_t size = 1;

  /// The rank's share of a dimension. REQUIRES that `size` divides it.
  Range Of(int64_t extent) const { return {extent / size * rank, extent / size}; }
};

/// What a slot's bytes are.
enum class SlotKind : uint8_t {
  kValues,       // converted where the weight's type asks for it
  kScales,       // as kValues; each must be a finite number that is not negative
  kQuantized,    // F32 or BF16 that becomes FP8, one scale a row, on the way to the device
  kDequantized,  // FP8 that becomes the weight's type, times the scales of `scales`
};

/// Rows, and columns, of a weight that share a block scale.
inline constexpr int64_t kScaleBlock = 128;

/// Scales in a checkpoint: one a row, or one a 128 x 128 block.
struct StoredScales {
  std::string name = {};  // of the checkpoint tensor
  std::vector<int64_t> shape = {};
  bool blocks = false;
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
  SlotKind kind = SlotKind::kValues;
  int32_t scale_weight = -1;  // kQuantized: the weight whose rows, from weight_row, get the scales
  /// kScales: a row of the tensor stands for so many, of which `rows` counts, and is written once
  /// for each of those.
  int64_t repeat = 1;
  StoredScales scales = {};  // kDequantized
  int64_t fan_in = 0;        // columns of the linear that the tensor belongs to; 0: of none
};

/// What a plan is made of besides the config.
struct PlanTerms {
  const StoredTensors* stored = nullptr;  // the checkpoint's directory; null: the config decides
  WeightScaling scaling = WeightScaling::kNone;  // of quantised tensors, by the config
  bool quantize = false;                         // linears that are not FP8 become FP8
  bool cut_blocks = true;  // the device takes cut blocks: OpTable::takes_cut_blocks
  RankSlice slice = {};
};

/// The weights of a model on one rank, and where in the checkpoint each of their rows comes from.
class WeightPlan {
 public:
  struct Entry {
    Tensor layout;            // dtype and shape, no memory
    Tensor* target;           // gets the memory when the plan is loaded
    int64_t columns;          // of a row
    int64_t rows_filled = 0;  // by the slots so far

    int64_t rows() const { return columns == 0 ? 0 : layout.elements() / columns; }
  };

  WeightPlan() = default;
  explicit WeightPlan(const PlanTerms& terms) : terms_(terms) {}

  /// A weight of `layout`. `target` must stay where it is until the plan is loaded.
  int32_t Add(Tensor* target, const Tensor& layout);
  /// The same with rows of so many columns, where that is not the last dimension.
  int32_t Add(Tensor* target, const Tensor& layout, int64_t columns);
  /// Fills rows of a weight with a part of a checkpoint tensor.
  void Fill(Slot slot);
  /// Fills rows of a weight with a whole checkpoint tensor.
  void Fill(int32_t weight, int64_t weight_row, std::string name, std::vector<int64_t> shape);
  /// A weight that is one whole checkpoint tensor.
  void AddWhole(Tensor* target, const Tensor& layout, std::string name);
  /// A weight that is the rank's share of the rows of a checkpoint tensor [rows, columns].
  void AddRows(Tensor* target, DType dtype, std::string name, int64_t rows, int64_t columns);
  /// Checkpoint tensors whose names begin so may be there, and are not loaded.
  void SetAside(std::string prefix);
  /// A checkpoint tensor that is read without a slot.
  void Take(std::string name);
  /// Keeps the first fault; a plan with one is not loaded.
  void Refuse(absl::Status fault);

  const PlanTerms& terms() const { return terms_; }
  const std::vector<Entry>& entries() const { return entries_; }
  const std::vector<Slot>& slots() const { return slots_; }
  const std::vector<std::string>& prefixes_aside() const { return prefixes_aside_; }
  const std::vector<std::string>& names_taken() const { return names_taken_; }
  const absl::Status& status() const { return status_; }
  /// Device bytes of all weights.
  int64_t bytes() const;
  /// Forgets the targets: what is left can be read, not loaded.
  void Detach();

 private:
  PlanTerms terms_;
  std::vector<Entry> entries_;
  std::vector<Slot> slots_;
  std::vector<std::string> prefixes_aside_;
  std::vector<std::string> names_taken_;
  absl::Status status_;
};

}  // namespace glm::engine
