// Ops that work row by row, and the rounding and quantising that they share.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/cpu_ops.h"

namespace glm::cpu {
namespace {

constexpr int64_t kGroup = 128;  // columns that share a scale

/// Rows that make a range worth a thread, for rows of `width` elements.
int64_t RowGrain(int64_t width) { return std::max<int64_t>(1, 8192 / std::max<int64_t>(width, 1)); }

/// The scale of FP8 values whose largest magnitude is `largest`.
float ScaleFor(float largest) { return largest == 0 ? 1.0f : largest / kFloat8Max; }

float LargestOf(const float* values, int64_t n) {
  float largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(values[i]));
  return largest;
}

float SumOfSquares(const float* values, int64_t n) {
  float lanes[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int l = 0; l < 8; ++l) lanes[l] += values[i + l] * values[i + l];
  }
  for (int l = 0; i + l < n; ++l) lanes[l] += values[i + l] * values[i + l];
  float sum = 0;
  for (const float lane : lanes) sum += lane;
  return sum;
}

/// values * rms(values)^-1 rounded, times weight; the product is not yet rounded.
template <typename T>
void RmsNorm(float* values, int64_t n, const T* weight, float epsilon) {
  const float mean = SumOfSquares(values, n) / static_cast<float>(n);
  const float factor = 1.0f / std::sqrt(mean + epsilon);
  for (int64_t i = 0; i < n; ++i) {
    values[i] = ToFloat(FromFloat<T>(values[i] * factor)) * ToFloat(weight[i]);
  }
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
  const int32_t* token_ids = args.batch.token_ids.Data<int32_t>();
  const int32_t* last_ids = args.batch.last_ids.Data<int32_t>();
  const int64_t bytes = hidden * ByteSize(args.out.dtype);
  const int64_t row_bytes = args.table.stride[0] * ByteSize(args.out.dtype);
  ParallelFor(CpuDevice::Of(device).pool(), ValidTokens(args.batch, rows), RowGrain(hidden),
              [&](int64_t t) {
                const int32_t id = token_ids[t] >= 0 ? token_ids[t] : last_ids[~token_ids[t]];
                DCHECK(id >= 0 && id < args.table.shape[0]);
                std::memcpy(args.out.Rows(t, 1).data, args.table.Data<char>() + id * row_bytes,
                            bytes);
              });
}

void AddRmsNorm(Device& device, const AddRmsNormArgs& args) {
  const int64_t rows = args.residual.shape[0];
  const int64_t hidden = args.residual.shape[1];
  const DType act = args.residual.dtype;
  CheckShape(args.residual, act, {rows, hidden}, "add_rms_norm.residual");
  CheckShape(args.weight, act, {hidden}, "add_rms_norm.weight");
  if (!args.delta.empty()) CheckShape(args.delta, act, {rows, hidden}, "add_rms_norm.delta");
  CheckOutputs(args.out, args.quantized, act, rows, hidden, "add_rms_norm.out");
  float* scratch = ScratchRows(device, rows, hidden);
  ParallelFor(CpuDevice::Of(device).pool(), ValidTokens(args.batch, rows), RowGrain(hidden),
              [&](int64_t t) {
                float* row = scratch + t * hidden;
                WithActivationType(act, [&](auto type) {
                  using T = decltype(type);
                  T* residual = args.residual.Row<T>(t);
                  if (!args.delta.empty()) {
                    const T* delta = args.delta.Row<T>(t);
                    for (int64_t i = 0; i < hidden; ++i) {
                      residual[i] = FromFloat<T>(ToFloat(residual[i]) + ToFloat(delta[i]));
                    }
                  }
                  for (int64_t i = 0; i < hidden; ++i) row[i] = ToFloat(residual[i]);
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

namespace {

/// One head of q or k, in place: norm, then rotation.
template <typename T>
void NormRope(T* head, int64_t head_size, const Tensor& weight, float epsilon, const float* angles,
              int64_t rope_size) {
  float values[kHeadSizeMax];
  for (int64_t i = 0; i < head_size; ++i) values[i] = ToFloat(head[i]);
  if (!weight.empty()) {
    RmsNorm(values, head_size, weight.Data<T>(), epsilon);
    for (int64_t i = 0; i < head_size; ++i) values[i] = ToFloat(FromFloat<T>(values[i]));
  }
  const int64_t half = rope_size / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float cosine = angles[i];
    const float sine = angles[half + i];
    const float low = values[i];
    const float high = values[half + i];
    values[i] = low * cosine - high * sine;
    values[half + i] = high * cosine + low * sine;
  }
  for (int64_t i = 0; i < head_size; ++i) head[i] = FromFloat<T>(values[i]);
}

template <typename T>
void NormRopeStoreToken(const NormRopeStoreArgs& args, int64_t head_size, int64_t t) {
  const BatchView& batch = args.batch;
  const KvLayer& cache = args.cache;
  const int64_t position = batch.positions.Data<int32_t>()[t];
  const int64_t sequence = batch.token_sequences.Data<int32_t>()[t];
  const int64_t block_size = cache.keys.shape[2];
  DCHECK(position >= 0 && position / block_size < batch.block_tables.shape[1]);
  const int64_t block = batch.block_tables.Row<int32_t>(sequence)[position / block_size];
  DCHECK(block >= 0 && block < cache.keys.shape[0]);
  const int64_t slot = position % block_size;
  const float* angles = args.rope.Row<float>(position);
  const int64_t rope_size = args.rope.shape[1];

  T* head = args.qkv.Row<T>(t);
  for (int64_t h = 0; h < args.query_heads; ++h, head += head_size) {
    NormRope(head, head_size, args.q_norm, args.epsilon, angles, rope_size);
  }
  const T* value = head + args.kv_heads * head_size;
  for (int64_t h = 0; h < args.kv_heads; ++h, head += head_size, value += head_size) {
    NormRope(head, head_size, args.k_norm, args.epsilon, angles, rope_size);
    const auto cell = [&](const Tensor& tensor) {
      return tensor.Data<T>() + block * tensor.stride[0] + h * tensor.stride[1] +
             slot * tensor.stride[2];
    };
    std::memcpy(cell(cache.keys), head, head_size * sizeof(T));
    std::memcpy(cell(cache.values), value, head_size * sizeof(T));
  }
}

}  // namespace

void NormRopeStore(Device& device, const NormRopeStoreArgs& args) {
  const DType act = args.qkv.dtype;
  const int64_t rows = args.qkv.shape[0];
  const int64_t head_size = args.cache.keys.shape[3];
  const int64_t width = (args.query_heads + 2 * args.kv_heads) * head_size;
  CHECK_LE(head_size, kHeadSizeMax);
  CheckShape(args.qkv, act, {rows, width}, "norm_rope_store.qkv");
  CheckShape(args.cache.keys, act, {-1, args.kv_heads, -1, head_size}, "norm_rope_store.keys");
  CheckShape(args.cache.values, act,
             {args.cache.keys.shape[0], args.kv_heads, args.cache.keys.shape[2], head_size},
             "norm_rope_store.values");
  CheckShape(args.rope, DType::kF32, {-1, -1}, "norm_rope_store.rope");
  CHECK(args.rope.shape[1] % 2 == 0 && args.rope.shape[1] <= head_size)
      << "rope size " << args.rope.shape[1];
  if (!args.q_norm.empty()) CheckShape(args.q_norm, act, {head_size}, "norm_rope_store.q_norm");
  if (!args.k_norm.empty()) CheckShape(args.k_norm, act, {head_size}, "norm_rope_store.k_norm");
  WithActivationType(act, [&](auto type) {
    using T = decltype(type);
    ParallelFor(CpuDevice::Of(device).pool(), ValidTokens(args.batch, rows), RowGrain(width),
                [&](int64_t t) { NormRopeStoreToken<T>(args, head_size, t); });
  });
}

}  // namespace glm::cpu
