// Every bf16 and fp8 value, and the rounding between neighbours.
#include "kernels/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/tensor.h"

namespace glm {
namespace {

/// What an e4m3fn code means, by the definition.
double Float8Value(int code) {
  const int exponent = code >> 3 & 0xF;
  const int mantissa = code & 7;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<double>::quiet_NaN();
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 7 - 3);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

TEST(Float8Test, EveryCodeHasItsValueAndComesBack) {
  for (int code = 0; code < 256; ++code) {
    const float value = ToFloat(Float8{static_cast<uint8_t>(code)});
    const double want = Float8Value(code);
    if (std::isnan(want)) {
      EXPECT_TRUE(std::isnan(value)) << code;
      EXPECT_EQ(ToFloat8(value).bits & 0x7F, 0x7F) << code;
      continue;
    }
    EXPECT_EQ(value, want) << code;
    EXPECT_EQ(std::signbit(value), (code & 0x80) != 0) << code;
    EXPECT_EQ(ToFloat8(value).bits, code);
  }
}

TEST(Float8Test, RoundsToNearestAndTiesToEven) {
  for (int code = 0; code < 0x7E; ++code) {
    const float low = static_cast<float>(Float8Value(code));
    const float high = static_cast<float>(Float8Value(code + 1));
    const float middle = (low + high) / 2;  // exact: 5 significant bits
    const int even = code % 2 == 0 ? code : code + 1;
    for (const int sign : {0, 0x80}) {
      const auto code_of = [&](float x) { return ToFloat8(sign != 0 ? -x : x).bits; };
      EXPECT_EQ(code_of(middle), even | sign) << code;
      EXPECT_EQ(code_of(std::nextafter(middle, 0.0f)), code | sign) << code;
      EXPECT_EQ(code_of(std::nextafter(middle, 1e9f)), (code + 1) | sign) << code;
    }
  }
}

TEST(Float8Test, SaturatesAndKeepsNaN) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float large : {448.0f, 449.0f, 464.0f, 480.0f, 1e30f, infinity}) {
    EXPECT_EQ(ToFloat8(large).bits, 0x7E) << large;
    EXPECT_EQ(ToFloat8(-large).bits, 0xFE) << large;
  }
  EXPECT_EQ(ToFloat8(std::numeric_limits<float>::quiet_NaN()).bits & 0x7F, 0x7F);
  EXPECT_EQ(ToFloat8(std::numeric_limits<float>::denorm_min()).bits, 0);
  EXPECT_EQ(ToFloat8(-0.0f).bits, 0x80);
}

TEST(BFloat16Test, EveryCodeComesBack) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = ToFloat(BFloat16{static_cast<uint16_t>(bits)});
    const uint16_t back = ToBFloat16(value).bits;
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(ToFloat(BFloat16{back}))) << bits;
    } else {
      ASSERT_EQ(back, bits);
    }
  }
}

TEST(BFloat16Test, RoundsToNearestAndTiesToEven) {
  for (uint32_t code = 0; code < 0x7F80; ++code) {  // all finite ones; the last rounds to infinity
    const uint32_t even = code % 2 == 0 ? code : code + 1;
    for (const uint32_t sign : {0u, 0x80000000u}) {
      const auto code_of = [&](uint32_t low) {
        const float value = std::bit_cast<float>(sign | code << 16 | low);
        return ToBFloat16(value).bits ^ (sign >> 16);
      };
      ASSERT_EQ(code_of(0x7FFF), code);
      ASSERT_EQ(code_of(0x8000), even);
      ASSERT_EQ(code_of(0x8001), code + 1);
    }
  }
}

TEST(TensorTest, ViewsKeepTheirPlace) {
  std::vector<float> numbers(2 * 3 * 4);
  const Tensor tensor(numbers.data(), DType::kF32, {2, 3, 4});
  EXPECT_EQ(tensor.elements(), 24);
  EXPECT_EQ(tensor.bytes(), 96);
  EXPECT_EQ(tensor.Slice(1).Row<float>(2), &numbers[12 + 8]);
  EXPECT_EQ(tensor.Rows(1, 1).data, &numbers[12]);
  const Tensor matrix = tensor.Slice(1);
  EXPECT_EQ(matrix.Columns(1, 2).Row<float>(2), &numbers[12 + 8 + 1]);
  EXPECT_TRUE(matrix.contiguous());
  EXPECT_FALSE(matrix.Columns(1, 2).contiguous());
  EXPECT_EQ(matrix.ToString(), "F32[3, 4]");
  EXPECT_DEATH(CheckShape(matrix, DType::kF32, {3, 5}, "m"), "m is F32\\[3, 4\\]");
  EXPECT_DEATH(CheckShape(matrix, DType::kBF16, {3, 4}, "m"), "expected BF16\\[3, 4\\]");
}

}  // namespace
}  // namespace glm
