// Filling: the bytes of a piece of a slot, made from a checkpoint or at random.
//
// Who calls: the loader's threads; every function here is pure but for the piece it writes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "engine/model/safetensors.h"
#include "engine/model/weight_plan.h"

namespace glm::engine {

/// Rows of a slot that are filled at once.
struct Piece {
  const Slot* slot = nullptr;
  int64_t row = 0;  // the first, counted from the slot's first
  int64_t rows = 0;
};

/// What goes to the device.
struct FilledPiece {
  std::vector<std::byte> values;  // in the weight's type
  std::vector<float> scales;      // one a row, of kQuantized slots
};

/// A piece as the checkpoint has it, converted, quantised or dequantised to `type`; `scales` are
/// those of a kDequantized slot. INVALID_ARGUMENT names the tensor and the first row with a value
/// that is refused.
absl::Status FillFromFile(const Piece& piece, const StoredTensor& stored,
                          const StoredTensor* scales, DType type, FilledPiece* filled);

/// A row of an F32 or BF16 tensor [rows, columns] as floats.
void WidenRow(const StoredTensor& stored, int64_t row, float* target);

/// Values of a row of an FP8 tensor, times their scales: columns [begin, begin + count).
class Dequantizer {
 public:
  /// `stored` is [rows, columns] in F8E4M3; `scales` F32 or BF16, of the form that `form` says.
  Dequantizer(const StoredTensor& stored, const StoredTensor& scales, const StoredScales& form)
      : stored_(stored), scales_(scales), form_(form) {}
  void Row(int64_t row, int64_t begin, int64_t count, float* target) const;
  /// The scale of the value at (row, column).
  float Scale(int64_t row, int64_t column) const;

 private:
  const StoredTensor& stored_;
  const StoredTensor& scales_;
  const StoredScales& form_;
};

/// Random values for a piece, drawn from `seed`.
absl::Status FillAtRandom(const Piece& piece, uint64_t seed, DType type, FilledPiece* filled);

}  // namespace glm::engine
