// Penalties, edits and mask of a row of logits, on the slice of it that a block has in registers.
//
// Who calls: sample.cu. Counts and edited logits pass through shared memory, a word for each id of
// the slice, so that global memory needs no room for them and keeps the logits as they came.
#pragma once

#include <cstdint>

#include "kernels/cuda/warp.cuh"
#include "kernels/ops.h"

namespace glm::cuda {

struct ShapeParams {
  const int32_t* tokens;  // TokenCache [B, P]
  int block_size;
  const int32_t* block_tables;
  int64_t block_tables_stride;
  const LogitEdit* edits;
  const int32_t* edit_contexts;
  const int32_t* masks;
  int mask_words;  // of a row
};

/// The ids of a row's sequence, found through its block table.
struct History {
  const int32_t* tokens;
  const int32_t* blocks;
  int block_size;

  __device__ History(const ShapeParams& p, const SampleRow& row)
      : tokens(p.tokens),
        blocks(p.block_tables + row.sequence * p.block_tables_stride),
        block_size(p.block_size) {}
  __device__ int32_t At(int position) const {
    return tokens[static_cast<int64_t>(blocks[position / block_size]) * block_size +
                  position % block_size];
  }
};

__device__ __forceinline__ bool MaskAllows(const ShapeParams& p, const SampleRow& row, int id) {
  if (row.mask < 0) return true;
  const uint32_t word = p.masks[static_cast<int64_t>(row.mask) * p.mask_words + id / 32];
  return (word >> (id % 32) & 1) != 0;
}

__device__ __forceinline__ bool HasPenalties(const SampleRow& row) {
  return row.repetition_penalty != 1.0f || row.frequency_penalty != 0.0f ||
         row.presence_penalty != 0.0f;
}

__device__ __forceinline__ bool EditHolds(const ShapeParams& p, const SampleRow& row,
                                          const LogitEdit& edit) {
  const auto position = static_cast<int>(row.position);
  if (position >= edit.until_position || edit.context_count > position) return false;
  if (edit.context_count == 0) return true;
  const History history(p, row);
  for (int i = 0; i < edit.context_count; ++i) {
    const int32_t id = history.At(position - edit.context_count + i);
    if (id != p.edit_contexts[edit.context_begin + i]) return false;
  }
  return true;
}

/// words[id - begin] = how often the row's sequence generated the id, with the top bit set where it
/// has the id at all, for ids begin .. end - 1.
__device__ inline void CountSlice(const ShapeParams& p, const SampleRow& row, int begin, int end,
                                  uint32_t* words) {
  for (int i = threadIdx.x; i < end - begin; i += blockDim.x) words[i] = 0;
  __syncthreads();
  const History history(p, row);
  for (int position = threadIdx.x; position < static_cast<int>(row.position);
       position += blockDim.x) {
    const int32_t id = history.At(position);
    // A prompt may hold ids that are never drawn.
    if (id < begin || id >= end) continue;
    atomicOr(words + (id - begin), 0x80000000u);
    if (position >= row.prompt_tokens) atomicAdd(words + (id - begin), 1u);
  }
  __syncthreads();
}

/// Adds the edits that hold to values[id - begin], in their order where one id has several. The
/// first warp of the block.
__device__ inline void AddEdits(const ShapeParams& p, const SampleRow& row, int begin, int end,
                                float* values) {
  for (int first = 0; first < row.edits_count; first += kWarp) {
    const int index = first + static_cast<int>(threadIdx.x);
    LogitEdit edit;
    bool holds = index < row.edits_count;
    if (holds) {
      edit = p.edits[row.edits_begin + index];
      holds = edit.id >= begin && edit.id < end && EditHolds(p, row, edit);
    }
    // Lanes with the same id take turns.
    const uint32_t same = __match_any_sync(kAllLanes, holds ? edit.id : -1 - index);
    const int turn = __popc(same & ((1u << threadIdx.x) - 1));
    for (int t = 0; __any_sync(kAllLanes, holds && turn >= t); ++t) {
      if (holds && turn == t) values[edit.id - begin] += edit.add;
      __syncwarp();
    }
  }
}

/// Penalties, edits and mask on values[i] of id_of(i), ids begin .. end - 1 of this block. `words`:
/// shared memory for them all.
template <int kPerThread, typename IdOf>
__device__ void ShapeLogits(const ShapeParams& p, const SampleRow& row, int begin, int end,
                            uint32_t* words, const IdOf& id_of, float (&values)[kPerThread]) {
  if (HasPenalties(row)) {
    CountSlice(p, row, begin, end, words);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      if (id_of(i) >= end) continue;
      const uint32_t word = words[id_of(i) - begin];
      if (word == 0) continue;
      float& value = values[i];
      value = value > 0 ? value / row.repetition_penalty : value * row.repetition_penalty;
      const uint32_t generated = word & 0x7FFFFFFFu;
      if (generated == 0) continue;
      // Two roundings, as where the product is not fused.
      value -= __fmul_rn(row.frequency_penalty, static_cast<float>(generated));
      value -= row.presence_penalty;
    }
    __syncthreads();
  }
  if (row.edits_count > 0) {
    float* floats = reinterpret_cast<float*>(words);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      if (id_of(i) < end) floats[id_of(i) - begin] = values[i];
    }
    __syncthreads();
    if (threadIdx.x < kWarp) AddEdits(p, row, begin, end, floats);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      if (id_of(i) < end) values[i] = floats[id_of(i) - begin];
    }
  }
  if (row.mask < 0) return;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (id_of(i) < end && !MaskAllows(p, row, id_of(i))) values[i] = -INFINITY;
  }
}

}  // namespace glm::cuda
