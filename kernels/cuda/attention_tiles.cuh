// What the attention kernels on wgmma share: who computes which tile, the running softmax of a
// tile's rows, sums over sequences, and zeros behind the last position.
//
// Who calls: attention_prefill_sm90.cu, mla_prefill_sm90.cu, mla_sm90.cu.
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/warp.cuh"

namespace glm::cuda {

/// prefix[s] = what count(0 .. s - 1) add up to; prefix[sequences] is the total. A block of any
/// size calls it together, with `prefix` in shared memory.
template <typename Count>
__device__ void ScanSequences(int sequences, int32_t* prefix, Count count) {
  for (int s = threadIdx.x; s < sequences; s += blockDim.x) prefix[s] = count(s);
  __syncthreads();
  if (threadIdx.x < kWarp) {
    const int lane = threadIdx.x;
    int total = 0;
    for (int begin = 0; begin < sequences; begin += kWarp) {
      const int own = begin + lane < sequences ? prefix[begin + lane] : 0;
      int inclusive = own;
#pragma unroll
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const int other = __shfl_up_sync(kAllLanes, inclusive, offset);
        if (lane >= offset) inclusive += other;
      }
      if (begin + lane < sequences) prefix[begin + lane] = total + inclusive - own;
      total += __shfl_sync(kAllLanes, inclusive, kWarp - 1);
    }
    if (lane == 0) prefix[sequences] = total;
  }
  __syncthreads();
}

/// The last s with prefix[s] <= at.
__device__ __forceinline__ int SequenceAt(const int32_t* prefix, int sequences, int at) {
  int low = 0;
  int high = sequences;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (prefix[middle] <= at) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

/// Which of `tiles` this block computes, longest first: rounds over the blocks go forth and back,
/// so that none gets the longest of every round. -1 when there are no more.
__device__ __forceinline__ int TileOfRound(int round, int tiles) {
  const int block = static_cast<int>(round % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x);
  const int tile = round * static_cast<int>(gridDim.x) + block;
  return tile < tiles ? tile : -1;
}

/// Two rows of a thread: the running softmax.
struct SoftmaxRows {
  float largest[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};
  int last_seen[2];
};

/// A thread's scores of 2 kScores positions from `first` on, of two rows, become probabilities
/// against the new maxima; factor is what older sums must be scaled by. kMasked: some row may not
/// see some of the positions.
template <bool kMasked, int kScores>
__device__ __forceinline__ void TakeSoftmax(float scale_log2, SoftmaxRows& rows, int first,
                                            int lane, float (&scores)[kScores],
                                            float (&factor)[2]) {
  if constexpr (kMasked) {
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      const int position = first + i / 4 * 8 + lane % 4 * 2 + i % 2;
      if (position > rows.last_seen[i % 4 / 2]) scores[i] = -INFINITY;
    }
  }
  float largest[2] = {scores[0], scores[2]};
#pragma unroll
  for (int i = 1; i < kScores; ++i) {
    largest[i % 4 / 2] = fmaxf(largest[i % 4 / 2], scores[i]);
  }
  float shift[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    largest[r] = fmaxf(largest[r], __shfl_xor_sync(kAllLanes, largest[r], 1));
    largest[r] = fmaxf(largest[r], __shfl_xor_sync(kAllLanes, largest[r], 2));
    largest[r] = fmaxf(largest[r] * scale_log2, rows.largest[r]);
    shift[r] = largest[r] == -INFINITY ? 0.0f : largest[r];
    factor[r] = ApproximateExp2(rows.largest[r] - shift[r]);
    rows.largest[r] = largest[r];
    rows.sum[r] *= factor[r];
  }
#pragma unroll
  for (int i = 0; i < kScores; ++i) {
    scores[i] = ApproximateExp2(fmaf(scores[i], scale_log2, -shift[i % 4 / 2]));
    rows.sum[i % 4 / 2] += scores[i];
  }
}

/// Keeps the softmax before the WgmmaWait() that follows. Nothing orders arithmetic with a wait,
/// and ptxas puts the wait first: the softmax would not overlap with the product that is waited
/// for. It does keep barriers' order, so here is an arrival that depends on every probability. It
/// never happens: no sum is negative.
__device__ __forceinline__ void SoftmaxBeforeWait(const SoftmaxRows& rows, uint64_t& barrier) {
  if (rows.sum[0] + rows.sum[1] < 0) BarrierArrive(SharedAddress(&barrier));
}

/// Probabilities as the second product's operand takes them, 16 positions a row.
template <int kScores>
__device__ __forceinline__ void PackProbabilities(const float (&scores)[kScores],
                                                  uint32_t (&probabilities)[kScores / 8][4]) {
#pragma unroll
  for (int k = 0; k < kScores / 8; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      probabilities[k][i] = PackBf16(scores[8 * k + 2 * i], scores[8 * k + 2 * i + 1]);
    }
  }
}

/// Whether a row of this warp has a new maximum. Once a few positions are seen most steps have
/// none.
__device__ __forceinline__ bool ScalesSums(const float (&factor)[2]) {
  return __any_sync(kAllLanes, factor[0] != 1.0f || factor[1] != 1.0f);
}

template <int kCount>
__device__ __forceinline__ void ScaleSums(const float (&factor)[2], float (&out)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) out[i] *= factor[i % 4 / 2];
}

/// Zeros rows first_zero .. rows - 1 of `boxes` boxes of 64 16-bit columns: a masked probability of
/// 0 times NaN is NaN. 128 threads, which must meet before the tensor cores read.
__device__ __forceinline__ void ZeroRowsPast(uint8_t* boxes_begin, int boxes, int box_bytes,
                                             int first_zero, int rows, int thread) {
  const int vectors = boxes * 8;
  for (int i = first_zero * vectors + thread; i < rows * vectors; i += 128) {
    const int row = i / vectors;
    const int vector = i % vectors;
    *reinterpret_cast<uint4*>(boxes_begin + vector / 8 * box_bytes + row * 128 + vector % 8 * 16) =
        uint4{0, 0, 0, 0};
  }
  AsyncProxyFence();
}

}  // namespace glm::cuda
