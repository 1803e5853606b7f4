// What becomes of a tile's sums: SwiGLU and quantisation for gate+up, rows of y for down.
//
// Who calls: moe_gemm_sm90.cu, whose head tells the whole story.
//
// Tensor cores leave a token's values spread over a warp's lanes, so rows of h and bf16 rows of y
// pass through shared memory to leave as 16-byte vectors. Each warpgroup stages and copies its own
// 64 rows of a box; only the scales of fp8 h, of 128 columns each, need both.
#pragma once

#include <cstdint>

#include "kernels/cuda/moe_gemm.h"
#include "kernels/cuda/moe_tiles.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/warp.cuh"

namespace glm::cuda {

/// What a consumer thread holds of a tile: rows `low` and low + 8 of each box, or where warpgroups
/// take tiles in turn of each half of a box.
struct ThreadRows {
  int group;   // warpgroup, 0 or 1
  int thread;  // of the warpgroup
  int half;    // of a box: 64 rows
  int warp;    // of those that a box's rows are divided among, 0..7
  int lane;
  int low;  // within the box

  __device__ ThreadRows(int consumer, bool alternate)
      : group(Uniform(consumer / kGroupThreads)),
        thread(consumer % kGroupThreads),
        half(alternate ? 0 : group),
        warp(Uniform(half * 4 + thread / kWarp)),
        lane(consumer % kWarp),
        low(warp * 16 + lane / 4) {}
  /// What it holds of the further-th half from here.
  __device__ ThreadRows Further(int halves) const {
    ThreadRows rows = *this;
    rows.half += halves;
    rows.warp += 4 * halves;
    rows.low += kGroupRows * halves;
    return rows;
  }
  /// Columns of accumulators 4j and 4j + 1.
  __device__ int Column(int j) const { return j * 8 + lane % 4 * 2; }
};

/// Barrier of this thread's warpgroup.
__device__ __forceinline__ void GroupBarrier(const ThreadRows& rows) {
  NamedBarrier(kBarrierGroup + rows.group, kGroupThreads);
}

/// Scales of the thread's rows of each box, one a channel; looked up before the tile is multiplied.
struct RowScales {
  float of[2][2] = {{1, 1}, {1, 1}};  // [box][row]
};

template <bool kGateUp, MoeScales kScales, int kBoxes>
__device__ __forceinline__ RowScales LookUpRows(const MoeGemmParams& p, const Tile& tile,
                                                const ThreadRows& rows) {
  RowScales result;
  if constexpr (kScales == MoeScales::kChannel) {
#pragma unroll
    for (int box = 0; box < kBoxes; ++box) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = tile.row + rows.low + r * 8;
        if constexpr (kGateUp) {
          result.of[box][r] =
              p.gate_up_scales[static_cast<int64_t>(tile.expert * 2 + box) * p.width +
                               min(row, p.width - 1)];
        } else {
          result.of[box][r] = p.down_scales[static_cast<int64_t>(tile.expert) * p.hidden +
                                            min(row + box * kBoxRows, p.hidden - 1)];
        }
      }
    }
  }
  return result;
}

/// What a column of the tile needs at its end, looked up before the tile is multiplied.
struct Column {
  float scale = 1;
  int row = 0;
};

template <bool kGateUp, MoeScales kScales, int kTokens>
__device__ __forceinline__ Column LookUpColumn(const MoeGemmParams& p, const Tile& tile,
                                               int column) {
  Column result;
  if (column >= tile.count) return result;
  const int place = tile.first + column;
  if constexpr (kGateUp) {
    // No load may wait for another here, or the first products would.
    if constexpr (kScales == MoeScales::kChannel) {
      result.scale = MoeNeedsRows(kTokens) ? p.row_scales[place] : p.in_scales[TokenAt(p, place)];
    }
  } else {
    const int routed = p.tokens * p.experts_per_token;
    result.row = place < routed ? p.pair_order[place] : place;
  }
  return result;
}

/// Barrier of all who multiply a tile.
template <int kTokens>
__device__ __forceinline__ void TileBarrier(const ThreadRows& rows) {
  if constexpr (Ring<kTokens>::kAlternate) {
    GroupBarrier(rows);
  } else {
    NamedBarrier(kBarrierConsumers, kConsumers);
  }
}

/// Copies the 64 values of each of kColumns rows that a warpgroup has staged to 16-byte vectors of
/// global memory. target(column): where those of that column of the pass start, or null.
template <typename C, int kColumns, typename State, typename Target>
__device__ __forceinline__ void CopyStaged(const State& state, const ThreadRows& rows,
                                           int valid_bytes, const Target& target) {
  constexpr int kVectors = kGroupRows * C::kOutBytes / 16;
  constexpr int kColumnsAtOnce = kGroupThreads / kVectors;
  const int offset = rows.thread % kVectors * 16;
  const uint8_t* staged = state.staging[rows.group] + offset;
  GroupBarrier(rows);
  if (offset < valid_bytes) {
#pragma unroll
    for (int begin = 0; begin < kColumns; begin += kColumnsAtOnce) {
      const int column = begin + rows.thread / kVectors;
      if (kColumns < kColumnsAtOnce && column >= kColumns) continue;
      uint8_t* row = target(column);
      if (row == nullptr) continue;
      *reinterpret_cast<uint4*>(row + offset) =
          *reinterpret_cast<const uint4*>(staged + column * C::kStagingPitch);
    }
  }
  GroupBarrier(rows);
}

/// Stages the columns [pass * kPassColumns, ...) of a warpgroup's 64 rows of bf16 values.
template <typename C, int kColumns, int kPassColumns, typename State>
__device__ __forceinline__ void StageBf16(State& state, const ThreadRows& rows, int pass,
                                          const float (&values)[kColumns / 2]) {
  static_assert(kPassColumns % 8 == 0);
  constexpr int kTiles = kPassColumns / 8;
  // Tile i of a store: rows + 8 * (i % 2), columns of j + i / 2.
  const int tile = rows.lane / 8;
  const uint32_t address = SharedAddress(state.staging[rows.group]) +
                           (tile / 2 * 8 + rows.lane % 8) * C::kStagingPitch +
                           (rows.warp % 4 * 16 + tile % 2 * 8) * 2;
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
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

/// silu(gate) * up of two values. `exponent`: -log2(e) * gate; `scaled_up`: -ln(2) * up, so that
/// their product is gate * up. There is one reciprocal for both: it is what an epilogue waits for.
/// Below -43 silu is held where the product of the denominators stays finite, far below fp8's
/// steps.
__device__ __forceinline__ float2 SiluMulTwo(float2 exponent, float2 scaled_up) {
  constexpr float kExponentMax = 62;
  const float x = 1.0f + ApproximateExp2(fminf(exponent.x, kExponentMax));
  const float y = 1.0f + ApproximateExp2(fminf(exponent.y, kExponentMax));
  const float inverse = ApproximateReciprocal(x * y);
  return float2{exponent.x * (inverse * y) * scaled_up.x, exponent.y * (inverse * x) * scaled_up.y};
}

/// Takes the largest of columns over the warp's rows. `largest`: [2j, 2j + 1] are this lane's of
/// columns Column(j) and the next. Lanes halve the columns among themselves until each has two or
/// all lanes were asked, so that few values travel; returns which of them is now this lane's first.
template <int kCount, int kLanes, int kAll>
__device__ __forceinline__ int ReduceColumns(int lane, float (&largest)[kAll]) {
  if constexpr (kLanes < 4) {
    return 0;
  } else if constexpr (kCount == 2) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      largest[i] = fmaxf(largest[i], __shfl_xor_sync(kAllLanes, largest[i], kLanes));
    }
    return ReduceColumns<2, kLanes / 2>(lane, largest);
  } else {
    constexpr int kHalf = kCount / 2;
    const bool upper = (lane & kLanes) != 0;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const float sent = upper ? largest[i] : largest[i + kHalf];
      const float kept = upper ? largest[i + kHalf] : largest[i];
      largest[i] = fmaxf(kept, __shfl_xor_sync(kAllLanes, sent, kLanes));
    }
    return (upper ? kHalf : 0) + ReduceColumns<kHalf, kLanes / 2>(lane, largest);
  }
}

/// SwiGLU of the tile's sums, over those of the gate; fp8: the largest of each column to shared
/// memory.
template <MoeScales kScales, int kTokens, int kColumns, typename State>
__device__ __forceinline__ void Activate(const MoeGemmParams& p, State& state, const Tile& tile,
                                         const ThreadRows& rows, const RowScales& row_scales,
                                         float (&gate)[kColumns / 2],
                                         const float (&up)[kColumns / 2]) {
  // Rows past the last are another matrix's, and make zeros.
  constexpr float kLog2E = 1.44269504f;
  constexpr float kLn2 = 0.693147181f;
  const int row = tile.row + rows.low;
  const float gate_scales[2] = {row_scales.of[0][0] * -kLog2E, row_scales.of[0][1] * -kLog2E};
  const float up_scales[2] = {row < p.width ? row_scales.of[1][0] * -kLn2 : 0.0f,
                              row + 8 < p.width ? row_scales.of[1][1] * -kLn2 : 0.0f};
  float largest[kColumns / 4];
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
    float2 token_scales = {1, 1};
    if constexpr (kScales == MoeScales::kChannel) {
      token_scales =
          *reinterpret_cast<const float2*>(&state.column_scales[rows.group][rows.Column(j)]);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int i = 4 * j + 2 * r;
      const float2 h = SiluMulTwo(
          {gate[i] * (gate_scales[r] * token_scales.x),
           gate[i + 1] * (gate_scales[r] * token_scales.y)},
          {up[i] * (up_scales[r] * token_scales.x), up[i + 1] * (up_scales[r] * token_scales.y)});
      gate[i] = h.x;
      gate[i + 1] = h.y;
    }
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      largest[2 * j + c] = fmaxf(fabsf(gate[4 * j + c]), fabsf(gate[4 * j + 2 + c]));
    }
  }
  if constexpr (kScales != MoeScales::kNone) {
    auto& largest_of = state.column_largest[Ring<kTokens>::kAlternate ? rows.group : 0];
    const int first = ReduceColumns<kColumns / 4, kWarp / 2>(rows.lane, largest);
#pragma unroll
    for (int i = 0; i < max(2, kColumns / 32); i += 2) {
      *reinterpret_cast<float2*>(&largest_of[rows.warp][rows.Column((first + i) / 2)]) =
          float2{largest[i], largest[i + 1]};
    }
  }
}

/// The scales of a tile's h, one a token, to global memory, and 1 / them to shared memory.
template <int kTokens, int kColumns, typename State>
__device__ __forceinline__ void StoreScales(const MoeGemmParams& p, State& state, const Tile& tile,
                                            const ThreadRows& rows) {
  constexpr bool kAlternate = Ring<kTokens>::kAlternate;
  TileBarrier<kTokens>(rows);
  const int thread = kAlternate ? rows.thread : rows.group * kGroupThreads + rows.thread;
  if (thread < kColumns) {
    float largest = 0;
#pragma unroll
    for (int w = 0; w < kBoxRows / 16; ++w) {
      largest = fmaxf(largest, state.column_largest[kAlternate ? rows.group : 0][w][thread]);
    }
    const float scale = Fp8Scale(largest);
    const float inverse = ApproximateReciprocal(scale);
    if (kAlternate) {
      state.column_scales[rows.group][thread] = inverse;
    } else {
      state.column_scales[0][thread] = inverse;
      state.column_scales[1][thread] = inverse;
    }
    if (thread < tile.count) {
      p.h_scales[static_cast<int64_t>(tile.row / kGroup) * p.pair_rows + tile.first + thread] =
          scale;
    }
  }
  TileBarrier<kTokens>(rows);
}

/// What Activate() has made of 64 rows, to h: bf16, or fp8 times the columns' scales.
template <MoeScales kScales, int kTokens, int kColumns, typename State>
__device__ __forceinline__ void StoreActivated(const MoeGemmParams& p, State& state,
                                               const Tile& tile, const ThreadRows& rows,
                                               const float (&values)[kColumns / 2]) {
  using C = Config<true, kScales, kTokens>;
  const int first_byte = (tile.row + rows.half * kGroupRows) * C::kOutBytes;
  const int valid_bytes = static_cast<int>(p.h_row_bytes) - first_byte;
  const auto target_of = [&](int column) {
    return column < tile.count ? p.h + (tile.first + column) * p.h_row_bytes + first_byte : nullptr;
  };
  if constexpr (!C::kFp8) {
    constexpr int kPassColumns = kColumns < C::kStagingTokens ? kColumns : C::kStagingTokens;
#pragma unroll
    for (int pass = 0; pass < kColumns / kPassColumns; ++pass) {
      StageBf16<C, kColumns, kPassColumns>(state, rows, pass, values);
      CopyStaged<C, kPassColumns>(state, rows, valid_bytes, [&](int column) {
        return target_of(pass * kPassColumns + column);
      });
    }
  } else {
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
      const float2 inverse =
          *reinterpret_cast<const float2*>(&state.column_scales[rows.group][rows.Column(j)]);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float factor = c == 0 ? inverse.x : inverse.y;
        uint8_t* staged = state.staging[rows.group] + (rows.Column(j) + c) * C::kStagingPitch +
                          rows.low % kGroupRows;
        const uint16_t pair = PackFp8(values[4 * j + c] * factor, values[4 * j + c + 2] * factor);
        staged[0] = static_cast<uint8_t>(pair);
        staged[8] = static_cast<uint8_t>(pair >> 8);
      }
    }
    CopyStaged<C, kColumns>(state, rows, valid_bytes, target_of);
  }
}

/// SwiGLU of the tile's sums, to h: bf16, or fp8 with one scale a (token, tile).
template <MoeScales kScales, int kTokens, int kColumns, int kHalves, typename State>
__device__ __forceinline__ void StoreHidden(const MoeGemmParams& p, State& state, const Tile& tile,
                                            const ThreadRows& rows,
                                            const RowScales (&row_scales)[kHalves],
                                            float (&gate)[kHalves][kColumns / 2],
                                            const float (&up)[kHalves][kColumns / 2]) {
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    Activate<kScales, kTokens, kColumns>(p, state, tile, rows.Further(half), row_scales[half],
                                         gate[half], up[half]);
  }
  if constexpr (kScales != MoeScales::kNone) StoreScales<kTokens, kColumns>(p, state, tile, rows);
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    StoreActivated<kScales, kTokens, kColumns>(p, state, tile, rows.Further(half), gate[half]);
  }
}

/// A box's sums of 64 rows, scaled, to the rows of y: float, or bf16 in wide tiles.
template <MoeScales kScales, int kTokens, int kColumns, typename State>
__device__ __forceinline__ void StoreOutputs(const MoeGemmParams& p, State& state, const Tile& tile,
                                             const ThreadRows& rows, const RowScales& row_scales,
                                             int box, float (&sum)[kColumns / 2]) {
  using C = Config<false, kScales, kTokens>;
  if constexpr (kScales == MoeScales::kChannel) {
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i) sum[i] *= row_scales.of[box][i % 4 / 2];
  }
  if constexpr (kTokens == 128) {
    constexpr int kPassColumns = kColumns < C::kStagingTokens ? kColumns : C::kStagingTokens;
    const int first_row = tile.row + box * kBoxRows + rows.half * kGroupRows;
#pragma unroll
    for (int pass = 0; pass < kColumns / kPassColumns; ++pass) {
      StageBf16<C, kColumns, kPassColumns>(state, rows, pass, sum);
      CopyStaged<C, kPassColumns>(state, rows, (p.hidden - first_row) * 2,
                                  [&](int staged) -> uint8_t* {
                                    const int column = pass * kPassColumns + staged;
                                    if (column >= tile.count) return nullptr;
                                    const int64_t row = state.column_rows[rows.group][column];
                                    return reinterpret_cast<uint8_t*>(static_cast<BFloat16*>(p.y) +
                                                                      row * p.hidden + first_row);
                                  });
    }
  } else {
    const int row = tile.row + box * kBoxRows + rows.low;
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = rows.Column(j) + i % 2;
        if (column >= tile.count || row + i / 2 * 8 >= p.hidden) continue;
        const int64_t y_row = state.column_rows[rows.group][column];
        static_cast<float*>(p.y)[y_row * p.hidden + row + i / 2 * 8] = sum[4 * j + i];
      }
    }
  }
}

}  // namespace glm::cuda
