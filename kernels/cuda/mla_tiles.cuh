// How the absorbed form of latent attention is shared out: tiles of 64 rows, steps of 32 positions,
// and where the parts of a split tile are.
//
// Who calls: mla_sm90.cu, which computes tiles and parts; mla_combine.cu and, for a few tokens,
// mla_few_tokens.cu, which add parts.
#pragma once

#include <cstdint>

#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/mla_params.h"

namespace glm::cuda {

constexpr int kRows = 64;   // of a tile
constexpr int kStep = 32;   // positions a step
constexpr int kRunMin = 2;  // steps of a block's run: shorter parts cost more to add than they save
constexpr int kLatent = 512;
constexpr int kPartFloats = kRows * (kLatent + 2);  // sums, then the rows' maxima and sums
constexpr int kSequencesMax = 2048;

/// A sequence's rows and steps of the cache.
struct MlaSequence {
  int first_row;  // of the step's rows
  int rows;
  int length;

  __device__ MlaSequence(const MlaParams& p, int s) {
    first_row = p.query_starts[s] * p.heads;
    rows = p.query_starts[s + 1] * p.heads - first_row;
    length = p.kv_lengths[s];
  }
  __device__ int tiles() const { return (rows + kRows - 1) / kRows; }
  __device__ int steps() const { return (length + kStep - 1) / kStep; }
};

/// Sequences of more than `rows_max` rows are dealt as whole tiles, the others split.
struct MlaShare {
  int rows_max;
  bool without_fresh;
};

template <bool kSplit>
__device__ void ScanTiles(const MlaParams& p, int sequences, const MlaShare& share,
                          int32_t* prefix) {
  ScanSequences(sequences, prefix, [&](int s) {
    const MlaSequence work(p, s);
    const bool prompt = work.rows > share.rows_max;
    if constexpr (kSplit) return prompt ? 0 : work.tiles() * work.steps();
    const bool fresh = work.rows == work.length * p.heads;
    return prompt && !(fresh && share.without_fresh) ? work.tiles() : 0;
  });
}

__device__ __forceinline__ int RunOf(int total, int blocks) {
  return max(kRunMin, (total + blocks - 1) / blocks);
}

/// A block has two places for parts: for the tile that it starts inside of, and for one that it
/// does not end.
__device__ __forceinline__ int64_t PartPlace(int block, int start, int run) {
  return (2 * block + (start >= block * run ? 1 : 0)) * static_cast<int64_t>(kPartFloats);
}

/// A row of a split tile, and where its parts are.
struct SplitRow {
  int row = -1;     // of the tile; -1: nothing is to be added
  int first_block;  // that has a part of it
  int count;        // parts
  int start;        // first step of the tile
  int64_t target;   // of the step's rows
};

/// Row `row` of a tile of sequence `s`.
__device__ __forceinline__ SplitRow SplitRowOf(const MlaParams& p, const int32_t* prefix, int s,
                                               int run, int tile, int row) {
  const MlaSequence work(p, s);
  const int steps = work.steps();
  SplitRow found = {};
  found.start = prefix[s] + tile * steps;
  found.first_block = found.start / run;
  found.count = (found.start + steps - 1) / run - found.first_block + 1;
  found.target = work.first_row + tile * kRows + row;
  found.row = found.count > 1 && tile * kRows + row < work.rows ? row : -1;
  return found;
}

/// Row `step_row` of the step.
__device__ __forceinline__ SplitRow SplitRowOf(const MlaParams& p, const int32_t* prefix, int run,
                                               int step_row) {
  const int token = step_row / p.heads;
  if (token >= p.counts[0]) return SplitRow{};
  const int s = p.token_sequences[token];
  if (prefix[s] == prefix[s + 1]) return SplitRow{};  // a prompt's
  const int row = step_row - p.query_starts[s] * p.heads;
  return SplitRowOf(p, prefix, s, run, row / kRows, row % kRows);
}

constexpr int kCombineColumns = 4;  // of a thread
constexpr int kCombineAhead = 8;    // parts whose loads are in flight together

/// The sums of columns column .. column + 3 of a split row, of all its parts, rounded. What is
/// loaded does not depend on what was: at one sequence a row after the other, and a part after the
/// other, took 16 us on an H100.
__device__ __forceinline__ uint2 AddParts(const float* parts, const SplitRow& split, int run,
                                          int column) {
  float largest = -INFINITY;
  float sum = 0;
  float4 value = {0, 0, 0, 0};
  for (int first = 0; first < split.count; first += kCombineAhead) {
    float own_largest[kCombineAhead];
    float own_sum[kCombineAhead];
    float4 own[kCombineAhead];
#pragma unroll
    for (int i = 0; i < kCombineAhead; ++i) {
      const int j = min(first + i, split.count - 1);
      const float* part = parts + PartPlace(split.first_block + j, split.start, run);
      own_largest[i] = first + i < split.count ? part[kRows * kLatent + split.row] : -INFINITY;
      own_sum[i] = part[kRows * kLatent + kRows + split.row];
      own[i] = *reinterpret_cast<const float4*>(part + split.row * kLatent + column);
    }
    float next = largest;
#pragma unroll
    for (int i = 0; i < kCombineAhead; ++i) next = fmaxf(next, own_largest[i]);
    // A part that sees nothing has no maximum, and counts for nothing.
    const float shift = next == -INFINITY ? 0.0f : next;
    const float older = exp2f(largest - shift);
    largest = next;
    sum *= older;
    value = {value.x * older, value.y * older, value.z * older, value.w * older};
#pragma unroll
    for (int i = 0; i < kCombineAhead; ++i) {
      const float factor = exp2f(own_largest[i] - shift);
      sum += factor * own_sum[i];
      value.x += factor * own[i].x;
      value.y += factor * own[i].y;
      value.z += factor * own[i].z;
      value.w += factor * own[i].w;
    }
  }
  const float inverse = 1.0f / sum;
  return uint2{PackBf16(value.x * inverse, value.y * inverse),
               PackBf16(value.z * inverse, value.w * inverse)};
}

/// Adds the parts of all split tiles: of `parts`, what WideMlaKernel left there in sm_count blocks.
void CombineMlaParts(cudaStream_t stream, int sm_count, const MlaParams& p, const MlaShare& share,
                     BFloat16* latents, const float* parts);

}  // namespace glm::cuda
