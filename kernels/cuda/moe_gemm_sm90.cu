// Ragged grouped GEMMs over one weight tensor, for decode and prefill alike.
//
// A tile is 128 weight rows (two boxes of them: gate and up, or two of down's) times a tile of one
// expert's tokens. Weights are wgmma's M = 64 side and tokens its N side, so that one token costs
// as little as the tile allows: decode is bound by reading the weights. Every block walks the tiles
// blockIdx, + gridDim, ...; it finds a tile's expert in a table that it computes from
// expert_starts, so nothing is padded, no list is built and the host knows no count.
//
// One warp of the producer warpgroup feeds weight boxes through the copy engine into a ring of
// stages, each 128 bytes of k deep. For tiles of 16 tokens its other warps gather the tokens of
// gate+up row by row through pair_order with cp.async, into the layout that the copy engine would
// give (16-byte vector v of row r at v ^ (r % 8)). For wider tiles that gather was the limit (470
// TFLOPS at 8192 tokens of Air, H100): there tokens are first copied into the order of their
// places, and come through the copy engine too. Two consumer warpgroups multiply. fp8 sums are
// taken out of the tensor cores every 128 values of k, which is also where the scales of h and of
// block-scaled weights apply.
//
// One token of Flash has 60 tiles of gate+up for 132 blocks. Dividing a tile's depth between two
// blocks, the last of which adds both sums, was no gain (20.4 us against 19.5, H100): the wait for
// the first weights and the ticket cost what the shorter depth saved.
//
// Gate and up rows of the same index meet in one thread, so SwiGLU and its quantisation need no
// pass of their own; a tile covers 128 columns of h, the group that shares a scale. Down writes
// rows by pair number, and a last kernel adds a token's rows in order: the sum has a fixed order.
// Tensor cores leave a token's values spread over a warp's lanes, so rows of h and bf16 rows of y
// pass through shared memory to leave as 16-byte vectors.

#include <algorithm>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/launch_after.h"
#include "kernels/cuda/moe_gemm.h"
#include "kernels/cuda/moe_tiles.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/warp.cuh"

namespace glm::cuda {
namespace {

/// What a consumer thread holds of a tile: rows `low` and low + 8 of each box.
struct ThreadRows {
  int warp;  // 0..7
  int lane;
  int low;  // within the box

  __device__ explicit ThreadRows(int thread)
      : warp(thread / kWarp), lane(thread % kWarp), low(warp * 16 + lane / 4) {}
  /// Columns of accumulators 4j and 4j + 1.
  __device__ int Column(int j) const { return j * 8 + lane % 4 * 2; }
};

template <bool kGateUp, MoeScales kScales, int kTokens>
struct Accumulators {
  using C = Config<kGateUp, kScales, kTokens>;
  float sum[C::kBoxes][kTokens / 2];
};

/// fresh, scaled, is added to sum. Block scales of the weight: one a box row for gate+up (its up
/// rows may straddle blocks), one a box for down.
template <bool kGateUp, MoeScales kScales, int kTokens, typename State>
__device__ __forceinline__ void Promote(const MoeGemmParams& p, const State& state,
                                        const Tile& tile, const ThreadRows& rows, int box, int step,
                                        int stage, const float (&fresh)[kTokens / 2],
                                        float (&sum)[kTokens / 2], int depth_steps) {
  float row_scale[2] = {1, 1};
  if constexpr (kScales == MoeScales::kBlock) {
    const int outputs = kGateUp ? 2 * p.width : p.hidden;
    const int row_blocks = (outputs + kGroup - 1) / kGroup;
    const float* scales = kGateUp ? p.gate_up_scales : p.down_scales;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = min(outputs - 1,
                          tile.row + rows.low + r * 8 + (kGateUp ? box * p.width : box * kBoxRows));
      row_scale[r] =
          scales[(static_cast<int64_t>(tile.expert) * row_blocks + row / kGroup) * depth_steps +
                 step];
    }
  }
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
    float column_scale[2] = {1, 1};
    if constexpr (!kGateUp) {
      const float2 pair =
          *reinterpret_cast<const float2*>(&state.depth_scales[stage][rows.Column(j)]);
      column_scale[0] = pair.x;
      column_scale[1] = pair.y;
    } else if constexpr (kScales == MoeScales::kBlock) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int column = rows.Column(j) + c;
        if (column < tile.count) {
          column_scale[c] =
              p.in_scales[static_cast<int64_t>(TokenAt(p, tile.first + column)) * depth_steps +
                          step];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (kGateUp && kScales == MoeScales::kChannel) {
        sum[4 * j + i] += fresh[4 * j + i];
      } else {
        sum[4 * j + i] += fresh[4 * j + i] * (row_scale[i / 2] * column_scale[i % 2]);
      }
    }
  }
}

/// Multiplies one tile; returns with its sums in registers.
template <bool kGateUp, MoeScales kScales, int kTokens, typename State>
__device__ __forceinline__ void Multiply(const MoeGemmParams& p, State& state, const Tile& tile,
                                         const ThreadRows& rows, uint32_t ring, int depth_steps,
                                         int& stage, uint32_t& parity,
                                         Accumulators<kGateUp, kScales, kTokens>& accumulators) {
  using C = Config<kGateUp, kScales, kTokens>;
  auto& sum = accumulators.sum;
  const uint32_t rows_offset = rows.warp / 4 * 64 * kDepthBytes;
#pragma unroll
  for (int box = 0; box < C::kBoxes; ++box) {
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) sum[box][i] = 0;
  }
  for (int step = 0; step < depth_steps; ++step) {
    BarrierWait(SharedAddress(&state.full[stage]), parity);
    const uint32_t base = ring + stage * C::kStageBytes;
    const uint64_t tokens = WgmmaDescriptor(base + C::kBoxes * kBoxBytes);
    if constexpr (C::kFp8) {
#pragma unroll
      for (int box = 0; box < C::kBoxes; ++box) {
        float fresh[kTokens / 2];
        const uint64_t weights = WgmmaDescriptor(base + box * kBoxBytes + rows_offset);
        WgmmaFence();
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          Wgmma<true, kTokens>::Run(fresh, weights + 2 * k, tokens + 2 * k, k > 0);
        }
        WgmmaCommit();
        WgmmaWait<0>();
        Promote<kGateUp, kScales, kTokens>(p, state, tile, rows, box, step, stage, fresh, sum[box],
                                           depth_steps);
      }
    } else {
      WgmmaFence();
#pragma unroll
      for (int box = 0; box < C::kBoxes; ++box) {
        const uint64_t weights = WgmmaDescriptor(base + box * kBoxBytes + rows_offset);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          Wgmma<false, kTokens>::Run(sum[box], weights + 2 * k, tokens + 2 * k, 1);
        }
      }
      WgmmaCommit();
      WgmmaWait<C::kOverlap ? 1 : 0>();
    }
    __syncwarp();
    if (rows.lane == 0 && (!C::kOverlap || step > 0)) {
      const int done = !C::kOverlap ? stage : stage == 0 ? C::kStages - 1 : stage - 1;
      BarrierArrive(SharedAddress(&state.empty[done]));
    }
    if (++stage == C::kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
  if constexpr (C::kOverlap) {
    WgmmaWait<0>();
    if (rows.lane == 0) {
      BarrierArrive(SharedAddress(&state.empty[stage == 0 ? C::kStages - 1 : stage - 1]));
    }
  }
}

/// What a column of the tile needs at its end, looked up before the tile is multiplied.
struct Column {
  float scale = 1;
  int row = 0;
};

template <bool kGateUp, MoeScales kScales>
__device__ __forceinline__ Column LookUpColumn(const MoeGemmParams& p, const Tile& tile,
                                               int column) {
  Column result;
  if (column >= tile.count) return result;
  const int place = tile.first + column;
  if constexpr (kGateUp) {
    if constexpr (kScales == MoeScales::kChannel) result.scale = p.in_scales[TokenAt(p, place)];
  } else {
    const int routed = p.tokens * p.experts_per_token;
    result.row = place < routed ? p.pair_order[place] : place;
  }
  return result;
}

/// Copies staged rows of 128 values to 16-byte vectors of global memory. target(column): where the
/// row of that column of the pass starts, or null.
template <typename C, typename State, typename Target>
__device__ __forceinline__ void CopyStaged(const State& state, int thread, int valid_bytes,
                                           const Target& target) {
  constexpr int kVectors = kBoxRows * C::kOutBytes / 16;
  NamedBarrier(2, kConsumers);
  for (int i = thread; i < C::kStagingTokens * kVectors; i += kConsumers) {
    const int column = i / kVectors;
    const int offset = i % kVectors * 16;
    uint8_t* row = target(column);
    if (row != nullptr && offset < valid_bytes) {
      *reinterpret_cast<uint4*>(row + offset) =
          *reinterpret_cast<const uint4*>(state.staging + column * C::kStagingPitch + offset);
    }
  }
  NamedBarrier(2, kConsumers);
}

/// Stages the columns [pass * kStagingTokens, ...) of one box of bf16 values.
template <typename C, int kTokens, typename State>
__device__ __forceinline__ void StageBf16(State& state, const ThreadRows& rows, int pass,
                                          const float (&values)[kTokens / 2]) {
  static_assert(C::kStagingTokens % 8 == 0);
  constexpr int kTiles = C::kStagingTokens / 8;
  // Tile i of a store: rows + 8 * (i % 2), columns of j + i / 2.
  const int tile = rows.lane / 8;
  const uint32_t address = SharedAddress(state.staging) +
                           (tile / 2 * 8 + rows.lane % 8) * C::kStagingPitch +
                           (rows.warp * 16 + tile % 2 * 8) * 2;
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
    if (j / kTiles != pass || (j % kTiles) % 2 != 0) continue;
    // With a single tile of columns, the second one's place is the first one's again.
    const int next = kTiles == 1 ? j : j + 1;
    const uint32_t column_bytes = j % kTiles * 8 * C::kStagingPitch;
    const uint32_t fold = kTiles == 1 ? tile / 2 * 8 * C::kStagingPitch : 0;
    StoreMatrix4Transposed(address + column_bytes - fold,
                           PackBf16(values[4 * j], values[4 * j + 1]),
                           PackBf16(values[4 * j + 2], values[4 * j + 3]),
                           PackBf16(values[4 * next], values[4 * next + 1]),
                           PackBf16(values[4 * next + 2], values[4 * next + 3]));
  }
}

/// SwiGLU of the tile's sums, to h: bf16, or fp8 with one scale a (token, tile).
template <MoeScales kScales, int kTokens, typename State>
__device__ __forceinline__ void StoreHidden(const MoeGemmParams& p, State& state, const Tile& tile,
                                            const ThreadRows& rows, float (&gate)[kTokens / 2],
                                            const float (&up)[kTokens / 2]) {
  using C = Config<true, kScales, kTokens>;
  const int thread = rows.warp * kWarp + rows.lane;
  const int row = tile.row + rows.low;
  const bool row_valid[2] = {row < p.width, row + 8 < p.width};
  float row_scales[2][2] = {{1, 1}, {1, 1}};
  if constexpr (kScales == MoeScales::kChannel) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int at = min(row + r * 8, p.width - 1);
      const float* scales = p.gate_up_scales + static_cast<int64_t>(tile.expert) * 2 * p.width;
      row_scales[0][r] = scales[at];
      row_scales[1][r] = scales[p.width + at];
    }
  }
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
    float2 token_scales = {1, 1};
    if constexpr (kScales == MoeScales::kChannel) {
      token_scales = *reinterpret_cast<const float2*>(&state.column_scales[rows.Column(j)]);
    }
    float largest[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float token_scale = i % 2 == 0 ? token_scales.x : token_scales.y;
      const float g = gate[4 * j + i] * (row_scales[0][i / 2] * token_scale);
      const float u = up[4 * j + i] * (row_scales[1][i / 2] * token_scale);
      gate[4 * j + i] = row_valid[i / 2] ? SiluMulOne(g, u) : 0.0f;
      largest[i % 2] = fmaxf(largest[i % 2], fabsf(gate[4 * j + i]));
    }
    if constexpr (C::kFp8) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
#pragma unroll
        for (int offset = 4; offset < kWarp; offset *= 2) {
          largest[c] = fmaxf(largest[c], __shfl_xor_sync(kAllLanes, largest[c], offset));
        }
        if (rows.lane < 4) state.column_largest[rows.warp][rows.Column(j) + c] = largest[c];
      }
    }
  }
  const int valid_bytes =
      min(kBoxRows * C::kOutBytes, static_cast<int>(p.h_row_bytes) - tile.row * C::kOutBytes);
  const auto target_of = [&](int column) {
    return column < tile.count
               ? p.h + (tile.first + column) * p.h_row_bytes + tile.row * C::kOutBytes
               : nullptr;
  };
  if constexpr (!C::kFp8) {
#pragma unroll
    for (int pass = 0; pass < C::kOutBytes; ++pass) {
      StageBf16<C, kTokens>(state, rows, pass, gate);
      CopyStaged<C>(state, thread, valid_bytes,
                    [&](int column) { return target_of(pass * C::kStagingTokens + column); });
    }
    return;
  }
  NamedBarrier(2, kConsumers);
  if (thread < kTokens) {
    float largest = 0;
#pragma unroll
    for (int w = 0; w < kConsumers / kWarp; ++w) {
      largest = fmaxf(largest, state.column_largest[w][thread]);
    }
    const float scale = Fp8Scale(largest);
    state.column_scales[thread] = 1.0f / scale;
    if (thread < tile.count) {
      p.h_scales[static_cast<int64_t>(tile.row / kGroup) * p.pair_rows + tile.first + thread] =
          scale;
    }
  }
  NamedBarrier(2, kConsumers);
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
    const float2 inverse = *reinterpret_cast<const float2*>(&state.column_scales[rows.Column(j)]);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float factor = c == 0 ? inverse.x : inverse.y;
      uint8_t* staged = state.staging + (rows.Column(j) + c) * C::kStagingPitch + rows.low;
      const uint16_t pair = PackFp8(gate[4 * j + c] * factor, gate[4 * j + c + 2] * factor);
      staged[0] = static_cast<uint8_t>(pair);
      staged[8] = static_cast<uint8_t>(pair >> 8);
    }
  }
  CopyStaged<C>(state, thread, valid_bytes, target_of);
}

/// The tile's sums, scaled, to the rows of y: float, or bf16 in wide tiles.
template <MoeScales kScales, int kTokens, int kBoxes, typename State>
__device__ __forceinline__ void StoreOutputs(const MoeGemmParams& p, State& state, const Tile& tile,
                                             const ThreadRows& rows,
                                             float (&sum)[kBoxes][kTokens / 2]) {
  using C = Config<false, kScales, kTokens>;
#pragma unroll
  for (int box = 0; box < kBoxes; ++box) {
    const int first_row = tile.row + box * kBoxRows;
    const int row = first_row + rows.low;
    if constexpr (kScales == MoeScales::kChannel) {
      const float* scales = p.down_scales + static_cast<int64_t>(tile.expert) * p.hidden;
      const float row_scales[2] = {scales[min(row, p.hidden - 1)],
                                   scales[min(row + 8, p.hidden - 1)]};
#pragma unroll
      for (int i = 0; i < kTokens / 2; ++i) sum[box][i] *= row_scales[i % 4 / 2];
    }
    if constexpr (kTokens == 128) {
#pragma unroll
      for (int pass = 0; pass < C::kOutBytes; ++pass) {
        StageBf16<C, kTokens>(state, rows, pass, sum[box]);
        CopyStaged<C>(state, rows.warp * kWarp + rows.lane, (p.hidden - first_row) * 2,
                      [&](int staged) -> uint8_t* {
                        const int column = pass * C::kStagingTokens + staged;
                        if (column >= tile.count) return nullptr;
                        const int64_t at =
                            static_cast<int64_t>(state.column_rows[column]) * p.hidden + first_row;
                        return reinterpret_cast<uint8_t*>(static_cast<BFloat16*>(p.y) + at);
                      });
      }
    } else {
#pragma unroll
      for (int j = 0; j < kTokens / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int column = rows.Column(j) + i % 2;
          if (column >= tile.count || row + i / 2 * 8 >= p.hidden) continue;
          static_cast<float*>(
              p.y)[static_cast<int64_t>(state.column_rows[column]) * p.hidden + row + i / 2 * 8] =
              sum[box][4 * j + i];
        }
      }
    }
  }
}

template <bool kGateUp, MoeScales kScales, int kTokens>
__global__ void __launch_bounds__(kThreads, 1)
    MoeGemmKernel(const __grid_constant__ CUtensorMap weight,
                  const __grid_constant__ CUtensorMap token_rows, const MoeGemmParams p) {
  using C = Config<kGateUp, kScales, kTokens>;
  using State = SharedState<C::kStages, kTokens,
                            kGateUp || kTokens == 128 ? C::kStagingTokens * C::kStagingPitch : 16>;
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t ring = (SharedAddress(shared) + 1023) / 1024 * 1024;
  __shared__ State state;
  const int depth_bytes = (kGateUp ? p.hidden : p.width) * C::kElementBytes;
  const int depth_steps = (depth_bytes + kDepthBytes - 1) / kDepthBytes;

  if (threadIdx.x == 0) {
    PrefetchTensorMap(&weight);
    if constexpr (!C::kGather) PrefetchTensorMap(&token_rows);
    // The copy engine's thread, and who brings tokens or scales.
    constexpr int kArrivals = 1 + (C::kGather ? kGatherThreads : !kGateUp && C::kFp8 ? kWarp : 0);
    for (int s = 0; s < C::kStages; ++s) {
      BarrierInit(SharedAddress(&state.full[s]), kArrivals);
      BarrierInit(SharedAddress(&state.empty[s]), kConsumers / kWarp);
    }
    BarrierInitFence();
  }
  DependencyStart();
  FillTileStarts<C, kTokens>(p, kGateUp ? p.width : p.outputs, state.tile_starts);
  __syncthreads();

  if (threadIdx.x < kProducers) {
    RegistersGive<40>();
    if (threadIdx.x == 0) {
      FeedBoxes<kGateUp, C, State, kTokens>(p, &weight, &token_rows, state, ring, depth_steps);
    } else if (threadIdx.x >= kWarp) {
      if constexpr (C::kGather) {
        GatherTokens<C, State, kTokens>(p, state, ring, depth_steps, threadIdx.x - kWarp);
      } else if constexpr (!kGateUp && C::kFp8) {
        if (threadIdx.x < 2 * kWarp) {
          FeedDepthScales<C, State, kTokens>(p, state, depth_steps, threadIdx.x - kWarp);
        }
      }
    }
  } else {
    RegistersTake<232>();
    const ThreadRows rows(threadIdx.x - kProducers);
    const int tiles = state.tile_starts[p.experts + p.shared_experts];
    int stage = 0;
    uint32_t parity = 0;
    for (int index = blockIdx.x; index < tiles; index += gridDim.x) {
      const Tile tile = TileAt<C, kTokens>(p, state.tile_starts, index);
      const int thread = threadIdx.x - kProducers;
      const Column own = LookUpColumn<kGateUp, kScales>(p, tile, thread);
      Accumulators<kGateUp, kScales, kTokens> accumulators;
      Multiply<kGateUp, kScales, kTokens>(p, state, tile, rows, ring, depth_steps, stage, parity,
                                          accumulators);
      // Between these no thread reads the columns: not of the last tile, not yet of this one.
      NamedBarrier(2, kConsumers);
      if (thread < kTokens) {
        state.column_scales[thread] = own.scale;
        state.column_rows[thread] = own.row;
      }
      NamedBarrier(2, kConsumers);
      if constexpr (kGateUp) {
        StoreHidden<kScales, kTokens>(p, state, tile, rows, accumulators.sum[0],
                                      accumulators.sum[1]);
      } else {
        StoreOutputs<kScales, kTokens>(p, state, tile, rows, accumulators.sum);
      }
    }
  }
}

template <bool kGateUp, MoeScales kScales, int kTokens>
void Launch(cudaStream_t stream, int sm_count, const CUtensorMap& weight, const CUtensorMap& rows,
            const MoeGemmParams& params) {
  using C = Config<kGateUp, kScales, kTokens>;
  constexpr int kBytes = C::kStages * C::kStageBytes + 1024;
  const auto kernel = MoeGemmKernel<kGateUp, kScales, kTokens>;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  LaunchAfter(kernel, dim3(sm_count), kThreads, kBytes, stream, weight, rows, params);
}

template <bool kGateUp>
void LaunchAny(cudaStream_t stream, int sm_count, MoeScales scales, const CUtensorMap& weight,
               const CUtensorMap& rows, const MoeGemmParams& params) {
  const int tile = MoeTokenTile(params, scales);
  const auto run = [&](auto launch16, auto launch64, auto launch128) {
    const auto launch = tile == 16 ? launch16 : tile == 64 ? launch64 : launch128;
    launch(stream, sm_count, weight, rows, params);
  };
  switch (scales) {
    case MoeScales::kNone:
      return run(Launch<kGateUp, MoeScales::kNone, 16>, Launch<kGateUp, MoeScales::kNone, 64>,
                 Launch<kGateUp, MoeScales::kNone, 128>);
    case MoeScales::kChannel:
      return run(Launch<kGateUp, MoeScales::kChannel, 16>, Launch<kGateUp, MoeScales::kChannel, 64>,
                 Launch<kGateUp, MoeScales::kChannel, 128>);
    case MoeScales::kBlock:
      return run(Launch<kGateUp, MoeScales::kBlock, 16>, Launch<kGateUp, MoeScales::kBlock, 64>,
                 Launch<kGateUp, MoeScales::kBlock, 64>);
  }
}

}  // namespace

int MoeTokenTile(const MoeGemmParams& params, MoeScales scales) {
  // Twice the mean of an expert, and no more than four tiles of the shared one, within reason:
  // where reading weights is the limit, a wide tile costs nothing.
  const int mean = params.tokens * params.experts_per_token / std::max(1, params.experts);
  const int wanted = std::max(2 * mean, params.tokens / 4);
  if (wanted <= 16) return 16;
  return wanted <= 64 || scales == MoeScales::kBlock ? 64 : 128;
}

void RunMoeGateUp(cudaStream_t stream, int sm_count, MoeScales scales, const CUtensorMap& weight,
                  const CUtensorMap& rows, const MoeGemmParams& params) {
  LaunchAny<true>(stream, sm_count, scales, weight, rows, params);
}

void RunMoeDown(cudaStream_t stream, int sm_count, MoeScales scales, const CUtensorMap& weight,
                const CUtensorMap& h, const MoeGemmParams& params) {
  LaunchAny<false>(stream, sm_count, scales, weight, h, params);
}

}  // namespace glm::cuda
