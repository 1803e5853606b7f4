// What the attention kernels on wgmma share: the running softmax of a tile's rows, sums over
// sequences, and zeros behind the last position.
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

/// Two rows of a thread: the running softmax.
struct SoftmaxRows {
  float largest[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};
  int last_seen[2];
};

/// Scores of the kStep positions from `first` on become probabilities against the new maxima;
/// factor is what older sums must be scaled by. `masked`: some row may not see some of the
/// positions.
template <int kStep>
__device__ __forceinline__ void TakeSoftmax(float scale_log2, SoftmaxRows& rows, int first,
                                            int lane, bool masked, float (&scores)[kStep / 2],
                                            float (&factor)[2]) {
  float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
  for (int j = 0; j < kStep / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (masked && first + j * 8 + lane % 4 * 2 + i % 2 > rows.last_seen[i / 2]) {
        scores[4 * j + i] = -INFINITY;
      }
      largest[i / 2] = fmaxf(largest[i / 2], scores[4 * j + i]);
    }
  }
  float shift[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    largest[r] = fmaxf(largest[r], __shfl_xor_sync(kAllLanes, largest[r], 1));
    largest[r] = fmaxf(largest[r], __shfl_xor_sync(kAllLanes, largest[r], 2));
    largest[r] = fmaxf(largest[r] * scale_log2, rows.largest[r]);
    shift[r] = largest[r] == -INFINITY ? 0.0f : largest[r];
    factor[r] = exp2f(rows.largest[r] - shift[r]);
    rows.largest[r] = largest[r];
    rows.sum[r] *= factor[r];
  }
#pragma unroll
  for (int j = 0; j < kStep / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scores[4 * j + i] = exp2f(fmaf(scores[4 * j + i], scale_log2, -shift[i / 2]));
      rows.sum[i / 2] += scores[4 * j + i];
    }
  }
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
