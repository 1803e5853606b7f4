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
#include "kernels/cuda/moe_epilogue.cuh"
#include "kernels/cuda/moe_gemm.h"
#include "kernels/cuda/moe_tiles.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/warp.cuh"

namespace glm::cuda {
namespace {

/// Tells who fill a stage that this warp has read it.
template <typename State>
__device__ __forceinline__ void ReleaseStage(State& state, const ThreadRows& rows, int stage) {
  if (rows.lane == 0) BarrierArrive(SharedAddress(&state.empty[stage]));
}

/// fresh, scaled, is added to sum. Block scales of the weight: one a box row for gate+up (its up
/// rows may straddle blocks), one a box for down.
template <bool kGateUp, MoeScales kScales, int kColumns, typename State>
__device__ __forceinline__ void Promote(const MoeGemmParams& p, const State& state,
                                        const Tile& tile, const ThreadRows& rows, int box, int step,
                                        int stage, const float (&fresh)[kColumns / 2],
                                        float (&sum)[kColumns / 2], int depth_steps) {
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
  float column_scale[4] = {1, 1, 1, 1};  // of j and j + 1, j even
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
    if constexpr (!kGateUp) {
      if (j % 2 == 0) {
        const float4 four = *reinterpret_cast<const float4*>(
            &state.depth_scales[stage][DepthScalePlace(rows.Column(j))]);
        column_scale[0] = four.x;
        column_scale[1] = four.y;
        column_scale[2] = four.z;
        column_scale[3] = four.w;
      }
    } else if constexpr (kScales == MoeScales::kBlock) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int column = rows.Column(j) + c;
        if (column < tile.count) {
          column_scale[j % 2 * 2 + c] =
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
        sum[4 * j + i] += fresh[4 * j + i] * (row_scale[i / 2] * column_scale[j % 2 * 2 + i % 2]);
      }
    }
  }
}

/// The next stage that the consumers read.
struct RingPlace {
  int stage = 0;
  uint32_t parity = 0;
};

/// Multiplies kColumns tokens of one tile; returns with its sums in registers.
template <bool kGateUp, MoeScales kScales, int kTokens, int kColumns, typename State, int kBoxes>
__device__ __forceinline__ void Multiply(const MoeGemmParams& p, State& state, const Tile& tile,
                                         const ThreadRows& rows, uint32_t ring, int depth_steps,
                                         RingPlace& place, float (&sum)[kBoxes][kColumns / 2]) {
  using C = Config<kGateUp, kScales, kTokens>;
  const uint32_t rows_offset = rows.group * kGroupRows * kDepthBytes;
#pragma unroll
  for (int box = 0; box < kBoxes; ++box) {
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i) sum[box][i] = 0;
  }
  const auto before = [&] { return place.stage == 0 ? C::kStages - 1 : place.stage - 1; };
  for (int step = 0; step < depth_steps; ++step) {
    BarrierWait(SharedAddress(&state.full[place.stage]), place.parity);
    const uint32_t base = ring + place.stage * C::kStageBytes;
    const uint32_t tokens = WgmmaDescriptor(base + kBoxes * kBoxBytes);
    if constexpr (C::kFp8) {
#pragma unroll
      for (int box = 0; box < kBoxes; ++box) {
        float fresh[kColumns / 2];
        const uint32_t weights = WgmmaDescriptor(base + box * kBoxBytes + rows_offset);
        WgmmaFence();
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          Wgmma<true, kColumns>::Run(fresh, weights + WgmmaBytes(32 * k),
                                     tokens + WgmmaBytes(32 * k), k > 0);
        }
        WgmmaCommit();
        WgmmaWait<0>();
        Promote<kGateUp, kScales, kColumns>(p, state, tile, rows, box, step, place.stage, fresh,
                                            sum[box], depth_steps);
      }
    } else {
      WgmmaFence();
#pragma unroll
      for (int box = 0; box < kBoxes; ++box) {
        const uint32_t weights = WgmmaDescriptor(base + box * kBoxBytes + rows_offset);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          Wgmma<false, kColumns>::Run(sum[box], weights + WgmmaBytes(32 * k),
                                      tokens + WgmmaBytes(32 * k), 1);
        }
      }
      WgmmaCommit();
      WgmmaWait<C::kOverlap ? 1 : 0>();
    }
    __syncwarp();
    if (!C::kOverlap || step > 0) {
      ReleaseStage(state, rows, C::kOverlap ? before() : place.stage);
    }
    if (++place.stage == C::kStages) {
      place.stage = 0;
      place.parity ^= 1;
    }
  }
  if constexpr (C::kOverlap) {
    WgmmaWait<0>();
    ReleaseStage(state, rows, before());
  }
}

/// One tile of at most kColumns tokens, from the products to global memory.
template <bool kGateUp, MoeScales kScales, int kTokens, int kColumns, typename State>
__device__ __forceinline__ void RunTile(const MoeGemmParams& p, State& state, const Tile& tile,
                                        const ThreadRows& rows, uint32_t ring, int depth_steps,
                                        RingPlace& place) {
  using C = Config<kGateUp, kScales, kTokens>;
  const Column own = LookUpColumn<kGateUp, kScales, kTokens>(p, tile, rows.thread);
  const RowScales row_scales = LookUpRows<kGateUp, kScales, C::kBoxes>(p, tile, rows);
  float sum[C::kBoxes][kColumns / 2];
  Multiply<kGateUp, kScales, kTokens, kColumns>(p, state, tile, rows, ring, depth_steps, place,
                                                sum);
  // Between these no thread reads the columns: not of the last tile, not yet of this one.
  GroupBarrier(rows);
  if (rows.thread < kColumns) {
    state.column_scales[rows.group][rows.thread] = own.scale;
    state.column_rows[rows.group][rows.thread] = own.row;
  }
  GroupBarrier(rows);
  if constexpr (kGateUp) {
    StoreHidden<kScales, kTokens, kColumns>(p, state, tile, rows, row_scales, sum[0], sum[1]);
  } else {
    StoreOutputs<kScales, kTokens, kColumns>(p, state, tile, rows, row_scales, sum);
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
  FillExperts<C, kTokens>(p, state);
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
    RingPlace place;
    ForEachTile<C, kTokens>(p, state, [&](const Tile& tile) {
      if constexpr (C::kNarrow) {
        if (tile.count <= C::kTokenBox) {
          RunTile<kGateUp, kScales, kTokens, C::kTokenBox>(p, state, tile, rows, ring, depth_steps,
                                                           place);
          return;
        }
      }
      RunTile<kGateUp, kScales, kTokens, kTokens>(p, state, tile, rows, ring, depth_steps, place);
    });
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
