// The tiles of the grouped GEMMs, who computes which, and what a block keeps in shared memory.
//
// Who calls: moe_gemm_sm90.cu, whose head tells the whole story.
#pragma once

#include <cstdint>

#include "kernels/cuda/moe_gemm.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/warp.cuh"

namespace glm::cuda {

constexpr int kProducers = 128;
constexpr int kConsumers = 256;
constexpr int kGroupThreads = 128;  // of a consumer warpgroup
constexpr int kGroups = kConsumers / kGroupThreads;
constexpr int kGroupRows = 64;  // of a box that a warpgroup multiplies at a time
constexpr int kThreads = kProducers + kConsumers;
constexpr int kDepthBytes = 128;  // of k a slice
constexpr int kBoxRows = 128;
constexpr int kBoxBytes = kBoxRows * kDepthBytes;
constexpr int kStageBoxes = 2;
constexpr int kGroup = 128;  // columns that share a scale
constexpr int kExpertsMax = 257;

/// Hardware barriers of a block, of which 0 is __syncthreads'. Those with two take one of them for
/// each consumer warpgroup.
enum NamedBarrierIndex : int {
  kBarrierConsumers = 1,
  kBarrierGroup = 2,
};

/// The ring, which both GEMMs pass through.
template <int kTokens>
struct Ring {
  // Whether the consumer warpgroups take tiles in turn, all rows of a box each, or half of the rows
  // of every tile.
  static constexpr bool kAlternate = kTokens == 16;
  static constexpr int kHalves = kAlternate ? 2 : 1;  // of a box that a warpgroup multiplies
  // Slices of k whose tokens a stage has room for: down's small tiles have two a stage.
  static constexpr int kTokenSlices = kTokens == 128 ? 1 : 2;
  static constexpr int kTokenBytes = kTokens * kDepthBytes;  // of a slice
  static constexpr int kStageBytes = kStageBoxes * kBoxBytes + kTokenSlices * kTokenBytes;
  static constexpr int kStages = kTokens == 16 ? 6 : 4;
};

template <bool kGateUp, MoeScales kScales, int kTokens>
struct Config : Ring<kTokens> {
  static constexpr bool kOfGateUp = kGateUp;
  static constexpr bool kFp8 = kScales != MoeScales::kNone;
  static constexpr int kTokenBox = MoeTokenBox(kTokens);
  // Whether a tile of at most kTokenBox tokens is multiplied at that width.
  static constexpr bool kNarrow = kFp8 && kTokenBox < kTokens;
  static constexpr bool kGather = !MoeNeedsRows(kTokens) && kGateUp;
  // A stage's two boxes: of as many rows, or of one's rows two slices of k.
  static constexpr int kBoxes = kGateUp || kTokens == 128 ? 2 : 1;
  static constexpr int kSlices = kStageBoxes / kBoxes;
  static constexpr int kTileRows = kGateUp ? kBoxRows : kBoxes * kBoxRows;
  // bf16 products of a stage run on while the next stage is awaited. (For down's wide tiles ptxas
  // would serialise them.)
  static constexpr bool kOverlap = !kFp8 && (kGateUp || kTokens != 128);
  static constexpr int kElementBytes = kFp8 ? 1 : 2;
  static constexpr int kOutBytes = kGateUp && kFp8 ? 1 : 2;  // of a staged value
  static constexpr int kStagingPitch = kGroupRows * kOutBytes + 16;
  static constexpr int kStagingTokens = kTokens / kOutBytes;  // that are staged at a time
  static constexpr int kDepth = kDepthBytes / kElementBytes;  // of a slice
};

template <MoeScales kScales, int kTokens>
struct SharedState {
  using GateUp = Config<true, kScales, kTokens>;
  using Down = Config<false, kScales, kTokens>;
  static constexpr int kStages = Ring<kTokens>::kStages;
  static constexpr int kGateUpStaging = GateUp::kStagingTokens * GateUp::kStagingPitch;
  static constexpr int kDownStaging =
      MoeWideTiles(kTokens) ? Down::kStagingTokens * Down::kStagingPitch : 0;

  // Of each consumer warpgroup.
  alignas(
      16) uint8_t staging[kGroups][kGateUpStaging < kDownStaging ? kDownStaging : kGateUpStaging];
  alignas(8) uint64_t full[kStages];
  uint64_t empty[kStages];
  uint64_t turn;  // kAlternate: a phase a tile, complete when it is multiplied
  int32_t token_tiles[kExpertsMax + 1];  // of the experts before each
  int32_t place_starts[kExpertsMax];     // first place in h of each expert
  int32_t place_counts[kExpertsMax];
  // down: scales of h of a stage, in the order of DepthScalePlace()
  alignas(16) float depth_scales[kStages][Ring<kTokens>::kTokenSlices][kTokens];
  // Of each 16 rows of a tile.
  float column_largest[Ring<kTokens>::kHalves][kBoxRows / 16][kTokens];
  float column_scales[kGroups][kTokens];  // gate+up: of the token, then 1 / that of its h
  int32_t column_rows[kGroups][kTokens];  // down: row of y
};

/// The stage that a warp has come to. Who fills stages starts with parity 1, who reads them with 0.
struct RingPlace {
  int stage = 0;
  uint32_t parity = 0;

  template <int kStages>
  __device__ __forceinline__ void Advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
  /// Past the stages of a tile that is not this warp's.
  template <int kStages>
  __device__ __forceinline__ void Skip(int steps) {
    parity ^= (stage + steps) / kStages & 1;
    stage = (stage + steps) % kStages;
  }
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

/// Fills the tables of experts in shared memory. The whole block: each thread asks for an expert,
/// so that all are awaited at once, and the first warp scans.
template <int kTokens, typename State>
__device__ void FillExperts(const MoeGemmParams& p, State& state) {
  static_assert(kExpertsMax <= kThreads);
  const int experts = p.experts + p.shared_experts;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < experts) {
    const int2 range = ExpertRange(p, thread);
    state.place_starts[thread] = range.x;
    state.place_counts[thread] = range.y;
  }
  __syncthreads();
  if (thread < kWarp) {
    int total = 0;
    for (int begin = 0; begin < experts; begin += kWarp) {
      const int expert = begin + thread;
      const int tiles = expert < experts ? (state.place_counts[expert] + kTokens - 1) / kTokens : 0;
      int inclusive = tiles;
#pragma unroll
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const int other = __shfl_up_sync(kAllLanes, inclusive, offset);
        if (thread >= offset) inclusive += other;
      }
      if (expert < experts) state.token_tiles[expert] = total + inclusive - tiles;
      total += __shfl_sync(kAllLanes, inclusive, kWarp - 1);
    }
    if (thread == 0) state.token_tiles[experts] = total;
  }
  __syncthreads();
}

/// Tiles that the rows of an expert's weights are divided into; none if the launch has not this
/// GEMM.
template <typename C>
__device__ __forceinline__ int RowTiles(const MoeGemmParams& p) {
  if (p.phases == (C::kOfGateUp ? MoePhases::kDown : MoePhases::kGateUp)) return 0;
  return ((C::kOfGateUp ? p.width : p.outputs) + C::kTileRows - 1) / C::kTileRows;
}

/// Slices of k that a GEMM has, and stages that they take.
template <typename C>
__device__ __forceinline__ int DepthSlices(const MoeGemmParams& p) {
  return ((C::kOfGateUp ? p.hidden : p.width) + C::kDepth - 1) / C::kDepth;
}
template <typename C>
__device__ __forceinline__ int DepthSteps(const MoeGemmParams& p) {
  return (DepthSlices<C>(p) + C::kSlices - 1) / C::kSlices;
}

/// Calls visit(tile) for each tile of this block. The tiles of the same weights are neighbours, so
/// that blocks read them together: apart, they came twice from memory (Air, 2048 tokens: 1430 us
/// instead of 1180, H100). Down's are dealt on from the block that gate+up's end at.
template <MoeScales kScales, int kTokens, bool kGateUp, typename State, typename Visit>
__device__ __forceinline__ void ForEachTile(const MoeGemmParams& p, const State& state,
                                            const Visit& visit) {
  using C = Config<kGateUp, kScales, kTokens>;
  const int all = state.token_tiles[p.experts + p.shared_experts];
  const int row_tiles = RowTiles<C>(p);
  const int blocks = static_cast<int>(gridDim.x);
  const int before = kGateUp ? 0 : all * RowTiles<Config<true, kScales, kTokens>>(p) % blocks;
  const int from = static_cast<int>(blockIdx.x) - before;
  int expert = 0;
  for (int index = from < 0 ? from + blocks : from; index < all * row_tiles; index += blocks) {
    while (state.token_tiles[expert + 1] * row_tiles <= index) ++expert;
    const unsigned within = index - state.token_tiles[expert] * row_tiles;
    const unsigned token_tiles = state.token_tiles[expert + 1] - state.token_tiles[expert];
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

}  // namespace glm::cuda
