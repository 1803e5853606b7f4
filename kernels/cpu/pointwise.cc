// Ops that work row by row, and the rounding and quantising that they share.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/rms_norm.h"

namespace glm::cpu {
namespace {

constexpr int64_t kGroup = 128;  // columns that share a scale

/// The scale of FP8 values whose largest magnitude is `largest`.
float ScaleFor(float largest) { return largest == 0 ? 1.0f : largest / kFloat8Max; }

float LargestOf(const float* values, int64_t n) {
  float largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(values[i]));
  return largest;
}

float Silu(float x) { return x / (1.0f + std::exp(-x)); }

float* ScratchRows(Device& device, int64_t rows, int64_t width) {
  const Scratch& scratch = CpuDevice::Of(device).scratch();
  CHECK_LE(rows * width, scratch.row_floats) << "the step is larger than PlanScratch was told";
  return scratch.rows;
}

}  // namespace

float QuantizeGroup(float* values, int64_t n) {
  const float scale = ScaleFor(LargestOf(values, n));
  for (int64_t i = 0; i < n; ++i) values[i] = ToFloat(ToFloat8(values[i] / scale));
  return scale;
}

void LoadRow(const Tensor& values, int64_t row, float* out) {
  const int64_t n = values.shape[values.rank - 1];
  switch (values.dtype) {
    case DType::kF32:
      std::memcpy(out, values.Row<float>(row), n * sizeof(float));
      return;
    case DType::kBF16:
      for (int64_t i = 0; i < n; ++i) out[i] = ToFloat(values.Row<BFloat16>(row)[i]);
      return;
    case DType::kF8E4M3:
      for (int64_t i = 0; i < n; ++i) out[i] = ToFloat(values.Row<Float8>(row)[i]);
      return;
    default:
      CHECK(false) << Name(values.dtype) << " holds no activations";
  }
}

void StoreRow(float* values, int64_t n, DType act, int64_t row, const Tensor& out,
              const Activation& quantized) {
  WithActivationType(act, [&](auto type) {
    using T = decltype(type);
    for (int64_t i = 0; i < n; ++i) {
      const T rounded = FromFloat<T>(values[i]);
      if (!out.empty()) out.Row<T>(row)[i] = rounded;
      values[i] = ToFloat(rounded);
    }
  });
  if (quantized.values.empty()) return;
  const int64_t group = quantized.scales.rank == 1 ? n : kGroup;
  Float8* codes = quantized.values.Row<Float8>(row);
  for (int64_t begin = 0; begin < n; begin += group) {
    const int64_t end = std::min(begin + group, n);
    const float scale = ScaleFor(LargestOf(values + begin, end - begin));
    for (int64_t i = begin; i < end; ++i) codes[i] = ToFloat8(values[i] / scale);
    quantized.scales.Row<float>(row)[begin / group] = scale;
  }
}

void CheckOutputs(const Tensor& out, const Activation& quantized, DType act, int64_t rows,
                  int64_t columns, const char* name) {
  CHECK(!out.empty() || !quantized.values.empty()) << name << " has no output";
  if (!out.empty()) CheckShape(out, act, {rows, columns}, name);
  if (quantized.values.empty()) return;
  CheckShape(quantized.values, DType::kF8E4M3, {rows, columns}, name);
  if (quantized.scales.rank == 1) {
    CheckShape(quantized.scales, DType::kF32, {rows}, name);
  } else {
    CheckShape(quantized.scales, DType::kF32, {rows, (columns + kGroup - 1) / kGroup}, name);
  }
}

void Embed(Device& device, const EmbedArgs& args) {
  const int64_t rows = args.out.shape[0];
  const int64_t hidden = args.table.shape[1];
  CheckShape(args.table, args.out.dtype, {-1, hidden}, "embed.table");
  CheckShape(args.out, args.out.dtype, {rows, hidden}, "embed.out");
  CheckShape(args.batch.token_ids, DType::kI32, {rows}, "embed.token_ids");
  CHECK_GE(args.vocabulary_begin, 0) << "embed.vocabulary_begin";
  const int64_t bytes = hidden * ByteSize(args.out.dtype);
  const int64_t row_bytes = args.table.stride[0] * ByteSize(args.out.dtype);
  ParallelFor(CpuDevice::Of(device).pool(), ValidTokens(args.batch, rows), RowGrain(hidden),
              [&](int64_t t) {
                const int64_t row = TokenId(args.batch, t) - args.vocabulary_begin;
                void* out = args.out.Rows(t, 1).data;
                if (row >= 0 && row < args.table.shape[0]) {
                  std::memcpy(out, args.table.Data<char>() + row * row_bytes, bytes);
                } else {
                  std::memset(out, 0, bytes);
                }
              });
}

namespace {

/// residual += delta, as far as either is there; the sum, rounded, goes to `row` as floats.
template <typename T>
void AddRow(const AddRmsNormArgs& args, int64_t t, int64_t hidden, float* row) {
  const T* delta = args.delta.empty() ? nullptr : args.delta.Row<T>(t);
  if (args.residual.empty()) {
    for (int64_t i = 0; i < hidden; ++i) row[i] = ToFloat(delta[i]);
    return;
  }
  T* residual = args.residual.Row<T>(t);
  if (delta != nullptr) {
    for (int64_t i = 0; i < hidden; ++i) {
      residual[i] = FromFloat<T>(ToFloat(residual[i]) + ToFloat(delta[i]));
    }
  }
  for (int64_t i = 0; i < hidden; ++i) row[i] = ToFloat(residual[i]);
}

}  // namespace

void AddRmsNorm(Device& device, const AddRmsNormArgs& args) {
  CHECK(!args.residual.empty() || !args.delta.empty()) << "add_rms_norm has no input";
  const Tensor& in = args.residual.empty() ? args.delta : args.residual;
  const int64_t rows = in.shape[0];
  const int64_t hidden = in.shape[1];
  const DType act = in.dtype;
  CheckShape(in, act, {rows, hidden}, "add_rms_norm.residual");
  CheckShape(args.weight, act, {hidden}, "add_rms_norm.weight");
  if (!args.delta.empty()) CheckShape(args.delta, act, {rows, hidden}, "add_rms_norm.delta");
  CheckOutputs(args.out, args.quantized, act, rows, hidden, "add_rms_norm.out");
  float* scratch = ScratchRows(device, rows, hidden);
  ParallelFor(CpuDevice::Of(device).pool(), ValidTokens(args.batch, rows), RowGrain(hidden),
              [&](int64_t t) {
                float* row = scratch + t * hidden;
                WithActivationType(act, [&](auto type) {
                  using T = decltype(type);
                  AddRow<T>(args, t, hidden, row);
                  RmsNorm(row, hidden, args.weight.Data<T>(), args.epsilon);
                });
                StoreRow(row, hidden, act, t, args.out, args.quantized);
              });
}

void SiluMul(Device& device, const SiluMulArgs& args) {
  const int64_t rows = args.gate_up.shape[0];
  const int64_t width = args.gate_up.shape[1] / 2;
  const DType act = args.gate_up.dtype;
  CheckShape(args.gate_up, act, {rows, 2 * width}, "silu_mul.gate_up");
  CheckOutputs(args.out, args.quantized, act, rows, width, "silu_mul.out");
  float* scratch = ScratchRows(device, rows, width);
  ParallelFor(CpuDevice::Of(device).pool(), ValidTokens(args.batch, rows), RowGrain(4 * width),
              [&](int64_t t) {
                float* row = scratch + t * width;
                WithActivationType(act, [&](auto type) {
                  using T = decltype(type);
                  const T* gate = args.gate_up.Row<T>(t);
                  const T* up = gate + width;
                  for (int64_t i = 0; i < width; ++i) {
                    row[i] = Silu(ToFloat(gate[i])) * ToFloat(up[i]);
                  }
                });
                StoreRow(row, width, act, t, args.out, args.quantized);
              });
}

void GatherLogitRows(Device& device, const GatherLogitRowsArgs& args) {
  const int64_t rows = args.out.shape[0];
  const int64_t hidden = args.in.shape[1];
  CheckShape(args.in, args.out.dtype, {-1, hidden}, "gather_logit_rows.in");
  CheckShape(args.out, args.out.dtype, {rows, hidden}, "gather_logit_rows.out");
  CheckShape(args.batch.logit_tokens, DType::kI32, {rows}, "gather_logit_rows.logit_tokens");
  const int32_t* tokens = args.batch.logit_tokens.Data<int32_t>();
  const int64_t bytes = hidden * ByteSize(args.out.dtype);
  ParallelFor(CpuDevice::Of(device).pool(), ValidLogitRows(args.batch, rows), RowGrain(hidden),
              [&](int64_t r) {
                DCHECK(tokens[r] >= 0 && tokens[r] < args.in.shape[0]);
                std::memcpy(args.out.Rows(r, 1).data, args.in.Rows(tokens[r], 1).data, bytes);
              });
}

}  // namespace glm::cpu
