// The tiles of the grouped GEMMs, who computes which, and how their operands get to shared memory.
//
// Who calls: moe_gemm_sm90.cu, whose head tells the whole story.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernels/cuda/moe_gemm.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/warp.cuh"

namespace glm::cuda {

constexpr int kProducers = 128;
constexpr int kConsumers = 256;
constexpr int kGroupThreads = 128;  // of a consumer warpgroup
constexpr int kGroupRows = 64;      // of a box that a warpgroup multiplies
constexpr int kThreads = kProducers + kConsumers;
constexpr int kGatherThreads = 96;  // warps 1..3 of the producers
constexpr int kDepthBytes = 128;    // of k a stage
constexpr int kBoxRows = 128;
constexpr int kBoxBytes = kBoxRows * kDepthBytes;
constexpr int kGroup = 128;  // columns that share a scale
constexpr int kExpertsMax = 257;
constexpr int kGatherLag = 2;  // stages between the start of a gather and the word that it is there

/// Hardware barriers of a block, of which 0 is __syncthreads'. Those with two take one of them for
/// each consumer warpgroup.
enum NamedBarrierIndex : int {
  kBarrierGather = 1,
  kBarrierConsumers = 2,
  kBarrierGroup = 3,
};

template <bool kGateUp, MoeScales kScales, int kTokens>
struct Config {
  static constexpr bool kOfGateUp = kGateUp;
  static constexpr bool kFp8 = kScales != MoeScales::kNone;
  static constexpr int kTokenBox = MoeTokenBox(kTokens);
  // Whether a tile of at most kTokenBox tokens is multiplied at that width.
  static constexpr bool kNarrow = kFp8 && kTokenBox < kTokens;
  static constexpr bool kGather = kGateUp && kTokens == 16;
  static constexpr int kBoxes = kGateUp || kTokens == 128 ? 2 : 1;
  static constexpr int kTileRows = kGateUp ? kBoxRows : kBoxes * kBoxRows;
  static constexpr int kTokenBytes = kTokens * kDepthBytes;
  static constexpr int kStageBytes = kBoxes * kBoxBytes + kTokenBytes;
  static constexpr int kStages = kBoxes == 1 ? 8 : kTokens == 16 ? 6 : kTokens == 64 ? 5 : 4;
  // bf16 products of a stage run on while the next stage is awaited. (For down's wide tiles ptxas
  // would serialise them.)
  static constexpr bool kOverlap = !kFp8 && (kGateUp || kTokens != 128);
  static constexpr int kElementBytes = kFp8 ? 1 : 2;
  static constexpr int kOutBytes = kGateUp && kFp8 ? 1 : 2;  // of a staged value
  static constexpr int kStagingPitch = kGroupRows * kOutBytes + 16;
  static constexpr int kStagingTokens = kTokens / kOutBytes;  // that are staged at a time
  static constexpr int kDepth = kDepthBytes / kElementBytes;
};

template <int kStages, int kTokens, int kStagingBytes>
struct SharedState {
  alignas(16) uint8_t staging[2][kStagingBytes];  // of each consumer warpgroup
  alignas(8) uint64_t full[kStages];
  uint64_t empty[kStages];
  int32_t tile_starts[kExpertsMax + 1];  // first tile of each expert
  int32_t place_starts[kExpertsMax];     // first place in h of each expert
  int32_t place_counts[kExpertsMax];
  int32_t gather_tokens[kTokens];  // token of each row of the tile being gathered
  // down: scales of h of a stage, in the order of DepthScalePlace()
  alignas(16) float depth_scales[kStages][kTokens];
  float column_largest[kConsumers / kWarp][kTokens];
  float column_scales[2][kTokens];  // gate+up: of the token, then 1 / that of its h
  int32_t column_rows[2][kTokens];  // down: row of y
};

/// Where a column's scale stands, so that a thread gets those of accumulators 4j, 4j + 1, 4j + 4
/// and 4j + 5, j even, as one vector.
__device__ __forceinline__ int DepthScalePlace(int column) {
  const int j = column / 8;
  return j / 2 * 16 + column % 8 / 2 * 4 + j % 2 * 2 + column % 2;
}

/// One tile: an expert, weight rows from `row` on, and `count` tokens from place `first` of
/// h on.
struct Tile {
  int expert;
  int row;
  int first;
  int count;
};

/// Where an expert's tokens stand in h, and how many there are.
__device__ __forceinline__ int2 ExpertRange(const MoeGemmParams& p, int expert) {
  if (expert >= p.experts) return int2{p.tokens * p.experts_per_token, p.counts[0]};
  const int first = p.expert_starts[expert];
  return int2{first, p.expert_starts[expert + 1] - first};
}

/// Fills the tables of experts in shared memory.
template <typename C, int kTokens, typename State>
__device__ void FillExperts(const MoeGemmParams& p, State& state) {
  // The first warp scans; there are at most 257 experts.
  if (threadIdx.x >= kWarp) return;
  const int experts = p.experts + p.shared_experts;
  const int row_tiles = ((C::kOfGateUp ? p.width : p.outputs) + C::kTileRows - 1) / C::kTileRows;
  const int lane = threadIdx.x;
  int total = 0;
  for (int begin = 0; begin < experts; begin += kWarp) {
    const int expert = begin + lane;
    int tiles = 0;
    if (expert < experts) {
      const int2 range = ExpertRange(p, expert);
      state.place_starts[expert] = range.x;
      state.place_counts[expert] = range.y;
      tiles = (range.y + kTokens - 1) / kTokens * row_tiles;
    }
    int inclusive = tiles;
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const int other = __shfl_up_sync(kAllLanes, inclusive, offset);
      if (lane >= offset) inclusive += other;
    }
    if (expert < experts) state.tile_starts[expert] = total + inclusive - tiles;
    total += __shfl_sync(kAllLanes, inclusive, kWarp - 1);
  }
  if (lane == 0) state.tile_starts[experts] = total;
}

/// Calls visit(tile) for each tile of this block. The tiles of the same weights are neighbours, so
/// that blocks read them together: apart, they came twice from memory (Air, 2048 tokens: 1430 us
/// instead of 1180, H100).
template <typename C, int kTokens, typename State, typename Visit>
__device__ __forceinline__ void ForEachTile(const MoeGemmParams& p, const State& state,
                                            const Visit& visit) {
  const int tiles = state.tile_starts[p.experts + p.shared_experts];
  int expert = 0;
  for (int index = blockIdx.x; index < tiles; index += gridDim.x) {
    while (state.tile_starts[expert + 1] <= index) ++expert;
    const unsigned within = index - state.tile_starts[expert];
    const unsigned token_tiles = (state.place_counts[expert] + kTokens - 1) / kTokens;
    const int begin = static_cast<int>(within % token_tiles) * kTokens;
    visit(Tile{expert, p.first_output + static_cast<int>(within / token_tiles) * C::kTileRows,
               state.place_starts[expert] + begin,
               min(kTokens, state.place_counts[expert] - begin)});
  }
}

/// Token of place `place` of h.
__device__ __forceinline__ int TokenAt(const MoeGemmParams& p, int place) {
  const int routed = p.tokens * p.experts_per_token;
  return place < routed ? p.pair_order[place] / p.experts_per_token : place - routed;
}

/// Feeds weights, and rows of `rows` unless they are gathered, through the copy engine. One thread.
template <bool kGateUp, typename C, typename State, int kTokens>
__device__ void FeedBoxes(const MoeGemmParams& p, const CUtensorMap* weight,
                          const CUtensorMap* rows, State& state, uint32_t ring, int depth_steps) {
  int stage = 0;
  uint32_t parity = 1;
  ForEachTile<C, kTokens>(p, state, [&](const Tile& tile) {
    const int token_boxes = C::kGather                                 ? 0
                            : C::kNarrow && tile.count <= C::kTokenBox ? 1
                                                                       : kTokens / C::kTokenBox;
    for (int step = 0; step < depth_steps; ++step) {
      BarrierWait(SharedAddress(&state.empty[stage]), parity);
      const uint32_t full = SharedAddress(&state.full[stage]);
      const uint32_t target = ring + stage * C::kStageBytes;
      BarrierArriveExpect(full, C::kBoxes * kBoxBytes + token_boxes * C::kTokenBox * kDepthBytes);
#pragma unroll
      for (int box = 0; box < C::kBoxes; ++box) {
        const int row = kGateUp ? (tile.expert * 2 + box) * p.width + tile.row
                                : tile.expert * p.hidden + tile.row + box * kBoxRows;
        TensorLoad2(target + box * kBoxBytes, weight, full, step * C::kDepth, row);
      }
      for (int box = 0; box < token_boxes; ++box) {
        TensorLoad2(target + C::kBoxes * kBoxBytes + box * C::kTokenBox * kDepthBytes, rows, full,
                    step * C::kDepth, tile.first + box * C::kTokenBox);
      }
      if (++stage == C::kStages) {
        stage = 0;
        parity ^= 1;
      }
    }
  });
}

/// Gathers the tokens of gate+up. kGatherThreads threads, `thread` among them.
template <typename C, typename State, int kTokens>
__device__ void GatherTokens(const MoeGemmParams& p, State& state, uint32_t ring, int depth_steps,
                             int thread) {
  const int row_bytes = p.hidden * C::kElementBytes;
  int stage = 0;
  int signal_stage = 0;
  uint32_t parity = 1;
  int started = 0;
  const auto signal = [&] {
    AsyncProxyFence();
    BarrierArrive(SharedAddress(&state.full[signal_stage]));
    signal_stage = signal_stage + 1 == C::kStages ? 0 : signal_stage + 1;
  };
  ForEachTile<C, kTokens>(p, state, [&](const Tile& tile) {
    NamedBarrier(kBarrierGather, kGatherThreads);
    for (int i = thread; i < kTokens; i += kGatherThreads) {
      state.gather_tokens[i] = i < tile.count ? TokenAt(p, tile.first + i) : -1;
    }
    NamedBarrier(kBarrierGather, kGatherThreads);
    for (int step = 0; step < depth_steps; ++step) {
      BarrierWait(SharedAddress(&state.empty[stage]), parity);
      const uint32_t target = ring + stage * C::kStageBytes + C::kBoxes * kBoxBytes;
      for (int i = thread; i < kTokens * 8; i += kGatherThreads) {
        const int row = i / 8;
        const int vector = i % 8;
        const int token = state.gather_tokens[row];
        const int offset = step * kDepthBytes + vector * 16;
        const bool valid = token >= 0 && offset < row_bytes;
        const uint8_t* source = valid ? p.in + token * p.in_row_bytes + offset : p.in;
        CopyAsync16(target + row * kDepthBytes + ((vector ^ (row & 7)) * 16), source, valid);
      }
      CopyAsyncCommit();
      if (++started > kGatherLag) {
        CopyAsyncWait<kGatherLag>();
        signal();
      }
      if (++stage == C::kStages) {
        stage = 0;
        parity ^= 1;
      }
    }
  });
  CopyAsyncWait<0>();
  for (int i = min(started, kGatherLag); i > 0; --i) signal();
}

/// Brings the scales of h that belong to each stage of down. One warp.
template <typename C, typename State, int kTokens>
__device__ void FeedDepthScales(const MoeGemmParams& p, State& state, int depth_steps, int lane) {
  int stage = 0;
  uint32_t parity = 1;
  ForEachTile<C, kTokens>(p, state, [&](const Tile& tile) {
    for (int step = 0; step < depth_steps; ++step) {
      BarrierWait(SharedAddress(&state.empty[stage]), parity);
      const float* scales = p.h_scales + static_cast<int64_t>(step) * p.pair_rows;
      for (int i = lane; i < kTokens; i += kWarp) {
        CopyAsync4(SharedAddress(&state.depth_scales[stage][DepthScalePlace(i)]),
                   scales + min(tile.first + i, p.pair_rows - 1));
      }
      CopyAsyncArrive(SharedAddress(&state.full[stage]));
      if (++stage == C::kStages) {
        stage = 0;
        parity ^= 1;
      }
    }
  });
}

}  // namespace glm::cuda
