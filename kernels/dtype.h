// Element types, and the conversions between them, the same on host and device.
//
// bf16 and fp8 e4m3 (the "fn" form: no infinities, one NaN, largest value 448) are stored as plain
// integers. Rounding is to nearest, ties to even; fp8 saturates to +-448, and NaN stays NaN.
// All functions are constexpr, so that device code may call them (nvcc --expt-relaxed-constexpr).
#pragma once

#include <bit>
#include <cstdint>

namespace glm {

enum class DType : uint8_t { kF32, kBF16, kF8E4M3, kI32, kI64, kU8 };

constexpr int64_t ByteSize(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kBF16:
      return 2;
    case DType::kI64:
      return 8;
    case DType::kF8E4M3:
    case DType::kU8:
      return 1;
  }
  return 0;
}

constexpr const char* Name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kBF16:
      return "BF16";
    case DType::kF8E4M3:
      return "F8_E4M3";
    case DType::kI32:
      return "I32";
    case DType::kI64:
      return "I64";
    case DType::kU8:
      return "U8";
  }
  return "?";
}

/// One bfloat16: the upper half of an IEEE float.
struct BFloat16 {
  uint16_t bits;
};

/// One float8 e4m3fn: sign, 4 exponent bits of bias 7, 3 mantissa bits.
struct Float8 {
  uint8_t bits;
};

inline constexpr float kFloat8Max = 448.0f;

constexpr float ToFloat(float value) { return value; }

constexpr float ToFloat(BFloat16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

constexpr float ToFloat(Float8 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x80) << 24;
  const uint32_t exponent = (value.bits >> 3) & 0xF;
  const uint32_t mantissa = value.bits & 0x7;
  if (exponent == 0xF && mantissa == 0x7) return std::bit_cast<float>(sign | 0x7FC00000u);
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0.001953125f;  // mantissa * 2^-9
    return sign != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | ((exponent + 120) << 23) | (mantissa << 20));
}

constexpr BFloat16 ToBFloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) {
    return BFloat16{static_cast<uint16_t>((bits >> 16) | 0x40)};  // a quiet NaN
  }
  return BFloat16{static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1)) >> 16)};
}

/// Without branches, so that compilers make vectors of loops over it.
constexpr Float8 ToFloat8(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  // Below 2^-6 codes count units of 2^-9, and 8 of them are the smallest normal: adding 1.5 * 2^23
  // leaves the rounded count in the mantissa of the sum.
  const float units = std::bit_cast<float>(magnitude) * 512.0f;
  const uint32_t subnormal = std::bit_cast<uint32_t>(units + 12582912.0f) & 0xF;
  const uint32_t rounded = magnitude + 0x7FFFFu + ((magnitude >> 20) & 1);
  const uint32_t normal = (rounded >> 20) - (120u << 3);
  // Choices by masks: a condition around the sum above would be a branch again.
  const auto if_else = [](bool holds, uint32_t yes, uint32_t no) {
    const uint32_t mask = 0u - static_cast<uint32_t>(holds);
    return (yes & mask) | (no & ~mask);
  };
  const uint32_t finite = if_else(normal > 0x7E, 0x7E, normal);  // from 448 on
  const uint32_t number = if_else(magnitude < 0x3C800000u, subnormal, finite);
  const uint32_t code = if_else(magnitude > 0x7F800000u, 0x7F, number);
  return Float8{static_cast<uint8_t>(((bits >> 24) & 0x80) | code)};
}

/// Rounds to T and back: the value that a store to T and a load from it gives.
template <typename T>
constexpr T FromFloat(float value) {
  if constexpr (sizeof(T) == 4) {
    return value;
  } else if constexpr (sizeof(T) == 2) {
    return ToBFloat16(value);
  } else {
    return ToFloat8(value);
  }
}

}  // namespace glm
