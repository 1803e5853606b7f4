// How the absorbed form of latent attention is shared out: tiles of rows, steps of positions, and
// where the parts of a split tile are.
//
// Who calls: mla_sm90.cu and mla_decode_sm90.cu, which compute tiles and parts; mla_combine.cu and,
// for a few tokens, mla_few_tokens.cu, which add parts.
#pragma once

#include <cstdint>

#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/mla_params.h"

namespace glm::cuda {

constexpr int kLatent = 512;
constexpr int kSequencesMax = 2048;

/// A row is one head of one token. Runners share a step's work: kBlockRunners a block, each of
/// which computes tiles of kTileRows rows by steps of kTileStep positions, at least kRunMin of them
/// at a time: shorter parts cost more to add than they save.
template <int kTileRows, int kTileStep, int kBlockRunners, int kRunMin>
struct MlaTiling {
  static constexpr int kRows = kTileRows;
  static constexpr int kStep = kTileStep;
  static constexpr int kRunners = kBlockRunners;
  static constexpr int kPartFloats = kRows * (kLatent + 2);  // sums, then the rows' maxima and sums

  static __device__ __forceinline__ int RunOf(int total, int runners) {
    return max(kRunMin, (total + runners - 1) / runners);
  }
  /// A runner has two places for parts: for the tile that it starts inside of, and for one that it
  /// does not end.
  static __device__ __forceinline__ int64_t PartPlace(int runner, int start, int run) {
    return (2 * runner + (start >= runner * run ? 1 : 0)) * static_cast<int64_t>(kPartFloats);
  }
};

using WideTiling = MlaTiling<64, 32, 1, 2>;    // of mla_sm90.cu
using DecodeTiling = MlaTiling<24, 64, 2, 1>;  // of mla_decode_sm90.cu

/// What a split leaves for those who add its parts.
struct MlaParts {
  float* parts;     // two a runner
  int32_t* prefix;  // [S + 1], of steps, as ScanTiles makes it

  /// In MlaPartsBytes() at `scratch`.
  MlaParts(void* scratch, int sm_count)
      : parts(static_cast<float*>(scratch)), prefix(static_cast<int32_t*>(scratch)) {
    prefix += PartFloats(sm_count);
  }
  static int64_t PartFloats(int sm_count) {
    const auto floats = [](auto tiling) { return 2 * tiling.kRunners * tiling.kPartFloats; };
    return sm_count * int64_t{std::max(floats(WideTiling()), floats(DecodeTiling()))};
  }
};

/// A sequence's rows and steps of the cache.
template <typename Tiling>
struct MlaSequence {
  int first_row;  // of the step's rows
  int rows;
  int length;

  __device__ MlaSequence(const MlaParams& p, int s) {
    first_row = p.query_starts[s] * p.heads;
    rows = p.query_starts[s + 1] * p.heads - first_row;
    length = p.kv_lengths[s];
  }
  __device__ int tiles() const { return (rows + Tiling::kRows - 1) / Tiling::kRows; }
  __device__ int steps() const { return (length + Tiling::kStep - 1) / Tiling::kStep; }
};

/// Sequences of more than `rows_max` rows are dealt as whole tiles, the others split.
struct MlaShare {
  int rows_max;
  bool without_fresh;
};

/// The block. `kept`: null, or where the first block leaves the prefix too.
template <typename Tiling, bool kSplit>
__device__ void ScanTiles(const MlaParams& p, int sequences, const MlaShare& share, int32_t* prefix,
                          int32_t* kept) {
  ScanSequences(sequences, prefix, [&](int s) {
    const MlaSequence<Tiling> work(p, s);
    const bool prompt = work.rows > share.rows_max;
    if constexpr (kSplit) return prompt ? 0 : work.tiles() * work.steps();
    const bool fresh = work.rows == work.length * p.heads;
    return prompt && !(fresh && share.without_fresh) ? work.tiles() : 0;
  });
  if (kept == nullptr || blockIdx.x != 0) return;
  for (int s = threadIdx.x; s <= sequences; s += blockDim.x) kept[s] = prefix[s];
}

/// What a runner computes at a time: steps of one tile.
struct MlaItem {
  int sequence;
  int first_row;  // of the step's rows
  int rows;       // valid ones, at most kRows
  int length;     // positions that its last token sees
  int step_begin;
  int step_end;
  int64_t part;  // where its part goes; -1: it is the whole tile
};

/// A runner's items, in the same order for producer and consumers.
template <typename Tiling, bool kSplit>
class MlaItems {
 public:
  __device__ MlaItems(const int32_t* prefix, int sequences, int runner, int runners)
      : prefix_(prefix), sequences_(sequences), runner_(runner) {
    const int total = prefix[sequences];
    if constexpr (kSplit) {
      run_ = Tiling::RunOf(total, runners);
      at_ = runner * run_;
      end_ = min(total, at_ + run_);
    } else {
      end_ = total;
    }
  }

  __device__ bool Next(const MlaParams& p, MlaItem& item) {
    if constexpr (!kSplit) at_ = TileOfRound(round_++, end_);
    if (at_ < 0 || at_ >= end_) return false;
    item.sequence = SequenceAt(prefix_, sequences_, at_);
    // Sequences that count nothing have the same prefix as the next; SequenceAt gives the last.
    const MlaSequence<Tiling> work(p, item.sequence);
    const int offset = at_ - prefix_[item.sequence];
    int tile;
    if constexpr (kSplit) {
      const int steps = work.steps();
      tile = offset / steps;
      const int start = prefix_[item.sequence] + tile * steps;
      item.step_begin = at_ - start;
      item.step_end = min(steps, end_ - start);
      const bool whole = start / run_ == (start + steps - 1) / run_;
      item.part = whole ? -1 : Tiling::PartPlace(runner_, start, run_);
      item.length = work.length;
      at_ = start + item.step_end;
    } else {
      tile = work.tiles() - 1 - offset;
      item.part = -1;
    }
    item.first_row = work.first_row + tile * Tiling::kRows;
    item.rows = min(Tiling::kRows, work.rows - tile * Tiling::kRows);
    if constexpr (!kSplit) {
      item.length = p.positions[(item.first_row + item.rows - 1) / p.heads] + 1;
      item.step_begin = 0;
      item.step_end = (item.length + Tiling::kStep - 1) / Tiling::kStep;
    }
    return true;
  }

 private:
  const int32_t* prefix_;
  int sequences_;
  int runner_;
  int run_ = 0;
  int at_ = 0;
  int end_;
  int round_ = 0;
};

/// A row of a split tile, and where its parts are.
struct SplitRow {
  int row = -1;      // of the tile; -1: nothing is to be added
  int first_runner;  // that has a part of it
  int count;         // parts
  int start;         // first step of the tile
  int64_t target;    // of the step's rows
};

/// Row `row` of a tile of sequence `s`.
template <typename Tiling>
__device__ __forceinline__ SplitRow SplitRowOf(const MlaParams& p, const int32_t* prefix, int s,
                                               int run, int tile, int row) {
  const MlaSequence<Tiling> work(p, s);
  const int steps = work.steps();
  SplitRow found = {};
  found.start = prefix[s] + tile * steps;
  found.first_runner = found.start / run;
  found.count = (found.start + steps - 1) / run - found.first_runner + 1;
  found.target = work.first_row + tile * Tiling::kRows + row;
  found.row = found.count > 1 && tile * Tiling::kRows + row < work.rows ? row : -1;
  return found;
}

/// A token's sequence, and how runs divide its steps. All that is loaded depends on one load at
/// most.
template <typename Tiling>
struct SplitToken {
  int sequence;
  int first_row;  // of the token, of its sequence's rows
  int run;
  bool split;  // not a token of a prompt that is dealt whole, nor padding

  __device__ SplitToken(const MlaParams& p, const int32_t* prefix, int runners, int token) {
    const int tokens = p.counts[0];
    const int sequences = p.counts[1];
    // Of padding it may be anything.
    const auto known = static_cast<uint32_t>(p.token_sequences[min(token, p.tokens - 1)]);
    sequence = static_cast<int>(min(known, static_cast<uint32_t>(p.sequences - 1)));
    first_row = (token - p.query_starts[sequence]) * p.heads;
    run = Tiling::RunOf(prefix[sequences], runners);
    split = token < tokens && prefix[sequence] != prefix[sequence + 1];
  }
  /// Row `head` of the token.
  __device__ SplitRow Row(const MlaParams& p, const int32_t* prefix, int head) const {
    if (!split) return SplitRow{};
    const int row = first_row + head;
    return SplitRowOf<Tiling>(p, prefix, sequence, run, row / Tiling::kRows, row % Tiling::kRows);
  }
};

constexpr int kCombineColumns = 4;  // of a thread
constexpr int kCombineAhead = 8;    // parts whose loads are in flight together

/// The sums of columns column .. column + 3 of a split row, of all its parts, rounded. What is
/// loaded does not depend on what was: at one sequence a row after the other, and a part after the
/// other, took 16 us on an H100.
template <typename Tiling>
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
      const float* part = parts + Tiling::PartPlace(split.first_runner + j, split.start, run);
      own_largest[i] =
          first + i < split.count ? part[Tiling::kRows * kLatent + split.row] : -INFINITY;
      own_sum[i] = part[Tiling::kRows * (kLatent + 1) + split.row];
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

/// Adds the parts of all split tiles: of `split`, what sm_count blocks left there.
template <typename Tiling>
void CombineMlaParts(cudaStream_t stream, int sm_count, const MlaParams& p, BFloat16* latents,
                     const MlaParts& split);

}  // namespace glm::cuda
