#include "engine/model/fill.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace glm::engine {
namespace {

int64_t ColumnsOf(const std::vector<int64_t>& shape) { return shape.size() == 1 ? 1 : shape[1]; }

absl::Status NotFinite(const Slot& slot, int64_t row, const char* wanted) {
  return absl::InvalidArgumentError(
      absl::StrCat("tensor ", slot.name, ", row ", row, ": holds a value that is not ", wanted));
}

// `count` elements at `source`, of any alignment, as floats.
void Widen(DType type, const std::byte* source, float* target, int64_t count) {
  if (type == DType::kF32) {
    std::memcpy(target, source, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    BFloat16 value;
    std::memcpy(&value, source + i * 2, 2);
    target[i] = ToFloat(value);
  }
}

// Floats as `type` to `target`, of any alignment.
void Narrow(const float* source, DType type, std::byte* target, int64_t count) {
  if (type == DType::kF32) {
    std::memcpy(target, source, static_cast<size_t>(count) * sizeof(float));
  } else if (type == DType::kF8E4M3) {
    auto* const codes = reinterpret_cast<uint8_t*>(target);
    for (int64_t i = 0; i < count; ++i) codes[i] = ToFloat8(source[i]).bits;
  } else {
    for (int64_t i = 0; i < count; ++i) {
      const BFloat16 narrow = ToBFloat16(source[i]);
      std::memcpy(target + i * 2, &narrow, 2);
    }
  }
}

bool IsScale(float scale) { return std::isfinite(scale) && scale >= 0; }

// A row in FP8 and its scale. False when a value is not finite. Loops that compilers make vectors
// of: this is what loading with quantisation waits for.
bool Quantize(const float* row, int64_t count, std::byte* codes, float* scale) {
  int32_t largest_bits = 0;  // of |x|, whose order is that of the values
  for (int64_t i = 0; i < count; ++i) {
    largest_bits = std::max(largest_bits, std::bit_cast<int32_t>(row[i]) & 0x7FFFFFFF);
  }
  const auto largest = std::bit_cast<float>(largest_bits);
  if (!std::isfinite(largest)) return false;
  const float divisor = largest == 0 ? 1.0f : largest / kFloat8Max;
  auto* const target = reinterpret_cast<uint8_t*>(codes);
  for (int64_t i = 0; i < count; ++i) target[i] = ToFloat8(row[i] / divisor).bits;
  *scale = divisor;
  return true;
}

// One round of a well mixed 64-bit hash (the finaliser of SplitMix64).
uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

uint64_t NameSeed(uint64_t seed, const std::string& name) {
  uint64_t hash = seed;
  for (const char c : name) hash = Mix(hash ^ static_cast<unsigned char>(c));
  return hash;
}

// What random weights of a tensor look like: uniform, with this mean and largest distance from it.
struct Spread {
  float mean = 0;
  float width = 0;
};

// Numbers `first` and on of the tensor that `seed` stands for. A hash makes four of them: 16 bits
// are more than any weight's type keeps.
void FillUniform(uint64_t seed, int64_t first, const Spread& spread, std::vector<float>* row) {
  constexpr int64_t kOfHash = 4;
  constexpr int64_t kHashes = 64;
  const int64_t end = first + static_cast<int64_t>(row->size());
  const float step = spread.width / 32768;
  const float least = spread.mean - 32767.5f * step;
  for (int64_t at = first; at < end;) {
    const int64_t hash = at / kOfHash;
    uint64_t bits[kHashes];
    for (int64_t i = 0; i < kHashes; ++i) bits[i] = Mix(seed + static_cast<uint64_t>(hash + i));
    uint16_t values[kHashes * kOfHash];
    static_assert(sizeof(values) == sizeof(bits));
    std::memcpy(values, bits, sizeof(values));
    const int64_t begin = at - hash * kOfHash;
    const int64_t count = std::min(end - at, kHashes * kOfHash - begin);
    float* target = row->data() + (at - first);
    for (int64_t i = 0; i < count; ++i) {
      target[i] = least + step * static_cast<float>(values[begin + i]);
    }
    at += count;
  }
}

constexpr float kUniformWidth = 1.7320508f;  // of a uniform number whose deviation is 1

Spread SpreadOf(const Slot& slot, DType type) {
  const float linear =
      slot.fan_in > 0 ? kUniformWidth / std::sqrt(static_cast<float>(slot.fan_in)) : 0.0f;
  if (slot.kind == SlotKind::kScales) return {linear / kFloat8Max, 0};
  if (slot.fan_in > 0)
    return {0, type == DType::kF8E4M3 && slot.kind == SlotKind::kValues ? kFloat8Max : linear};
  if (absl::StrContains(slot.name, "norm.")) return {1, 0.1f};
  if (absl::EndsWith(slot.name, "embed_tokens.weight")) return {0, kUniformWidth};
  if (slot.shape.size() == 2) {  // head, router, projection of the draft layer
    return {0, kUniformWidth / std::sqrt(static_cast<float>(slot.shape[1]))};
  }
  return {0, 0.02f};  // biases
}

}  // namespace

void WidenRow(const StoredTensor& stored, int64_t row, float* target) {
  const int64_t columns = ColumnsOf(stored.shape);
  Widen(stored.dtype, stored.data + row * columns * ByteSize(stored.dtype), target, columns);
}

float Dequantizer::Scale(int64_t row, int64_t column) const {
  const int64_t at =
      form_.blocks ? row / kScaleBlock * ColumnsOf(scales_.shape) + column / kScaleBlock : row;
  float scale = 0;
  Widen(scales_.dtype, scales_.data + at * ByteSize(scales_.dtype), &scale, 1);
  return scale;
}

void Dequantizer::Row(int64_t row, int64_t begin, int64_t count, float* target) const {
  const std::byte* codes = stored_.data + row * ColumnsOf(stored_.shape) + begin;
  float scale = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (i == 0 || (form_.blocks && (begin + i) % kScaleBlock == 0)) scale = Scale(row, begin + i);
    target[i] = ToFloat(Float8{static_cast<uint8_t>(codes[i])}) * scale;
  }
}

namespace {

// Rows that stay as they are, `stride` bytes apart.
void CopyRows(const std::byte* source, int64_t stride, int64_t rows, int64_t row_bytes,
              std::byte* target) {
  if (stride == row_bytes) {
    std::memcpy(target, source, static_cast<size_t>(rows * row_bytes));
    return;
  }
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(target + r * row_bytes, source + r * stride, static_cast<size_t>(row_bytes));
  }
}

// What is wrong with a row of the file, as floats.
absl::Status CheckRow(const Slot& slot, int64_t row_number, const std::vector<float>& row) {
  const auto all = [&row](auto holds) { return std::all_of(row.begin(), row.end(), holds); };
  const auto is_finite = [](float value) { return std::isfinite(value); };
  if (slot.kind == SlotKind::kScales && !all(IsScale)) {
    return NotFinite(slot, row_number, "a scale: finite and not negative");
  }
  if (slot.kind == SlotKind::kDequantized && !all(is_finite)) {
    return NotFinite(slot, row_number, "finite when it is multiplied by its scale");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status FillFromFile(const Piece& piece, const StoredTensor& stored,
                          const StoredTensor* scales, DType type, FilledPiece* filled) {
  const Slot& slot = *piece.slot;
  const int64_t count = slot.columns.count;
  const int64_t source_size = ByteSize(stored.dtype);
  const int64_t row_bytes = count * ByteSize(type);
  const int64_t row_stride = ColumnsOf(stored.shape) * source_size;
  const std::byte* const source = stored.data + slot.columns.begin * source_size;
  const int64_t row_begin = slot.rows.begin + piece.row;
  filled->values.resize(static_cast<size_t>(piece.rows * row_bytes));
  filled->scales.resize(slot.kind == SlotKind::kQuantized ? piece.rows : 0);
  if (stored.dtype == type && slot.kind == SlotKind::kValues) {
    CopyRows(source + row_begin * row_stride, row_stride, piece.rows, row_bytes,
             filled->values.data());
    return absl::OkStatus();
  }
  std::optional<Dequantizer> dequantizer;
  if (slot.kind == SlotKind::kDequantized) dequantizer.emplace(stored, *scales, slot.scales);
  std::vector<float> row(count);
  for (int64_t r = 0; r < piece.rows; ++r) {
    // Scales of blocks are stored once for all rows that use them.
    const int64_t row_number = (row_begin + r) / slot.repeat;
    if (dequantizer.has_value()) {
      dequantizer->Row(row_number, slot.columns.begin, count, row.data());
    } else {
      Widen(stored.dtype, source + row_number * row_stride, row.data(), count);
    }
    if (absl::Status status = CheckRow(slot, row_number, row); !status.ok()) return status;
    std::byte* const target = filled->values.data() + r * row_bytes;
    if (slot.kind != SlotKind::kQuantized) {
      Narrow(row.data(), type, target, count);
    } else if (!Quantize(row.data(), count, target, &filled->scales[r])) {
      return NotFinite(slot, row_number, "finite");
    }
  }
  return absl::OkStatus();
}

absl::Status FillAtRandom(const Piece& piece, uint64_t seed, DType type, FilledPiece* filled) {
  const Slot& slot = *piece.slot;
  const int64_t count = slot.columns.count;
  const int64_t columns = ColumnsOf(slot.shape);
  const int64_t row_bytes = count * ByteSize(type);
  const Spread spread = SpreadOf(slot, type);
  const uint64_t name_seed = NameSeed(seed, slot.name);
  filled->values.resize(static_cast<size_t>(piece.rows * row_bytes));
  filled->scales.resize(slot.kind == SlotKind::kQuantized ? piece.rows : 0);
  std::vector<float> row(count);
  for (int64_t r = 0; r < piece.rows; ++r) {
    const int64_t stored_row = (slot.rows.begin + piece.row + r) / slot.repeat;
    const int64_t first = stored_row * columns + slot.columns.begin;
    FillUniform(name_seed, first, spread, &row);
    std::byte* target = filled->values.data() + r * row_bytes;
    if (slot.kind == SlotKind::kQuantized) {
      Quantize(row.data(), count, target, &filled->scales[r]);
    } else {
      Narrow(row.data(), type, target, count);
    }
  }
  return absl::OkStatus();
}

}  // namespace glm::engine
