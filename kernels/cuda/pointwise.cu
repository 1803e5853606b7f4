// Ops of one pass over rows: embedding, residual + RMSNorm + quantise, SwiGLU + quantise, row
// gather.
//
// One block computes one row, 8 values a thread, so a row stays in registers between its reductions
// and device memory sees each value once. Blocks of padding rows return at once.

#include <algorithm>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/launch_after.h"
#include "kernels/cuda/norm_row.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/quantize_rows.h"
#include "kernels/cuda/warp.cuh"

namespace glm::cuda {
namespace {

/// The block copies one row.
__device__ __forceinline__ void CopyRow(const BFloat16* source, BFloat16* target, int columns,
                                        bool aligned) {
  if (aligned) {
    for (int v = threadIdx.x; v < columns / kVector; v += blockDim.x) {
      reinterpret_cast<uint4*>(target)[v] = reinterpret_cast<const uint4*>(source)[v];
    }
  } else {
    for (int c = threadIdx.x; c < columns; c += blockDim.x) target[c] = source[c];
  }
}

__global__ void EmbedKernel(const int32_t* counts, const int32_t* token_ids,
                            const int32_t* last_ids, const BFloat16* table, int64_t table_stride,
                            int64_t vocabulary_begin, int64_t table_rows, BFloat16* out,
                            int64_t out_stride, int columns, bool aligned) {
  const int row = blockIdx.x;
  if (row >= counts[0]) return;
  int32_t id = token_ids[row];
  if (id < 0) id = last_ids[~id];
  const int64_t table_row = id - vocabulary_begin;
  if (table_row < 0 || table_row >= table_rows) {
    for (int c = threadIdx.x; c < columns; c += blockDim.x) {
      out[row * out_stride + c] = BFloat16{0};
    }
    return;
  }
  CopyRow(table + table_row * table_stride, out + row * out_stride, columns, aligned);
}

__global__ void GatherKernel(const int32_t* counts, const int32_t* logit_tokens, const BFloat16* in,
                             int64_t in_stride, BFloat16* out, int64_t out_stride, int columns,
                             bool aligned) {
  const int row = blockIdx.x;
  if (row >= counts[2]) return;
  CopyRow(in + logit_tokens[row] * in_stride, out + row * out_stride, columns, aligned);
}

template <bool kAligned>
__global__ void __launch_bounds__(1024) AddRmsNormKernel(const NormParams p) {
  __shared__ float shared[kWarp];
  const int64_t row = blockIdx.x;
  const int column = threadIdx.x * kVector;
  // In a decode step the waits for memory are most of the time: the weight, which no kernel writes,
  // is asked for before the kernel before ends, the row together with the count of rows.
  float weights[kVector];
  LoadRow8<kAligned>(p.weight, column, p.columns, weights);
  DependencyStart();
  const int rows = p.counts[0];
  float values[kVector];
  float delta[kVector];
  const bool adds = p.residual != nullptr && p.delta != nullptr;
  if (p.residual == nullptr) {
    LoadRow8<kAligned>(p.delta + row * p.delta_stride, column, p.columns, values);
  } else {
    LoadRow8<kAligned>(p.residual + row * p.residual_stride, column, p.columns, values);
  }
  if (adds) LoadRow8<kAligned>(p.delta + row * p.delta_stride, column, p.columns, delta);
  if (row >= rows) return;
  if (adds) AddToResidual<kAligned>(p, row, column, delta, values);
  NormRow<kAligned>(p, row, column, weights, values, shared);
}

struct ActivateParams {
  const int32_t* counts;
  const BFloat16* in;  // [T, columns], or with kSilu [T, 2 * columns]
  int64_t in_stride;
  BFloat16* out;
  int64_t out_stride;
  QuantizedRows quantized;
  int columns;
};

/// Rows of `in`, or silu(gate) * up of them, to bf16 and to fp8. A thread has kVectors vectors.
template <bool kSilu, bool kAligned, int kVectors>
__global__ void __launch_bounds__(1024) ActivateKernel(const ActivateParams p) {
  __shared__ float shared[kWarp];
  const int64_t row = blockIdx.x;
  DependencyStart();
  const int rows = p.counts[0];  // awaited together with the row
  const BFloat16* in = p.in + row * p.in_stride;

  float values[kVectors][kVector];
  float ups[kSilu ? kVectors : 1][kVector];
  float largest = 0;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int column = (threadIdx.x + v * blockDim.x) * kVector;
    LoadRow8<kAligned>(in, column, p.columns, values[v]);
    if constexpr (kSilu) LoadRow8<kAligned>(in + p.columns, column, p.columns, ups[v]);
  }
  if (row >= rows) return;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int column = (threadIdx.x + v * blockDim.x) * kVector;
    if constexpr (kSilu) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        values[v][i] = RoundBf16(SiluMulOne(values[v][i], ups[v][i]));
      }
    }
#pragma unroll
    for (int i = 0; i < kVector; ++i) largest = fmaxf(largest, fabsf(values[v][i]));
    if (p.out != nullptr) {
      StoreRow8<kAligned>(p.out + row * p.out_stride, column, p.columns, values[v]);
    }
  }
  if (p.quantized.values == nullptr) return;
  if (p.quantized.scales_per_row == 1) largest = BlockMax(largest, shared);
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    StoreQuantized<kAligned>(p.quantized, row, (threadIdx.x + v * blockDim.x) * kVector, p.columns,
                             values[v], largest);
  }
}

template <bool kSilu, bool kAligned>
void LaunchActivateAligned(cudaStream_t stream, int64_t rows, const ActivateParams& p) {
  const int vectors = (p.columns + kVector - 1) / kVector;
  const int vectors_a_thread = vectors <= 1024 ? 1 : vectors <= 2048 ? 2 : 4;
  CHECK_LE(vectors, 4096) << "rows of at most 32768 values";
  const int needed = (vectors + vectors_a_thread - 1) / vectors_a_thread;
  const int threads = (needed + kWarp - 1) / kWarp * kWarp;
  const dim3 grid(static_cast<unsigned>(rows));
  if (vectors_a_thread == 1) {
    LaunchAfter(ActivateKernel<kSilu, kAligned, 1>, grid, threads, 0, stream, p);
  } else if (vectors_a_thread == 2) {
    LaunchAfter(ActivateKernel<kSilu, kAligned, 2>, grid, threads, 0, stream, p);
  } else {
    LaunchAfter(ActivateKernel<kSilu, kAligned, 4>, grid, threads, 0, stream, p);
  }
}

template <bool kSilu>
void LaunchActivate(cudaStream_t stream, int64_t rows, const ActivateParams& p, bool aligned) {
  if (aligned) {
    LaunchActivateAligned<kSilu, true>(stream, rows, p);
  } else {
    LaunchActivateAligned<kSilu, false>(stream, rows, p);
  }
}

}  // namespace

void Embed(Device& device, const EmbedArgs& args) {
  const OpScope op(device, "embed");
  const int64_t tokens = args.batch.token_ids.shape[0];
  const int64_t hidden = args.table.shape[1];
  CheckShape(args.table, DType::kBF16, {-1, -1}, "embed.table");
  CheckShape(args.out, DType::kBF16, {tokens, hidden}, "embed.out");
  EmbedKernel<<<static_cast<unsigned>(tokens), 256, 0, op.stream()>>>(
      args.batch.counts.Data<int32_t>(), args.batch.token_ids.Data<int32_t>(),
      args.batch.last_ids.Data<int32_t>(), args.table.Data<BFloat16>(), args.table.stride[0],
      args.vocabulary_begin, args.table.shape[0], args.out.Data<BFloat16>(), args.out.stride[0],
      static_cast<int>(hidden), VectorRows(args.table) && VectorRows(args.out));
}

void GatherLogitRows(Device& device, const GatherLogitRowsArgs& args) {
  const OpScope op(device, "gather_logit_rows");
  const int64_t rows = args.batch.logit_tokens.shape[0];
  const int64_t hidden = args.in.shape[1];
  CheckShape(args.in, DType::kBF16, {-1, hidden}, "gather_logit_rows.in");
  CheckShape(args.out, DType::kBF16, {rows, hidden}, "gather_logit_rows.out");
  GatherKernel<<<static_cast<unsigned>(rows), 256, 0, op.stream()>>>(
      args.batch.counts.Data<int32_t>(), args.batch.logit_tokens.Data<int32_t>(),
      args.in.Data<BFloat16>(), args.in.stride[0], args.out.Data<BFloat16>(), args.out.stride[0],
      static_cast<int>(hidden), VectorRows(args.in) && VectorRows(args.out));
}

void AddRmsNorm(Device& device, const AddRmsNormArgs& args) {
  const OpScope op(device, "add_rms_norm");
  bool aligned = false;
  const NormParams params = MakeNormParams(args, &aligned);
  const int64_t rows = (args.residual.empty() ? args.delta : args.residual).shape[0];
  const int threads = NormThreads(params.columns);
  CHECK_LE(threads, 1024) << "add_rms_norm: hidden of at most 8192";
  const unsigned grid = static_cast<unsigned>(rows);
  if (aligned) {
    LaunchAfter(AddRmsNormKernel<true>, dim3(grid), threads, 0, op.stream(), params);
  } else {
    LaunchAfter(AddRmsNormKernel<false>, dim3(grid), threads, 0, op.stream(), params);
  }
}

void SiluMul(Device& device, const SiluMulArgs& args) {
  const OpScope op(device, "silu_mul");
  const int64_t rows = args.gate_up.shape[0];
  const int64_t width = args.gate_up.shape[1] / 2;
  CheckShape(args.gate_up, DType::kBF16, {-1, 2 * width}, "silu_mul.gate_up");
  if (!args.out.empty()) CheckShape(args.out, DType::kBF16, {rows, width}, "silu_mul.out");
  const ActivateParams params = {
      .counts = args.batch.counts.Data<int32_t>(),
      .in = args.gate_up.Data<BFloat16>(),
      .in_stride = args.gate_up.stride[0],
      .out = args.out.Data<BFloat16>(),
      .out_stride = args.out.stride[0],
      .quantized = CheckQuantized(args.quantized, rows, width),
      .columns = static_cast<int>(width),
  };
  const bool aligned = width % kVector == 0 && VectorRows(args.gate_up) && VectorRows(args.out) &&
                       VectorRows(args.quantized.values);
  LaunchActivate<true>(op.stream(), rows, params, aligned);
}

void QuantizeRows(const OpScope& op, const Tensor& counts, const Tensor& in,
                  const Activation& quantized) {
  const ActivateParams params = {
      .counts = counts.Data<int32_t>(),
      .in = in.Data<BFloat16>(),
      .in_stride = in.stride[0],
      .out = nullptr,
      .out_stride = 0,
      .quantized = CheckQuantized(quantized, in.shape[0], in.shape[1]),
      .columns = static_cast<int>(in.shape[1]),
  };
  LaunchActivate<false>(op.stream(), in.shape[0], params,
                        VectorRows(in) && VectorRows(quantized.values));
}

}  // namespace glm::cuda
