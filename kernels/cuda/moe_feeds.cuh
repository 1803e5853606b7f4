// How the operands of the grouped GEMMs get to shared memory: what the producer warps do.
//
// Who calls: moe_gemm_sm90.cu, whose head tells the whole story.
//
// Weights never wait for tokens: who feeds them runs ahead as far as the ring allows, also into
// down, whose h other blocks may not have finished yet. Who feeds the tokens waits for h.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernels/cuda/moe_gemm.h"
#include "kernels/cuda/moe_tiles.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/warp.cuh"

namespace glm::cuda {

/// Bytes of tokens that come through the copy engine for a stage of the tile.
template <typename C, int kTokens>
__device__ __forceinline__ int TokenBytes(const Tile& tile) {
  if (C::kGather) return tile.count * kDepthBytes;
  return C::kNarrow && tile.count <= C::kTokenBox ? C::kTokenBox * kDepthBytes
                                                  : C::kSlices * C::kTokenBytes;
}

/// Feeds weights through the copy engine. One thread.
template <MoeScales kScales, int kTokens, bool kGateUp, typename State>
__device__ void FeedWeights(const MoeGemmParams& p, const CUtensorMap* weight, State& state,
                            uint32_t ring, RingPlace& place) {
  using C = Config<kGateUp, kScales, kTokens>;
  const int steps = DepthSteps<C>(p);
  ForEachTile<kScales, kTokens, kGateUp>(p, state, [&](const Tile& tile) {
    // The tokens' bytes are expected here too: they may come before this thread's word, but the
    // stage is not full without it.
    const uint32_t bytes = kStageBoxes * kBoxBytes + TokenBytes<C, kTokens>(tile);
    for (int step = 0; step < steps; ++step) {
      BarrierWait(SharedAddress(&state.empty[place.stage]), place.parity);
      const uint32_t full = SharedAddress(&state.full[place.stage]);
      const uint32_t target = ring + place.stage * C::kStageBytes;
      BarrierArriveExpect(full, bytes);
#pragma unroll
      for (int part = 0; part < kStageBoxes; ++part) {
        const int box = part / C::kSlices;
        const int slice = step * C::kSlices + part % C::kSlices;
        const int row = kGateUp ? (tile.expert * 2 + box) * p.width + tile.row
                                : tile.expert * p.hidden + tile.row + box * kBoxRows;
        TensorLoad2(target + part * kBoxBytes, weight, full, slice * C::kDepth, row);
      }
      place.template Advance<C::kStages>();
    }
  });
}

/// Whether all of the expert's h is there.
template <MoeScales kScales, int kTokens, typename State>
__device__ __forceinline__ bool HasHidden(const MoeGemmParams& p, const State& state, int expert) {
  const int token_tiles = state.token_tiles[expert + 1] - state.token_tiles[expert];
  const int wanted =
      kGroups / Ring<kTokens>::kHalves * token_tiles * RowTiles<Config<true, kScales, kTokens>>(p);
  return LoadAcquire(&p.progress[1 + expert]) >= wanted;
}

/// One of h's scales to its place in a stage of down.
template <typename C, typename State>
__device__ __forceinline__ void CopyDepthScale(const MoeGemmParams& p, State& state, int stage,
                                               int step, int part, int place, int column) {
  const int slice = min(step * C::kSlices + part, DepthSlices<C>(p) - 1);
  CopyAsync4(SharedAddress(&state.depth_scales[stage][part][DepthScalePlace(column)]),
             p.h_scales + static_cast<int64_t>(slice) * p.pair_rows +
                 min(place + column, p.pair_rows - 1));
}

/// The tokens of a stage. One warp; `token`: of the tile's row that the lane has, if it has one.
template <typename C, int kTokens>
__device__ __forceinline__ void LoadTokens(const CUtensorMap* rows, const Tile& tile, int step,
                                           int token, uint32_t target, uint32_t full, int lane) {
  if constexpr (C::kGather) {
    // A box a row: the engine's pattern follows from where a row lies, not from where its box does.
    if (lane < tile.count) {
      TensorLoad2(target + lane * kDepthBytes, rows, full, step * C::kDepth, token);
    }
  } else {
    static_assert(C::kSlices == 1 || C::kTokenBox == kTokens);
    const int boxes = TokenBytes<C, kTokens>(tile) / (C::kTokenBox * kDepthBytes);
    if (lane < boxes) {
      const int slice = step * C::kSlices + (C::kSlices == 1 ? 0 : lane);
      const int row = tile.first + (C::kSlices == 1 ? lane * C::kTokenBox : 0);
      TensorLoad2(target + lane * C::kTokenBox * kDepthBytes, rows, full, slice * C::kDepth, row);
    }
  }
}

/// Feeds tokens, or rows of h with their scales. One warp.
template <MoeScales kScales, int kTokens, bool kGateUp, typename State>
__device__ void FeedTokens(const MoeGemmParams& p, const CUtensorMap* rows, State& state,
                           uint32_t ring, int lane, RingPlace& place) {
  using C = Config<kGateUp, kScales, kTokens>;
  const int steps = DepthSteps<C>(p);
  ForEachTile<kScales, kTokens, kGateUp>(p, state, [&](const Tile& tile) {
    if (!kGateUp && p.phases == MoePhases::kBoth) {
      while (!HasHidden<kScales, kTokens>(p, state, tile.expert)) __nanosleep(64);
      AsyncProxyFenceGlobal();
      __syncwarp();
    }
    const int token = C::kGather && lane < tile.count ? TokenAt(p, tile.first + lane) : 0;
    for (int step = 0; step < steps; ++step) {
      BarrierWait(SharedAddress(&state.empty[place.stage]), place.parity);
      const uint32_t full = SharedAddress(&state.full[place.stage]);
      const uint32_t target = ring + place.stage * C::kStageBytes + kStageBoxes * kBoxBytes;
      LoadTokens<C, kTokens>(rows, tile, step, token, target, full, lane);
      if constexpr (C::kFp8) {
        if constexpr (kGateUp) {
          BarrierArrive(full);
        } else {
          for (int i = lane; i < C::kSlices * kTokens; i += kWarp) {
            CopyDepthScale<C>(p, state, place.stage, step, i / kTokens, tile.first, i % kTokens);
          }
          CopyAsyncArrive(full);
        }
      }
      place.template Advance<C::kStages>();
    }
  });
}

}  // namespace glm::cuda
