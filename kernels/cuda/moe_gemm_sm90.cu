// Ragged grouped GEMMs over one weight tensor, for decode and prefill alike.
//
// A tile is rows of one expert's weights times a tile of its tokens. Weights are wgmma's M = 64
// side and tokens its N side, so that one token costs as little as the tile allows: decode is bound
// by reading the weights. Tiles are dealt to the blocks in turn; a block finds a tile's expert in a
// table that it computes from expert_starts, so nothing is padded, no list is built and the host
// knows no count.
//
// One thread of the producer warpgroup feeds weights through the copy engine into a ring of stages,
// two boxes of 128 rows and 128 bytes of k each: a gate and an up box, or of down the next slice
// of k of the same rows (wide tiles: the next rows). A warp feeds the tokens. For tiles of 16 it
// fetches each token's row by itself, by a box of one row; 96 threads that gathered them with
// cp.async, and said so to the tensor cores, took part of what the weights could have. For wider
// tiles tokens are first copied into the order of their places. Two consumer warpgroups multiply.
// fp8 sums are taken out of the tensor cores every 128 values of k, which is also where the scales
// of h and of block-scaled weights apply.
//
// Up to tiles of 64 tokens one launch computes both GEMMs: a block goes on to its tiles of down
// when it has no more of gate+up, and down's weights are on their way while the last of h is still
// computed. Only who feeds tokens waits for an expert's h, of which the consumers count the parts
// in `progress`. Experts come in the same order in both GEMMs, so there is rarely anything to wait
// for. All blocks are resident, one a multiprocessor, and have gate+up before down: someone can
// always go on. (Where ranks share a GPU each GEMM has its launch.) By itself this gave next to
// nothing (H200, fp8, Flash: 64 tokens 160 us before and after, 256 tokens 181 and 177). Then, with
// 64 tokens, it took 157 us without tokens, 152 also without a tile's end, 150 also without
// products, which is what reading the weights takes. So consumers take tiles of 16 in turn, both
// halves of a box each: one multiplies while the other looks up, activates and stores. With that
// and tokens by rows: 16 tokens 103 us, 107 before; 64 tokens 155 and 160; 64 of an eighth of the
// 355B, whose tiles of down are one stage deep, 151 and 162. Wide tiles, of prefill, have a launch
// for each GEMM, as have parts of y that ranks sum meanwhile.
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
#include "kernels/cuda/moe_feeds.cuh"
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

/// fresh, the product of a slice of k, is added to sum, scaled. depth_scales: down's, of h. Block
/// scales of the weight: one a box row for gate+up (its up rows may straddle blocks), one a box for
/// down.
template <bool kGateUp, MoeScales kScales, int kColumns>
__device__ __forceinline__ void Promote(const MoeGemmParams& p, const Tile& tile,
                                        const ThreadRows& rows, int box, int slice, int slices,
                                        const float* depth_scales,
                                        const float (&fresh)[kColumns / 2],
                                        float (&sum)[kColumns / 2]) {
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
          scales[(static_cast<int64_t>(tile.expert) * row_blocks + row / kGroup) * slices + slice];
    }
  }
  float column_scale[4] = {1, 1, 1, 1};  // of j and j + 1, j even
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
    if constexpr (!kGateUp) {
      if (j % 2 == 0) {
        const float4 four =
            *reinterpret_cast<const float4*>(depth_scales + DepthScalePlace(rows.Column(j)));
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
              p.in_scales[static_cast<int64_t>(TokenAt(p, tile.first + column)) * slices + slice];
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

/// Multiplies kColumns tokens of one tile; returns with its sums in registers.
template <bool kGateUp, MoeScales kScales, int kTokens, int kColumns, typename State, int kBoxes,
          int kHalves>
__device__ __forceinline__ void Multiply(const MoeGemmParams& p, State& state, const Tile& tile,
                                         const ThreadRows& rows, uint32_t ring, RingPlace& place,
                                         float (&sum)[kBoxes][kHalves][kColumns / 2]) {
  using C = Config<kGateUp, kScales, kTokens>;
  const int slices = DepthSlices<C>(p);
  const int steps = DepthSteps<C>(p);
#pragma unroll
  for (int box = 0; box < kBoxes; ++box) {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int i = 0; i < kColumns / 2; ++i) sum[box][half][i] = 0;
    }
  }
  const auto before = [&] { return place.stage == 0 ? C::kStages - 1 : place.stage - 1; };
  for (int step = 0; step < steps; ++step) {
    BarrierWait(SharedAddress(&state.full[place.stage]), place.parity);
    const uint32_t base = ring + place.stage * C::kStageBytes;
    // sum (+)= the product of one of the stage's boxes, 64 rows of it.
    const auto multiply = [&](int part, int half, float(&d)[kColumns / 2]) {
      const uint32_t weights =
          WgmmaDescriptor(base + part * kBoxBytes + (rows.half + half) * kGroupRows * kDepthBytes);
      const uint32_t tokens =
          WgmmaDescriptor(base + kStageBoxes * kBoxBytes + part % C::kSlices * C::kTokenBytes);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        Wgmma<C::kFp8, kColumns>::Run(d, weights + WgmmaBytes(32 * k), tokens + WgmmaBytes(32 * k),
                                      !C::kFp8 || k > 0);
      }
    };
    if constexpr (C::kFp8) {
#pragma unroll
      for (int part = 0; part < kStageBoxes; ++part) {
        const int box = part / C::kSlices;
        const int slice = step * C::kSlices + part % C::kSlices;
        if (C::kSlices > 1 && slice >= slices) break;  // the last stage may be half empty
        float fresh[kHalves][kColumns / 2];
        WgmmaFence();
#pragma unroll
        for (int half = 0; half < kHalves; ++half) multiply(part, half, fresh[half]);
        WgmmaCommit();
        WgmmaWait<0>();
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
          Promote<kGateUp, kScales, kColumns>(p, tile, rows.Further(half), box, slice, slices,
                                              state.depth_scales[place.stage][part % C::kSlices],
                                              fresh[half], sum[box][half]);
        }
      }
    } else {
      WgmmaFence();
#pragma unroll
      for (int part = 0; part < kStageBoxes; ++part) {
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
          multiply(part, half, sum[part / C::kSlices][half]);
        }
      }
      WgmmaCommit();
      WgmmaWait<C::kOverlap ? 1 : 0>();
    }
    __syncwarp();
    if (!C::kOverlap || step > 0) {
      ReleaseStage(state, rows, C::kOverlap ? before() : place.stage);
    }
    place.Advance<C::kStages>();
  }
  if constexpr (C::kOverlap) {
    WgmmaWait<0>();
    ReleaseStage(state, rows, before());
  }
}

/// Where a warpgroup stands: its place in the ring, and how many tiles of the block came before.
struct Progress {
  RingPlace place;
  uint32_t turn = 0;
};

/// One tile of at most kColumns tokens, from the products to global memory.
template <bool kGateUp, MoeScales kScales, int kTokens, int kColumns, typename State>
__device__ __forceinline__ void RunTile(const MoeGemmParams& p, State& state, const Tile& tile,
                                        const ThreadRows& rows, uint32_t ring, Progress& progress) {
  using C = Config<kGateUp, kScales, kTokens>;
  const Column own = LookUpColumn<kGateUp, kScales, kTokens>(p, tile, rows.thread);
  RowScales row_scales[C::kHalves];
#pragma unroll
  for (int half = 0; half < C::kHalves; ++half) {
    row_scales[half] = LookUpRows<kGateUp, kScales, C::kBoxes>(p, tile, rows.Further(half));
  }
  float sum[C::kBoxes][C::kHalves][kColumns / 2];
  // Parities tell the last round of the ring from this one, but not from the one before: the other
  // warpgroup's stages must have been full.
  const uint32_t turn = SharedAddress(&state.turn);
  if constexpr (C::kAlternate) BarrierWait(turn, (progress.turn + 1) % 2);
  Multiply<kGateUp, kScales, kTokens, kColumns>(p, state, tile, rows, ring, progress.place, sum);
  if constexpr (C::kAlternate) {
    if (rows.lane == 0) BarrierArrive(turn);
  }
  // Between these no thread reads the columns: not of the last tile, not yet of this one.
  GroupBarrier(rows);
  if (rows.thread < kColumns) {
    state.column_scales[rows.group][rows.thread] = own.scale;
    state.column_rows[rows.group][rows.thread] = own.row;
  }
  GroupBarrier(rows);
  if constexpr (kGateUp) {
    StoreHidden<kScales, kTokens, kColumns>(p, state, tile, rows, row_scales, sum[0], sum[1]);
    // The warpgroup's rows are stored, which its last barrier has told this thread.
    if (p.phases == MoePhases::kBoth && rows.thread == 0) {
      AddRelease(&p.progress[1 + tile.expert], 1);
    }
  } else {
#pragma unroll
    for (int box = 0; box < C::kBoxes; ++box) {
#pragma unroll
      for (int half = 0; half < C::kHalves; ++half) {
        StoreOutputs<kScales, kTokens, kColumns>(p, state, tile, rows.Further(half),
                                                 row_scales[half], box, sum[box][half]);
      }
    }
  }
}

/// The tiles of one GEMM, as a consumer warpgroup computes them.
template <bool kGateUp, MoeScales kScales, int kTokens, typename State>
__device__ __forceinline__ void RunTiles(const MoeGemmParams& p, State& state,
                                         const ThreadRows& rows, uint32_t ring,
                                         Progress& progress) {
  using C = Config<kGateUp, kScales, kTokens>;
  ForEachTile<kScales, kTokens, kGateUp>(p, state, [&](const Tile& tile) {
    if (C::kAlternate && progress.turn % kGroups != static_cast<uint32_t>(rows.group)) {
      progress.place.Skip<C::kStages>(DepthSteps<C>(p));
    } else if (C::kNarrow && tile.count <= C::kTokenBox) {
      RunTile<kGateUp, kScales, kTokens, C::kTokenBox>(p, state, tile, rows, ring, progress);
    } else {
      RunTile<kGateUp, kScales, kTokens, kTokens>(p, state, tile, rows, ring, progress);
    }
    ++progress.turn;
  });
}

/// The last warpgroup of all blocks to be done leaves the words of progress zero. A warpgroup is
/// done when it has multiplied its last tile: by then its block's producers await no h any more.
__device__ __forceinline__ void ClearProgress(const MoeGemmParams& p, const ThreadRows& rows) {
  if (rows.thread >= kWarp) return;
  int before = 0;
  if (rows.lane == 0) before = AddAcquireRelease(&p.progress[0], 1);
  if (__shfl_sync(kAllLanes, before, 0) != kGroups * static_cast<int>(gridDim.x) - 1) return;
  const int words = static_cast<int>(MoeProgressWords(p.experts + p.shared_experts));
  for (int i = rows.lane; i < words; i += kWarp) p.progress[i] = 0;
}

/// What the warps of the producer warpgroup do.
template <MoeScales kScales, int kTokens, typename State>
__device__ __forceinline__ void Produce(const MoeGemmParams& p, const MoeGemmMaps& maps,
                                        State& state, uint32_t ring) {
  const int thread = static_cast<int>(threadIdx.x);
  RingPlace place = {0, 1};
  if (thread == 0) {
    FeedWeights<kScales, kTokens, true>(p, &maps.gate_up, state, ring, place);
    FeedWeights<kScales, kTokens, false>(p, &maps.down, state, ring, place);
  } else if (thread >= kWarp && thread < 2 * kWarp) {
    FeedTokens<kScales, kTokens, true>(p, &maps.rows, state, ring, thread - kWarp, place);
    FeedTokens<kScales, kTokens, false>(p, &maps.h, state, ring, thread - kWarp, place);
  }
}

template <MoeScales kScales, int kTokens>
__global__ void __launch_bounds__(kThreads, 1)
    MoeGemmKernel(const __grid_constant__ MoeGemmMaps maps,
                  const __grid_constant__ MoeGemmParams p) {
  using State = SharedState<kScales, kTokens>;
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t ring = (SharedAddress(shared) + 1023) / 1024 * 1024;
  __shared__ State state;

  if (threadIdx.x == 0) {
    PrefetchTensorMap(&maps.gate_up);
    PrefetchTensorMap(&maps.down);
    // The thread of the weights, and who brings scales.
    constexpr int kArrivals = 1 + (kScales == MoeScales::kNone ? 0 : kWarp);
    for (int s = 0; s < State::kStages; ++s) {
      BarrierInit(SharedAddress(&state.full[s]), kArrivals);
      BarrierInit(SharedAddress(&state.empty[s]), kConsumers / kWarp / Ring<kTokens>::kHalves);
    }
    BarrierInit(SharedAddress(&state.turn), kGroupThreads / kWarp);
    BarrierInitFence();
  }
  DependencyStart();
  FillExperts<kTokens>(p, state);

  if (threadIdx.x < kProducers) {
    RegistersGive<40>();
    Produce<kScales, kTokens>(p, maps, state, ring);
  } else {
    RegistersTake<232>();
    const ThreadRows rows(threadIdx.x - kProducers, Ring<kTokens>::kAlternate);
    Progress progress;
    RunTiles<true, kScales, kTokens>(p, state, rows, ring, progress);
    RunTiles<false, kScales, kTokens>(p, state, rows, ring, progress);
    if (p.phases == MoePhases::kBoth) ClearProgress(p, rows);
  }
}

template <MoeScales kScales, int kTokens>
void Launch(cudaStream_t stream, int sm_count, const MoeGemmMaps& maps,
            const MoeGemmParams& params) {
  constexpr int kBytes = Ring<kTokens>::kStages * Ring<kTokens>::kStageBytes + 1024;
  const auto kernel = MoeGemmKernel<kScales, kTokens>;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  LaunchAfter(kernel, dim3(sm_count), kThreads, kBytes, stream, maps, params);
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

void RunMoeGemms(cudaStream_t stream, int sm_count, MoeScales scales, const MoeGemmMaps& maps,
                 const MoeGemmParams& params) {
  const int tile = MoeTokenTile(params, scales);
  const auto run = [&](auto launch16, auto launch64, auto launch128) {
    const auto launch = tile == 16 ? launch16 : tile == 64 ? launch64 : launch128;
    launch(stream, sm_count, maps, params);
  };
  switch (scales) {
    case MoeScales::kNone:
      return run(Launch<MoeScales::kNone, 16>, Launch<MoeScales::kNone, 64>,
                 Launch<MoeScales::kNone, 128>);
    case MoeScales::kChannel:
      return run(Launch<MoeScales::kChannel, 16>, Launch<MoeScales::kChannel, 64>,
                 Launch<MoeScales::kChannel, 128>);
    case MoeScales::kBlock:
      return run(Launch<MoeScales::kBlock, 16>, Launch<MoeScales::kBlock, 64>,
                 Launch<MoeScales::kBlock, 64>);
  }
}

}  // namespace glm::cuda
