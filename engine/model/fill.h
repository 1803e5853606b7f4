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

/// A piece as the checkpoint has it, converted or quantised to `type`. INVALID_ARGUMENT names the
/// tensor and the first row with a value that is refused.
absl::Status FillFromFile(const Piece& piece, const StoredTensor& stored, DType type,
                          FilledPiece* filled);

/// Random values for a piece, drawn from `seed`.
absl::Status FillAtRandom(const Piece& piece, uint64_t seed, DType type, FilledPiece* filled);

}  // namespace glm::engine
