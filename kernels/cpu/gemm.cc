#include "kernels/cpu/gemm.h"

#include <algorithm>
#include <array>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/lanes.h"
#include "kernels/output_parts.h"

namespace glm::cpu {
namespace {

constexpr int64_t kBlock = 128;  // columns, and rows, that share a block scale

int64_t BlocksOf(int64_t extent) { return (extent + kBlock - 1) / kBlock; }

constexpr std::array<float, 256> kFloat8Values = [] {
  std::array<float, 256> values{};
  for (int code = 0; code < 256; ++code) {
    values[code] = ToFloat(Float8{static_cast<uint8_t>(code)});
  }
  return values;
}();

/// A piece of a product that fits DotBlock.
struct Piece {
  const float* rows[kDotRowsMax];  // input rows
  int64_t in_rows[kDotRowsMax];    // their numbers
  int row_count;
  int64_t output_begin;
  int output_count;
  float sums[kDotRowsMax * kDotOutputsMax];
};

template <typename W>
void DotWhole(const MatrixProduct& product, Piece* piece) {
  const Tensor& values = product.weight.values;
  DotBlock(piece->rows, piece->row_count, values.Row<W>(piece->output_begin), values.stride[0],
           piece->output_count, values.shape[1], piece->sums);
}

/// FP8: columns up to where a scale ends, each partial sum times the scales of its block and group,
/// if there are such. Groups begin with the row, blocks scale_column_offset before it.
void DotFloat8(const MatrixProduct& product, Piece* piece) {
  const Tensor& values = product.weight.values;
  const Tensor& scales = product.weight.scales;
  const bool weight_blocked = scales.rank == 2;
  const int64_t offset = product.weight.scale_column_offset;
  const int64_t scale_rows = weight_blocked && scales.shape[0] < values.shape[0] ? kBlock : 1;
  float weights[kDotOutputsMax * kBlock];
  float partial[kDotRowsMax * kDotOutputsMax];
  std::fill_n(piece->sums, kDotRowsMax * kDotOutputsMax, 0.0f);
  for (int64_t begin = 0, columns = 0; begin < values.shape[1]; begin += columns) {
    const int64_t group = begin / kBlock;
    const int64_t block = (begin + offset) / kBlock;
    const int64_t end = std::min((group + 1) * kBlock, (block + 1) * kBlock - offset);
    columns = std::min(end, values.shape[1]) - begin;
    for (int n = 0; n < piece->output_count; ++n) {
      const Float8* codes = values.Row<Float8>(piece->output_begin + n) + begin;
      for (int64_t i = 0; i < columns; ++i) weights[n * kBlock + i] = kFloat8Values[codes[i].bits];
    }
    const float* rows[kDotRowsMax];
    for (int r = 0; r < piece->row_count; ++r) rows[r] = piece->rows[r] + begin;
    DotBlock(rows, piece->row_count, weights, kBlock, piece->output_count, columns, partial);
    for (int r = 0; r < piece->row_count; ++r) {
      const float row_scale =
          product.in_scales_grouped
              ? product.in_scales[piece->in_rows[r] * product.in_scales_stride + group]
              : 1.0f;
      for (int n = 0; n < piece->output_count; ++n) {
        const float weight_scale =
            weight_blocked ? scales.Row<float>((piece->output_begin + n) / scale_rows)[block]
                           : 1.0f;
        const int at = r * kDotOutputsMax + n;
        piece->sums[at] += partial[at] * (row_scale * weight_scale);
      }
    }
  }
}

float BiasAt(const Tensor& bias, int64_t n) {
  if (bias.empty()) return 0;
  return bias.dtype == DType::kF32 ? bias.Data<float>()[n] : ToFloat(bias.Data<BFloat16>()[n]);
}

/// The scales of whole rows and outputs, the bias, the one rounding.
void StorePiece(const MatrixProduct& product, int64_t row_begin, const Piece& piece) {
  const Tensor& scales = product.weight.scales;
  const bool by_channel = !scales.empty() && scales.rank == 1;
  const bool by_row = product.in_scales != nullptr && !product.in_scales_grouped;
  for (int r = 0; r < piece.row_count; ++r) {
    const float row_scale =
        by_row ? product.in_scales[piece.in_rows[r] * product.in_scales_stride] : 1.0f;
    const int64_t row =
        product.out_order == nullptr ? row_begin + r : product.out_order[row_begin + r];
    const int64_t at = row * product.out_stride + piece.output_begin;
    for (int n = 0; n < piece.output_count; ++n) {
      float value = piece.sums[r * kDotOutputsMax + n] * row_scale;
      if (by_channel) value *= scales.Data<float>()[piece.output_begin + n];
      value += BiasAt(product.bias, piece.output_begin + n);
      if (product.out_dtype == DType::kF32) {
        static_cast<float*>(product.out)[at + n] = value;
      } else {
        static_cast<BFloat16*>(product.out)[at + n] = ToBFloat16(value);
      }
    }
  }
}

}  // namespace

Cut CutFor(int64_t rows, int64_t k) {
  // A rectangle should be some 100,000 products: long enough to hide the hand-out, short enough
  // that threads end together.
  constexpr int64_t kProducts = 1 << 17;
  const int64_t row_cut = std::clamp<int64_t>(rows, 1, kDotRowsMax);
  const int64_t pieces = kProducts / (row_cut * std::max<int64_t>(k, 1) * kDotOutputsMax);
  return {row_cut, std::max<int64_t>(pieces, 1) * kDotOutputsMax};
}

void ComputeRectangle(const MatrixProduct& product, int64_t row_begin, int64_t row_end,
                      int64_t output_begin, int64_t output_end) {
  Piece piece;
  for (int64_t row = row_begin; row < row_end; row += kDotRowsMax) {
    piece.row_count = static_cast<int>(std::min<int64_t>(kDotRowsMax, row_end - row));
    for (int r = 0; r < piece.row_count; ++r) {
      piece.in_rows[r] =
          product.in_order == nullptr ? row + r : product.in_order[row + r] / product.in_divisor;
      piece.rows[r] = product.in + piece.in_rows[r] * product.in_stride;
    }
    for (int64_t n = output_begin; n < output_end; n += kDotOutputsMax) {
      piece.output_begin = n;
      piece.output_count = static_cast<int>(std::min<int64_t>(kDotOutputsMax, output_end - n));
      switch (product.weight.values.dtype) {
        case DType::kF32:
          DotWhole<float>(product, &piece);
          break;
        case DType::kBF16:
          DotWhole<BFloat16>(product, &piece);
          break;
        default:
          DotFloat8(product, &piece);
      }
      StorePiece(product, row, piece);
    }
  }
}

const float* FloatRows(Device& device, const Tensor& in, int64_t rows, int64_t* stride) {
  if (in.dtype == DType::kF32) {
    *stride = in.stride[0];
    return in.Data<float>();
  }
  const Scratch& scratch = CpuDevice::Of(device).scratch();
  const int64_t k = in.shape[1];
  CHECK_LE(rows * k, scratch.row_floats) << "the step is larger than PlanScratch was told";
  ParallelFor(CpuDevice::Of(device).pool(), rows, std::max<int64_t>(1, 16384 / k),
              [&](int64_t row) { LoadRow(in, row, scratch.rows + row * k); });
  *stride = k;
  return scratch.rows;
}

void CheckWeight(const Weight& weight, int64_t experts, int64_t outputs, int64_t k,
                 const char* name) {
  const DType dtype = weight.values.dtype;
  CHECK(dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF8E4M3)
      << name << " is " << weight.values.ToString();
  CHECK_EQ(dtype == DType::kF8E4M3, !weight.scales.empty())
      << name << ": FP8 has scales, others no";
  CHECK(weight.scale_column_offset >= 0 && weight.scale_column_offset < kBlock)
      << name << ".scale_column_offset is " << weight.scale_column_offset;
  const Tensor& scales = weight.scales;
  const int64_t blocks = BlocksOf(k + weight.scale_column_offset);
  // Of a row each, or of a block of rows.
  const auto scale_rows = [&](int64_t extent) {
    return extent == outputs ? outputs : BlocksOf(outputs);
  };
  if (experts < 0) {
    CheckShape(weight.values, dtype, {outputs, k}, name);
    if (scales.empty()) return;
    if (scales.rank == 1) {
      CheckShape(scales, DType::kF32, {outputs}, name);
    } else {
      CheckShape(scales, DType::kF32, {scale_rows(scales.shape[0]), blocks}, name);
    }
    return;
  }
  CheckShape(weight.values, dtype, {experts, outputs, k}, name);
  if (scales.empty()) return;
  if (scales.rank == 2) {
    CheckShape(scales, DType::kF32, {experts, outputs}, name);
  } else {
    CheckShape(scales, DType::kF32, {experts, scale_rows(scales.shape[1]), blocks}, name);
  }
}

void CheckActivation(const Activation& in, const Weight& weight, const char* name) {
  const int64_t rows = in.values.shape[0];
  const int64_t k = in.values.shape[1];
  const bool float8 = weight.values.dtype == DType::kF8E4M3;
  CHECK_EQ(float8, in.values.dtype == DType::kF8E4M3) << name << ": FP8 multiplies FP8 only";
  CHECK_EQ(float8, !in.scales.empty()) << name << ": FP8 has scales, others no";
  if (!float8) {
    WithActivationType(in.values.dtype, [](auto) {});
    return;
  }
  const bool weight_blocked = weight.scales.rank == weight.values.rank;
  if (weight_blocked) {
    CheckShape(in.scales, DType::kF32, {rows, BlocksOf(k)}, name);
  } else {
    CheckShape(in.scales, DType::kF32, {rows}, name);
  }
}

namespace {

void MultiplyLinear(Device& device, const LinearArgs& args) {
  const int64_t rows_max = args.in.values.shape[0];
  const int64_t k = args.in.values.shape[1];
  const int64_t outputs = args.weight.values.shape[0];
  CheckShape(args.in.values, args.in.values.dtype, {rows_max, k}, "linear.in");
  CheckWeight(args.weight, -1, outputs, k, "linear.weight");
  CheckActivation(args.in, args.weight, "linear.in");
  CheckShape(args.out, args.out.dtype, {rows_max, outputs}, "linear.out");
  WithActivationType(args.out.dtype, [](auto) {});
  if (!args.bias.empty()) {
    CheckShape(args.bias, args.bias.dtype, {outputs}, "linear.bias");
    WithActivationType(args.bias.dtype, [](auto) {});
  }
  const int64_t rows =
      args.per_logit_row ? ValidLogitRows(args.batch, rows_max) : ValidTokens(args.batch, rows_max);
  MatrixProduct product;
  product.in = FloatRows(device, args.in.values, rows, &product.in_stride);
  if (!args.in.scales.empty()) {
    product.in_scales = args.in.scales.Data<float>();
    product.in_scales_stride = args.in.scales.stride[0];
    product.in_scales_grouped = args.in.scales.rank == 2;
  }
  product.weight = args.weight;
  product.bias = args.bias;
  product.out = args.out.data;
  product.out_dtype = args.out.dtype;
  product.out_stride = args.out.stride[0];

  const Cut cut = CutFor(rows, k);
  const int64_t row_cuts = (rows + cut.rows - 1) / cut.rows;
  const int64_t output_cuts = (outputs + cut.outputs - 1) / cut.outputs;
  ParallelFor(CpuDevice::Of(device).pool(), row_cuts * output_cuts, 1, [&](int64_t i) {
    const int64_t row = i % row_cuts * cut.rows;
    const int64_t output = i / row_cuts * cut.outputs;
    ComputeRectangle(product, row, std::min(row + cut.rows, rows), output,
                     std::min(output + cut.outputs, outputs));
  });
}

}  // namespace

void Linear(Device& device, const LinearArgs& args) {
  if (args.sum_over == nullptr) return MultiplyLinear(device, args);
  SumInParts(device, *args.sum_over, args.out, [&](int64_t first, int64_t count) {
    MultiplyLinear(device, OutputsOf(args, first, count));
  });
}

}  // namespace glm::cpu
