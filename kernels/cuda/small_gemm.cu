// Few rows: the weight is streamed once, straight from device memory into tensor core fragments.
//
// Weight rows are the M = 16 side of mma.sync, tokens the N = 8 side. The order of k inside a
// product is free as long as both sides agree, so a thread takes 16 consecutive bytes where the
// fragment layout would want four scattered words: every load is 16 bytes wide, four lanes read 64
// consecutive bytes of a row, and no shared memory or shuffle stands between memory and the tensor
// core. The warps of a block take 128-byte slices of k in turn and add their sums at the end, in a
// fixed order. fp8 sums leave the tensor core's short accumulator every 128 values of k.
//
// A weight of few rows has few blocks; they get 16 warps each. Dividing k among the blocks of a
// cluster instead was slower on an H100 (355B qkv at TP8, M=1: 10.5 us against 7.5), clusters start
// late. What the end needs (scales, bias, the count of rows) is asked for at the start, when it
// costs no wait.
//
// Where the blocks all fit at once, they start while the kernel before ends (launch_after.h) and
// ask for their first weights, which no kernel writes, before they wait for it: in a decode step
// of one sequence the wait for memory is most of such a GEMM's time. For lm_head, of many waves,
// that was a loss on an H100 (M=1: 696 us against 412).

#include <algorithm>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/launch_after.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/small_gemm.h"
#include "kernels/cuda/warp.cuh"
#include "kernels/cuda/weight_slices.cuh"

namespace glm::cuda {
namespace {

struct GemmParams {
  const uint8_t* in;
  int64_t in_row_bytes;
  const uint8_t* weight;
  int64_t weight_row_bytes;
  void* out;
  int64_t out_stride;
  const float* row_scales;
  const float* output_scales;
  const BFloat16* bias;
  const int32_t* valid_rows;
  int rows;
  int outputs;
  int depth_bytes;
  bool float_out;
};

/// kEarlySlices: slices that a warp asks for before it waits for the kernel before; 0: it starts
/// after it.
template <bool kFp8, int kTokenTiles, int kWarps, int kEarlySlices>
__global__ void __launch_bounds__(kWarps* kWarp) SmallGemmKernel(const GemmParams p) {
  constexpr int kValues = kTokenTiles * 4;
  constexpr int kOutputs = kRowTile * kTokenTile * kTokenTiles;
  constexpr int kThreads = kWarps * kWarp;
  constexpr int kOutputsPerThread = (kOutputs + kThreads - 1) / kThreads;
  __shared__ float partial[kWarps][kValues][kWarp];
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int group = lane / 4;
  const int quad = lane % 4;
  const int row0 = blockIdx.x * kRowTile;
  constexpr bool kEarly = kEarlySlices > 0;
  constexpr int kUnroll = kEarly ? kEarlySlices : kTokenTiles <= 2 ? 2 : 1;
  constexpr int kStride = kWarps * kSliceBytes;
  constexpr bool kTokensAhead = kTokenTiles == 1;
  const uint8_t* low_row = p.weight + min(row0 + group, p.outputs - 1) * p.weight_row_bytes;
  const uint8_t* high_row = p.weight + min(row0 + group + 8, p.outputs - 1) * p.weight_row_bytes;
  WeightSlices<kUnroll, kStride, kEarly> weights;
  if constexpr (kEarly) {
    weights.Load(low_row, high_row, warp * kSliceBytes + quad * 16, p.depth_bytes);
    DependencyStart();
  }

  // Only used at the end: a use here would wait for them before the weight is asked for.
  const int valid = *p.valid_rows;
  float output_scales[kOutputsPerThread];
  float row_scales[kOutputsPerThread];
  BFloat16 biases[kOutputsPerThread];
#pragma unroll
  for (int o = 0; o < kOutputsPerThread; ++o) {
    const int i = threadIdx.x + o * kThreads;
    const int row = min(row0 + i % kRowTile, p.outputs - 1);
    if constexpr (kFp8) {
      output_scales[o] = p.output_scales[row];
      row_scales[o] = p.row_scales[min(i / kRowTile, p.rows - 1)];
    }
    biases[o] = p.bias != nullptr ? p.bias[row] : BFloat16{0};
  }

  const uint8_t* token_rows[kTokenTiles];
#pragma unroll
  for (int n = 0; n < kTokenTiles; ++n) {
    token_rows[n] = p.in + min(n * kTokenTile + group, p.rows - 1) * p.in_row_bytes;
  }

  float sums[kTokenTiles][4] = {};
  for (int k = warp * kSliceBytes; k < p.depth_bytes; k += kUnroll * kStride) {
    if (!kEarly || k != warp * kSliceBytes) {
      weights.Load(low_row, high_row, k + quad * 16, p.depth_bytes);
    }
    uint4 ahead[kUnroll][2];
    if constexpr (kTokensAhead) {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int at = k + u * kStride + half * 64 + quad * 16;
          ahead[u][half] = LoadToken<kEarly>(token_rows[0] + at, at < p.depth_bytes);
        }
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n) {
        uint4 token[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int at = k + u * kStride + half * 64 + quad * 16;
          token[half] = kTokensAhead ? ahead[u][half]
                                     : LoadToken<kEarly>(token_rows[n] + at, at < p.depth_bytes);
        }
        MultiplySlice<kFp8>(sums[n], weights.low[u], weights.high[u], token);
      }
    }
  }

#pragma unroll
  for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) partial[warp][n * 4 + i][lane] = sums[n][i];
  }
  __syncthreads();
#pragma unroll
  for (int o = 0; o < kOutputsPerThread; ++o) {
    const int i = threadIdx.x + o * kThreads;
    const int row_in_tile = i % kRowTile;
    const int token = i / kRowTile;
    const int row = row0 + row_in_tile;
    if (i >= kOutputs || row >= p.outputs || token >= min(p.rows, valid)) continue;
    const int column = token % kTokenTile;
    const int slot = token / kTokenTile * 4 + row_in_tile / 8 * 2 + column % 2;
    const int source_lane = row_in_tile % 8 * 4 + column / 2;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += partial[w][slot][source_lane];
    if constexpr (kFp8) sum *= output_scales[o] * row_scales[o];
    sum += ToFloat(biases[o]);
    if (p.float_out) {
      static_cast<float*>(p.out)[token * p.out_stride + row] = sum;
    } else {
      static_cast<BFloat16*>(p.out)[token * p.out_stride + row] = ToBFloat16(sum);
    }
  }
}

template <bool kFp8, int kTokenTiles, int kWarps>
void LaunchWarps(cudaStream_t stream, int tiles, bool early, const GemmParams& p) {
  if (!early) {
    SmallGemmKernel<kFp8, kTokenTiles, kWarps, 0><<<tiles, kWarps * kWarp, 0, stream>>>(p);
    return;
  }
  const auto launch = [&](auto kernel) {
    LaunchAfter(kernel, dim3(static_cast<unsigned>(tiles)), kWarps * kWarp, 0, stream, p);
  };
  // No more slices than a warp has: those past the end cost their products.
  const int slices = (p.depth_bytes + kWarps * kSliceBytes - 1) / (kWarps * kSliceBytes);
  if (slices == 1 || kTokenTiles > 2) {
    launch(SmallGemmKernel<kFp8, kTokenTiles, kWarps, 1>);
  } else if (slices == 2 || kTokenTiles == 2) {
    launch(SmallGemmKernel < kFp8, kTokenTiles, kWarps, kTokenTiles <= 2 ? 2 : 1 >);
  } else {
    launch(SmallGemmKernel < kFp8, kTokenTiles, kWarps, kTokenTiles == 1 ? 3 : 1 >);
  }
}

template <bool kFp8, int kTokenTiles>
void LaunchTiles(cudaStream_t stream, int sm_count, const GemmParams& p) {
  const int tiles = (p.outputs + kRowTile - 1) / kRowTile;
  // Blocks enough for one even wave of what a multiprocessor holds.
  if (tiles >= 4 * sm_count && kTokenTiles == 1) {
    LaunchWarps<kFp8, kTokenTiles, 4>(stream, tiles, false, p);
  } else if (tiles >= 2 * sm_count) {
    LaunchWarps<kFp8, kTokenTiles, 8>(stream, tiles, tiles < 4 * sm_count, p);
  } else {
    LaunchWarps<kFp8, kTokenTiles, 16>(stream, tiles, true, p);
  }
}

template <bool kFp8>
void LaunchRows(cudaStream_t stream, int sm_count, const GemmParams& p) {
  if (p.rows <= kTokenTile) {
    LaunchTiles<kFp8, 1>(stream, sm_count, p);
  } else if (p.rows <= 2 * kTokenTile) {
    LaunchTiles<kFp8, 2>(stream, sm_count, p);
  } else {
    LaunchTiles<kFp8, 4>(stream, sm_count, p);
  }
}

// One warp an output value.
__global__ void PlainGemmKernel(const SmallGemm g) {
  const int64_t output = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
  const int64_t row = blockIdx.y;
  const int lane = threadIdx.x % kWarp;
  if (output >= g.outputs || row >= *g.valid_rows) return;
  const int64_t blocks = (g.depth + 127) / 128;
  const bool fp8 = g.in_dtype == DType::kF8E4M3;
  float sum = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    float part = 0;
    for (int64_t k = b * 128 + lane; k < min((b + 1) * 128, g.depth); k += kWarp) {
      const int64_t a = row * g.in_stride + k;
      const int64_t w = output * g.weight_stride + k;
      if (fp8) {
        part += ToFloat(static_cast<const Float8*>(g.in)[a]) *
                ToFloat(static_cast<const Float8*>(g.weight)[w]);
      } else {
        part += ToFloat(static_cast<const BFloat16*>(g.in)[a]) *
                ToFloat(static_cast<const BFloat16*>(g.weight)[w]);
      }
    }
    if (g.block_scales) {
      part *= g.row_scales[row * blocks + b] * g.output_scales[output / 128 * blocks + b];
    }
    sum += part;
  }
  sum = WarpSum(sum);
  if (lane != 0) return;
  if (fp8 && !g.block_scales) sum *= g.row_scales[row] * g.output_scales[output];
  if (g.bias != nullptr) sum += ToFloat(g.bias[output]);
  if (g.out_dtype == DType::kF32) {
    static_cast<float*>(g.out)[row * g.out_stride + output] = sum;
  } else {
    static_cast<BFloat16*>(g.out)[row * g.out_stride + output] = ToBFloat16(sum);
  }
}

__global__ void AddBiasKernel(float* out, int64_t out_stride, const BFloat16* bias,
                              int64_t outputs) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column < outputs) out[blockIdx.y * out_stride + column] += ToFloat(bias[column]);
}

}  // namespace

bool TakesSmallGemm(const SmallGemm& gemm) {
  const int64_t size = ByteSize(gemm.in_dtype);
  const auto aligned = [](const void* pointer, int64_t row_bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && row_bytes % 16 == 0;
  };
  // From 17 rows on, cuBLASLt is as fast where the weight is large; below, and for narrow weights,
  // it stands at 10 to 60 % of the memory's rate (H100).
  constexpr int64_t kNarrowBytes = 12 << 20;
  const int64_t rows_max = gemm.outputs * gemm.depth * size <= kNarrowBytes ? 32 : 16;
  return gemm.rows <= rows_max && !gemm.block_scales && gemm.depth * size % 16 == 0 &&
         aligned(gemm.in, gemm.in_stride * size) && aligned(gemm.weight, gemm.weight_stride * size);
}

void RunSmallGemm(cudaStream_t stream, int sm_count, const SmallGemm& gemm) {
  const int64_t size = ByteSize(gemm.in_dtype);
  const GemmParams params = {
      .in = static_cast<const uint8_t*>(gemm.in),
      .in_row_bytes = gemm.in_stride * size,
      .weight = static_cast<const uint8_t*>(gemm.weight),
      .weight_row_bytes = gemm.weight_stride * size,
      .out = gemm.out,
      .out_stride = gemm.out_stride,
      .row_scales = gemm.row_scales,
      .output_scales = gemm.output_scales,
      .bias = gemm.bias,
      .valid_rows = gemm.valid_rows,
      .rows = static_cast<int>(gemm.rows),
      .outputs = static_cast<int>(gemm.outputs),
      .depth_bytes = static_cast<int>(gemm.depth * size),
      .float_out = gemm.out_dtype == DType::kF32,
  };
  if (gemm.in_dtype == DType::kF8E4M3) {
    LaunchRows<true>(stream, sm_count, params);
  } else {
    LaunchRows<false>(stream, sm_count, params);
  }
}

void RunPlainGemm(cudaStream_t stream, const SmallGemm& gemm) {
  constexpr int kThreads = 256;
  const dim3 grid(static_cast<unsigned>((gemm.outputs * kWarp + kThreads - 1) / kThreads),
                  static_cast<unsigned>(gemm.rows));
  PlainGemmKernel<<<grid, kThreads, 0, stream>>>(gemm);
}

void AddBias(cudaStream_t stream, float* out, int64_t out_stride, const BFloat16* bias,
             int64_t rows, int64_t outputs) {
  constexpr int kThreads = 256;
  const dim3 grid(static_cast<unsigned>((outputs + kThreads - 1) / kThreads),
                  static_cast<unsigned>(rows));
  AddBiasKernel<<<grid, kThreads, 0, stream>>>(out, out_stride, bias, outputs);
}

}  // namespace glm::cuda
