// Rows of bf16 in registers, 8 values a thread: loads, stores, quantisation, and the RMSNorm of a
// row that a block holds. With it the checks of the tensors that hold such rows.
//
// Who calls: pointwise.cu, and peer_communicator.cu, whose sums end in the same norm.
#pragma once

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/warp.cuh"
#include "kernels/ops.h"

namespace glm::cuda {

inline constexpr int kVector = 8;  // bf16 values of 16 bytes

/// Values column .. column + 7 of a row; zeros past `columns`.
template <bool kAligned>
__device__ __forceinline__ void LoadRow8(const BFloat16* row, int column, int columns,
                                         float (&values)[kVector]) {
  if constexpr (kAligned) {
    if (column < columns) {
      const Bf16x8 loaded = *reinterpret_cast<const Bf16x8*>(row + column);
#pragma unroll
      for (int i = 0; i < kVector / 2; ++i) {
        const float2 pair = loaded.Pair(i);
        values[2 * i] = pair.x;
        values[2 * i + 1] = pair.y;
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    values[i] = !kAligned && column + i < columns ? ToFloat(row[column + i]) : 0.0f;
  }
}

template <bool kAligned>
__device__ __forceinline__ void StoreRow8(BFloat16* row, int column, int columns,
                                          const float (&values)[kVector]) {
  if constexpr (kAligned) {
    if (column < columns) {
      Bf16x8 packed;
#pragma unroll
      for (int i = 0; i < kVector / 2; ++i) {
        packed.SetPair(i, float2{values[2 * i], values[2 * i + 1]});
      }
      *reinterpret_cast<Bf16x8*>(row + column) = packed;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (column + i < columns) row[column + i] = ToBFloat16(values[i]);
    }
  }
}

/// Quotients by one scale, rounded as a division rounds them, for three operations each instead of
/// some tens: q = x / s nearly, from the rounded reciprocal, and the rest that it leaves.
/// (Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor", 1990.)
struct DivideBy {
  float scale;
  float inverse;
  bool plain;  // scales so small or large that the rest would not be exact

  __device__ explicit DivideBy(float scale_in)
      : scale(scale_in),
        inverse(1.0f / scale_in),
        plain(!(scale_in > 0x1p-100f && scale_in < 0x1p100f)) {}
  __device__ float operator()(float value) const {
    if (plain) return value / scale;
    const float quotient = value * inverse;
    return fmaf(fmaf(-quotient, scale, value), inverse, quotient);
  }
};

template <bool kAligned>
__device__ __forceinline__ void StoreRow8(Float8* row, int column, int columns,
                                          const float (&values)[kVector], float scale) {
  const DivideBy divided(scale);
  if constexpr (kAligned) {
    if (column < columns) {
      uint2 packed;
      packed.x =
          PackFp8x4(divided(values[0]), divided(values[1]), divided(values[2]), divided(values[3]));
      packed.y =
          PackFp8x4(divided(values[4]), divided(values[5]), divided(values[6]), divided(values[7]));
      *reinterpret_cast<uint2*>(row + column) = packed;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (column + i < columns) row[column + i] = ToFloat8(divided(values[i]));
    }
  }
}

struct QuantizedRows {
  Float8* values;  // null: not wanted
  int64_t stride;
  float* scales;
  int scales_per_row;  // 1, or one a group
};

inline constexpr int kGroup = 128;  // columns that share a scale, unless the row does
inline constexpr int kGroupLanes = kGroup / kVector;

/// Largest of the lanes that hold one group.
__device__ __forceinline__ float GroupMax(float value) {
#pragma unroll
  for (int offset = kGroupLanes / 2; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  return value;
}

/// Quantises and stores values column .. column + 7 of `row`; `row_largest` is used unless each
/// group has its scale. All lanes call it.
template <bool kAligned>
__device__ __forceinline__ void StoreQuantized(const QuantizedRows& q, int64_t row, int column,
                                               int columns, const float (&values)[kVector],
                                               float row_largest) {
  float scale = Fp8Scale(row_largest);
  if (q.scales_per_row > 1) {
    float largest = 0;
#pragma unroll
    for (int i = 0; i < kVector; ++i) largest = fmaxf(largest, fabsf(values[i]));
    scale = Fp8Scale(GroupMax(largest));
  }
  const bool first = q.scales_per_row > 1 ? column % kGroup == 0 : column == 0;
  if (first && column < columns) {
    q.scales[row * q.scales_per_row + (q.scales_per_row > 1 ? column / kGroup : 0)] = scale;
  }
  StoreRow8<kAligned>(q.values + row * q.stride, column, columns, values, scale);
}

struct NormParams {
  const int32_t* counts;
  const BFloat16* delta;
  int64_t delta_stride;
  BFloat16* residual;
  int64_t residual_stride;
  const BFloat16* weight;
  float epsilon;
  BFloat16* out;
  int64_t out_stride;
  QuantizedRows quantized;
  int columns;
};

/// values += delta, rounded, to the residual's row too.
template <bool kAligned>
__device__ __forceinline__ void AddToResidual(const NormParams& p, int64_t row, int column,
                                              const float (&delta)[kVector],
                                              float (&values)[kVector]) {
#pragma unroll
  for (int i = 0; i < kVector; ++i) values[i] = RoundBf16(values[i] + delta[i]);
  StoreRow8<kAligned>(p.residual + row * p.residual_stride, column, p.columns, values);
}

/// The norm of the row whose values the block's threads hold, to `out` and to `quantized`.
/// `shared`: 32 floats. All threads call it.
template <bool kAligned>
__device__ __forceinline__ void NormRow(const NormParams& p, int64_t row, int column,
                                        const float (&weights)[kVector], float (&values)[kVector],
                                        float* shared) {
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kVector; ++i) squares += values[i] * values[i];
  const float mean = BlockSum(squares, shared) / static_cast<float>(p.columns);
  const float inverse = 1.0f / sqrtf(mean + p.epsilon);

  float largest = 0;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    values[i] = RoundBf16(RoundBf16(values[i] * inverse) * weights[i]);
    largest = fmaxf(largest, fabsf(values[i]));
  }
  if (p.out != nullptr) StoreRow8<kAligned>(p.out + row * p.out_stride, column, p.columns, values);
  if (p.quantized.values == nullptr) return;
  if (p.quantized.scales_per_row == 1) largest = BlockMax(largest, shared);
  StoreQuantized<kAligned>(p.quantized, row, column, p.columns, values, largest);
}

/// True when rows of this tensor can be read and written as 16-byte vectors.
inline bool VectorRows(const Tensor& tensor) {
  const int64_t row_bytes = tensor.stride[0] * ByteSize(tensor.dtype);
  const int64_t width = tensor.shape[tensor.rank - 1];
  const int64_t unit = 8 * ByteSize(tensor.dtype);
  return tensor.empty() || (reinterpret_cast<uintptr_t>(tensor.data) % unit == 0 &&
                            row_bytes % unit == 0 && width % kVector == 0);
}

inline QuantizedRows CheckQuantized(const Activation& quantized, int64_t rows, int64_t columns) {
  if (quantized.values.empty()) return QuantizedRows{nullptr, 0, nullptr, 1};
  CheckShape(quantized.values, DType::kF8E4M3, {rows, columns}, "quantized.values");
  const int64_t groups = (columns + kGroup - 1) / kGroup;
  if (quantized.scales.rank == 1) {
    CheckShape(quantized.scales, DType::kF32, {rows}, "quantized.scales");
  } else {
    CheckShape(quantized.scales, DType::kF32, {rows, groups}, "quantized.scales");
  }
  // A row of one group has one scale either way.
  return QuantizedRows{quantized.values.Data<Float8>(), quantized.values.stride[0],
                       quantized.scales.Data<float>(),
                       quantized.scales.rank == 1 ? 1 : static_cast<int>(groups)};
}

/// Threads of a block that holds a row.
inline int NormThreads(int64_t columns) {
  const int64_t vectors = (columns + kVector - 1) / kVector;
  return static_cast<int>((vectors + kWarp - 1) / kWarp * kWarp);
}

/// The op's tensors, checked. *aligned: all rows are whole vectors.
inline NormParams MakeNormParams(const AddRmsNormArgs& args, bool* aligned) {
  const Tensor& values = args.residual.empty() ? args.delta : args.residual;
  const int64_t rows = values.shape[0];
  const int64_t hidden = values.shape[1];
  CheckShape(values, DType::kBF16, {-1, -1}, "add_rms_norm.residual");
  CheckShape(args.weight, DType::kBF16, {hidden}, "add_rms_norm.weight");
  if (!args.delta.empty()) {
    CheckShape(args.delta, DType::kBF16, {rows, hidden}, "add_rms_norm.delta");
  }
  if (!args.out.empty()) CheckShape(args.out, DType::kBF16, {rows, hidden}, "add_rms_norm.out");
  *aligned = VectorRows(args.residual) && VectorRows(args.delta) && VectorRows(args.out) &&
             VectorRows(args.quantized.values) &&
             reinterpret_cast<uintptr_t>(args.weight.data) % 16 == 0;
  return {
      .counts = args.batch.counts.Data<int32_t>(),
      .delta = args.delta.Data<BFloat16>(),
      .delta_stride = args.delta.stride[0],
      .residual = args.residual.Data<BFloat16>(),
      .residual_stride = args.residual.stride[0],
      .weight = args.weight.Data<BFloat16>(),
      .epsilon = args.epsilon,
      .out = args.out.Data<BFloat16>(),
      .out_stride = args.out.stride[0],
      .quantized = CheckQuantized(args.quantized, rows, hidden),
      .columns = static_cast<int>(hidden),
  };
}

}  // namespace glm::cuda
