// FP8, up to 256 rows: more than small_gemm.cu's fragments carry well, few enough that reading the
// weight is most of the time.
//
// Weight rows are wgmma's M = 64 side and tokens its N side, so that one token costs as little as
// the tile allows. A block has 128 weight rows, a tile of tokens and a part of the depth; parts are
// chosen so that about all multiprocessors read. One warp feeds weights and tokens through the copy
// engine into a ring of stages, each 128 values of k deep; two warpgroups multiply, and take their
// sums out of the tensor cores' short accumulators after each stage.
//
// The blocks of a tile are a cluster along the depth. Each leaves its sums in shared memory, where
// the ring was; then each adds all parts of some of the tokens, in the order of the parts, so that
// every run gives the same bits. Parts in device memory that the last block adds, found by a
// ticket, were slower wherever the clusters all ran at once (H200, 64 tokens, 355B qkv at TP8: 9.3
// us against 6.7; Flash qkv: 7.8 against 4.6). Where a cluster more is asked for than fits, it
// waits for a whole other one (Air o in 32 clusters of 4, of which 30 fit: 24 us; in clusters of 3:
// 17), so that the driver is asked how many do: 132 multiprocessors hold 15 clusters of 8.
//
// No kernel writes weights: the producer asks for as many as the ring holds before it waits for the
// kernel before (launch_after.h), and only the tokens' boxes after it.

#include <algorithm>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/launch_after.h"
#include "kernels/cuda/mid_gemm.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/warp.cuh"

namespace glm::cuda {
namespace {

constexpr int kConsumers = 256;
constexpr int kThreads = kConsumers + kWarp;
constexpr int kGroupThreads = 128;  // of a consumer warpgroup
constexpr int kGroupRows = 64;      // weight rows that a warpgroup multiplies
constexpr int kTileRows = 128;      // weight rows of a block
constexpr int kDepthBytes = 128;    // of k a stage
constexpr int kWeightBytes = kTileRows * kDepthBytes;
constexpr int kStagesMax = 8;
constexpr int kPartsMax = 8;           // the largest cluster that every GPU takes
constexpr int kPitch = kTileRows + 4;  // floats between the sums of two tokens: no bank conflicts
constexpr int kRingBytes = 200 << 10;  // at most

/// Hardware barriers of a block, of which 0 is __syncthreads'.
enum NamedBarrierIndex : int {
  kBarrierReady = 1,  // the barriers in shared memory are initialised
  kBarrierConsumers = 2,
};

struct MidGemmParams {
  void* out;
  int64_t out_stride;
  const float* row_scales;
  const float* output_scales;
  const BFloat16* bias;
  const int32_t* valid_rows;
  int rows;
  int outputs;
  int depth_steps;  // stages of the whole depth
  int part_steps;   // of a part; the last one may have fewer
  int parts;
  int stages;  // of the ring
  bool float_out;
  bool wide_stores;  // four values at a time are aligned
};

template <int kTokens>
struct Shape {
  static constexpr int kStageBytes = kWeightBytes + kTokens * kDepthBytes;
  static constexpr int kSumBytes = kTokens * kPitch * static_cast<int>(sizeof(float));
  static constexpr int kBlocksPerSm = kTokens <= 64 ? 2 : 1;
};

template <int kTokens>
struct SharedState {
  alignas(8) uint64_t full[kStagesMax];
  uint64_t empty[kStagesMax];
  alignas(16) float output_scales[kTileRows];
  float biases[kTileRows];
  float row_scales[kTokens];
};

/// Feeds the block's part of the depth. One warp.
template <int kTokens>
__device__ void Feed(const CUtensorMap* weight, const CUtensorMap* in, const MidGemmParams& p,
                     SharedState<kTokens>& state, uint32_t ring, int row0, int token0, int step0,
                     int steps, bool leader) {
  constexpr int kStageBytes = Shape<kTokens>::kStageBytes;
  const int ahead = min(steps, p.stages);
  const auto load_weights = [&](int stage, int step) {
    const uint32_t full = SharedAddress(&state.full[stage]);
    BarrierArriveExpect(full, kStageBytes);
    TensorLoad2(ring + stage * kStageBytes, weight, full, (step0 + step) * kDepthBytes, row0);
  };
  const auto load_tokens = [&](int stage, int step) {
    TensorLoad2(ring + stage * kStageBytes + kWeightBytes, in, SharedAddress(&state.full[stage]),
                (step0 + step) * kDepthBytes, token0);
  };
  if (leader) {
    for (int s = 0; s < ahead; ++s) load_weights(s, s);
  }
  __syncwarp();
  DependencyStart();
  if (leader) {
    for (int s = 0; s < ahead; ++s) load_tokens(s, s);
    int stage = 0;
    uint32_t parity = 0;
    for (int step = ahead; step < steps; ++step) {
      BarrierWait(SharedAddress(&state.empty[stage]), parity);
      load_weights(stage, step);
      load_tokens(stage, step);
      if (++stage == p.stages) {
        stage = 0;
        parity ^= 1;
      }
    }
  }
  __syncwarp();
}

/// Stores the outputs from `row` on of a token, those that there are.
__device__ __forceinline__ void StoreFour(const MidGemmParams& p, int token, int row, float4 four) {
  const int64_t place = token * p.out_stride + row;
  float* out_float = static_cast<float*>(p.out) + place;
  BFloat16* out_short = static_cast<BFloat16*>(p.out) + place;
  if (p.wide_stores && row + 4 <= p.outputs) {
    if (p.float_out) {
      *reinterpret_cast<float4*>(out_float) = four;
    } else {
      *reinterpret_cast<uint2*>(out_short) =
          uint2{PackBf16(four.x, four.y), PackBf16(four.z, four.w)};
    }
    return;
  }
  const float values[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (row + i >= p.outputs) continue;
    if (p.float_out) {
      out_float[i] = values[i];
    } else {
      out_short[i] = ToBFloat16(values[i]);
    }
  }
}

template <int kTokens>
__global__ void __launch_bounds__(kThreads, Shape<kTokens>::kBlocksPerSm)
    MidGemmKernel(const __grid_constant__ CUtensorMap weight,
                  const __grid_constant__ CUtensorMap in, const MidGemmParams p) {
  using S = Shape<kTokens>;
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t ring = (SharedAddress(shared) + 1023) / 1024 * 1024;
  __shared__ SharedState<kTokens> state;
  const int tile = blockIdx.x / p.parts;
  const int part = blockIdx.x % p.parts;
  const int row0 = tile * kTileRows;
  const int token0 = blockIdx.y * kTokens;
  const int step0 = part * p.part_steps;
  const int steps = min(p.part_steps, p.depth_steps - step0);
  const bool clustered = p.parts > 1;

  if (threadIdx.x == kConsumers) {
    for (int s = 0; s < p.stages; ++s) {
      BarrierInit(SharedAddress(&state.full[s]), 1);
      BarrierInit(SharedAddress(&state.empty[s]), kConsumers / kWarp);
    }
    BarrierInitFence();
  }
  if (threadIdx.x >= kConsumers) {
    __syncwarp();
    // The barriers are this thread's own, so its copies need not wait for the block.
    NamedBarrierArrive(kBarrierReady, kThreads);
    Feed<kTokens>(&weight, &in, p, state, ring, row0, token0, step0, steps,
                  threadIdx.x == kConsumers);
    if (clustered) {  // the consumers' two
      ClusterArrive();
      ClusterWait();
      ClusterArrive();
      ClusterWait();
    }
    return;
  }

  const int thread = threadIdx.x;
  const int warp = Uniform(thread / kWarp);
  const int lane = thread % kWarp;
  const int group = Uniform(thread / kGroupThreads);
  // What the end needs is asked for now, when it costs no wait.
  float output_scale = 1;
  float bias = 0;
  if (thread < kTileRows) {
    const int row = min(row0 + thread, p.outputs - 1);
    output_scale = p.output_scales[row];
    if (p.bias != nullptr) bias = ToFloat(p.bias[row]);
  }
  NamedBarrier(kBarrierReady, kThreads);
  DependencyStart();
  const int valid = *p.valid_rows;
  float row_scale = 1;
  if (thread < kTokens) row_scale = p.row_scales[min(token0 + thread, p.rows - 1)];

  float sum[kTokens / 2] = {};
  int stage = 0;
  uint32_t parity = 0;
  for (int step = 0; step < steps; ++step) {
    BarrierWait(SharedAddress(&state.full[stage]), parity);
    const uint32_t base = ring + stage * S::kStageBytes;
    const uint32_t weights = WgmmaDescriptor(base + group * kGroupRows * kDepthBytes);
    const uint32_t tokens = WgmmaDescriptor(base + kWeightBytes);
    float fresh[kTokens / 2];
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      Wgmma<true, kTokens>::Run(fresh, weights + WgmmaBytes(32 * k), tokens + WgmmaBytes(32 * k),
                                k > 0);
    }
    WgmmaCommit();
    WgmmaWait<0>();
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) sum[i] += fresh[i];
    __syncwarp();
    if (lane == 0) BarrierArrive(SharedAddress(&state.empty[stage]));
    if (++stage == p.stages) {
      stage = 0;
      parity ^= 1;
    }
  }

  if (thread < kTileRows) {
    state.output_scales[thread] = output_scale;
    state.biases[thread] = bias;
  }
  if (thread < kTokens) state.row_scales[thread] = row_scale;
  // Both warpgroups have read the ring: its memory takes the sums, token by token.
  NamedBarrier(kBarrierConsumers, kConsumers);
  float* sums = reinterpret_cast<float*>(shared + (ring - SharedAddress(shared)));
  float* own = sums + lane % 4 * 2 * kPitch + warp * 16 + lane / 4;
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
    float* at = own + j * 8 * kPitch;
    at[0] = sum[4 * j];
    at[kPitch] = sum[4 * j + 1];
    at[8] = sum[4 * j + 2];
    at[kPitch + 8] = sum[4 * j + 3];
  }
  if (clustered) {
    ClusterArrive();
    ClusterWait();
  } else {
    NamedBarrier(kBarrierConsumers, kConsumers);
  }

  // A warp adds all 128 outputs of a token.
  const int row = row0 + lane * 4;
  const float4 scales = *reinterpret_cast<const float4*>(&state.output_scales[lane * 4]);
  const float4 biases = *reinterpret_cast<const float4*>(&state.biases[lane * 4]);
  const int tokens = min(min(p.rows, valid) - token0, kTokens);
  for (int token = warp * p.parts + part; token < tokens; token += p.parts * kConsumers / kWarp) {
    const int at = token * kPitch + lane * 4;
    float4 total{0, 0, 0, 0};
    if (clustered) {
      float4 of_part[kPartsMax];
#pragma unroll
      for (int q = 0; q < kPartsMax; ++q) {
        if (q < p.parts) {
          of_part[q] = ClusterLoad4(ring + at * static_cast<int>(sizeof(float)), q);
        }
      }
#pragma unroll
      for (int q = 0; q < kPartsMax; ++q) {
        if (q < p.parts) {
          total.x += of_part[q].x;
          total.y += of_part[q].y;
          total.z += of_part[q].z;
          total.w += of_part[q].w;
        }
      }
    } else {
      total = *reinterpret_cast<const float4*>(sums + at);
    }
    const float scale = state.row_scales[token];
    StoreFour(
        p, token0 + token, row,
        float4{total.x * (scales.x * scale) + biases.x, total.y * (scales.y * scale) + biases.y,
               total.z * (scales.z * scale) + biases.z, total.w * (scales.w * scale) + biases.w});
  }
  // No block leaves while another reads its shared memory.
  if (clustered) {
    ClusterArrive();
    ClusterWait();
  }
}

/// How many clusters of `parts` blocks run at once.
template <typename Kernel>
int ClustersAtOnce(Kernel kernel, int parts, int shared_bytes) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(parts);
  attribute.val.clusterDim.y = 1;
  attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(parts));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  CUDA_CHECK(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config));
  return clusters;
}

template <int kTokens>
void Launch(cudaStream_t stream, int sm_count, const SmallGemm& gemm, MidGemmParams params) {
  using S = Shape<kTokens>;
  const auto kernel = MidGemmKernel<kTokens>;
  const auto shared_bytes = [](int stages) {
    return std::max(stages * S::kStageBytes, S::kSumBytes) + 1024;
  };
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  shared_bytes(std::min(kStagesMax, kRingBytes / S::kStageBytes))));
  const int tiles = static_cast<int>((gemm.outputs + kTileRows - 1) / kTileRows);
  const int token_tiles = static_cast<int>((gemm.rows + kTokens - 1) / kTokens);
  // Of the thread, which has one GPU; 0: not asked yet.
  static thread_local int clusters_at_once[kPartsMax + 1][kStagesMax + 1] = {};
  int parts =
      std::clamp(sm_count / (tiles * token_tiles), 1, std::min(kPartsMax, params.depth_steps));
  for (;; --parts) {
    params.part_steps = (params.depth_steps + parts - 1) / parts;
    params.parts = (params.depth_steps + params.part_steps - 1) / params.part_steps;
    params.stages = std::min({params.part_steps, kStagesMax, kRingBytes / S::kStageBytes});
    if (params.parts == 1) break;
    int& clusters = clusters_at_once[params.parts][params.stages];
    if (clusters == 0) clusters = ClustersAtOnce(kernel, params.parts, shared_bytes(params.stages));
    if (clusters >= tiles * token_tiles) break;
  }
  const CUtensorMap weight = MakeTensorMap(gemm.weight, gemm.in_dtype, gemm.outputs, gemm.depth,
                                           gemm.weight_stride, kTileRows);
  const CUtensorMap in =
      MakeTensorMap(gemm.in, gemm.in_dtype, gemm.rows, gemm.depth, gemm.in_stride, kTokens);
  const dim3 grid(static_cast<unsigned>(tiles * params.parts), static_cast<unsigned>(token_tiles));
  LaunchClustersAfter(kernel, grid, params.parts, kThreads, shared_bytes(params.stages), stream,
                      weight, in, params);
}

}  // namespace

bool TakesMidGemm(const SmallGemm& gemm, int sm_count) {
  const auto aligned = [](const void* pointer, int64_t row_bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && row_bytes % 16 == 0;
  };
  if (gemm.in_dtype != DType::kF8E4M3 || gemm.block_scales || gemm.depth % 16 != 0 ||
      !aligned(gemm.in, gemm.in_stride) || !aligned(gemm.weight, gemm.weight_stride)) {
    return false;
  }
  // Up to 8 rows small_gemm.cu is faster, unless the weight is large (H200, one row of Air qkv: 22
  // us against 15). Above 64, cuBLASLt is as fast where it has many tiles (128 rows of 355B o at
  // TP8, 40 tiles: 8 us both; 256 of Air qkv, 112 tiles: 28 against 37), and half as fast where it
  // has few (128 rows of Air o, 32 tiles: 33 against 19). More than one wave is not worth it.
  constexpr int64_t kNarrowBytes = 12 << 20;
  const int64_t tiles = (gemm.outputs + kTileRows - 1) / kTileRows;
  if (gemm.rows <= 8) return gemm.outputs * gemm.depth > kNarrowBytes && tiles <= sm_count;
  if (gemm.rows <= 64) return tiles <= sm_count;
  return gemm.rows <= 256 && 4 * tiles <= sm_count;
}

void RunMidGemm(cudaStream_t stream, int sm_count, const SmallGemm& gemm) {
  const int64_t out_size = ByteSize(gemm.out_dtype);
  const MidGemmParams params = {
      .out = gemm.out,
      .out_stride = gemm.out_stride,
      .row_scales = gemm.row_scales,
      .output_scales = gemm.output_scales,
      .bias = gemm.bias,
      .valid_rows = gemm.valid_rows,
      .rows = static_cast<int>(gemm.rows),
      .outputs = static_cast<int>(gemm.outputs),
      .depth_steps = static_cast<int>((gemm.depth + kDepthBytes - 1) / kDepthBytes),
      .part_steps = 0,
      .parts = 0,
      .stages = 0,
      .float_out = gemm.out_dtype == DType::kF32,
      .wide_stores =
          reinterpret_cast<uintptr_t>(gemm.out) % (4 * out_size) == 0 && gemm.out_stride % 4 == 0,
  };
  if (gemm.rows <= 16) {
    Launch<16>(stream, sm_count, gemm, params);
  } else if (gemm.rows <= 32) {
    Launch<32>(stream, sm_count, gemm, params);
  } else if (gemm.rows <= 64) {
    Launch<64>(stream, sm_count, gemm, params);
  } else {
    Launch<128>(stream, sm_count, gemm, params);
  }
}

}  // namespace glm::cuda
