// Where the running sum of weights over a row's elements, in falling order, reaches a target: found
// by a cluster of blocks that holds the row's keys in registers, without sorting.
//
// Who calls: sample.cu. top-k asks with weight 1, top-p with the probability. A histogram over the
// distance to the largest logit, in steps of 1/64, finds the bin; the few keys in it are then
// compared each with each. Where they are many (equal logits, say), three more histograms over the
// bits of the logit decide.
//
// Probabilities are 33-bit fixed point: sums are exact, so a row's id depends on nothing but the
// row. A histogram is two of 32-bit words, for the low 17 and the high bits, since shared memory
// adds those in hardware. One row of 151,552 on an H100: 295 us with 64-bit words and one addition
// per bin and warp (match_any), 145 us with 32-bit words but bins of the logit's exponent, where
// most meet in a few.
#pragma once

#include <cooperative_groups.h>

#include <climits>
#include <cstdint>

#include "kernels/cuda/warp.cuh"

namespace glm::cuda {

namespace cg = cooperative_groups;

constexpr int kCluster = 8;
constexpr int kThreads = 1024;
constexpr int kBins = 2048;
constexpr float kMassOne = 8589934592.0f;  // 2^33: the weight of probability exp(0)
constexpr int kLowBits = 17;               // of a weight, that the low words of a histogram add

using Mass = unsigned long long;

/// The key of an element that is no candidate; no number has it.
constexpr uint32_t kNoKey = 0;

/// Larger floats have larger keys; both zeros have the same one. NaN and minus infinity have none.
__device__ __forceinline__ uint32_t KeyOf(float value) {
  if (isnan(value) || value == -INFINITY) return kNoKey;
  const uint32_t bits = __float_as_uint(value + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float ValueOf(uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7FFFFFFFu : ~key);
}

constexpr int kCandidatesPerBlock = 256;
constexpr int kCandidatesMax = kCluster * kCandidatesPerBlock;

struct SharedState {
  union {
    struct {
      uint32_t low[kBins];
      uint32_t high[kBins];
    } histogram;
    Mass weights[kCandidatesMax];  // of the candidates
  };
  uint32_t own_candidates[kCandidatesPerBlock];  // keys of this block that fall in the bin
  uint32_t candidates[kCandidatesMax];           // of the cluster
  Mass warp_sums[kWarp];
  Mass exchange;  // what this block tells the others
  Mass before;    // the sum over the bins above the chosen one, or over the keys above the cut
  int bin;        // the chosen one
  int own_count;
  uint32_t cut_key;
};

__device__ inline Mass WarpSumMass(Mass value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

/// Sum over the cluster, in every thread.
__device__ inline Mass ClusterSum(cg::cluster_group& cluster, SharedState& shared, Mass value) {
  value = WarpSumMass(value);
  if (threadIdx.x % kWarp == 0) shared.warp_sums[threadIdx.x / kWarp] = value;
  __syncthreads();
  if (threadIdx.x < kWarp) {
    const Mass sum = WarpSumMass(shared.warp_sums[threadIdx.x]);
    if (threadIdx.x == 0) shared.exchange = sum;
  }
  cluster.sync();
  Mass total = 0;
#pragma unroll
  for (int rank = 0; rank < kCluster; ++rank) {
    total += *cluster.map_shared_rank(&shared.exchange, rank);
  }
  cluster.sync();
  return total;
}

/// Largest over the cluster, in every thread.
__device__ inline Mass ClusterMax(cg::cluster_group& cluster, SharedState& shared, Mass value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value = max(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  if (threadIdx.x % kWarp == 0) shared.warp_sums[threadIdx.x / kWarp] = value;
  __syncthreads();
  if (threadIdx.x < kWarp) {
    Mass best = shared.warp_sums[threadIdx.x];
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      best = max(best, __shfl_xor_sync(kAllLanes, best, offset));
    }
    if (threadIdx.x == 0) shared.exchange = best;
  }
  cluster.sync();
  Mass best = 0;
#pragma unroll
  for (int rank = 0; rank < kCluster; ++rank) {
    best = max(best, *cluster.map_shared_rank(&shared.exchange, rank));
  }
  cluster.sync();
  return best;
}

__device__ __forceinline__ Mass MassOf(uint32_t key, float largest) {
  const float value = ValueOf(key);
  // Equal infinities would give NaN.
  return __float2ull_rn((value == largest ? 1.0f : __expf(value - largest)) * kMassOne);
}

constexpr int kBinsPerThread = kBins / kThreads;

/// Thread t has bins 2047 - 2t and 2046 - 2t.
__device__ __forceinline__ int BinOf(int b) {
  return kBins - 1 - (static_cast<int>(threadIdx.x) * kBinsPerThread + b);
}

/// Bins of the first histogram: distance to the largest, in steps of 1/64, the last bin without
/// end.
__device__ __forceinline__ int DistanceBin(uint32_t key, float largest) {
  const float value = ValueOf(key);
  if (value == largest) return kBins - 1;
  return kBins - 1 - static_cast<int>(fminf((largest - value) * 64.0f, kBins - 1.0f));
}

/// Which keys a histogram counts, and their bins: all by distance (shift < 0), or those in
/// `distance_bin` that agree with `prefix` in the bits of `prefix_mask`, by bits shift.. .
struct BinRule {
  int shift = -1;
  uint32_t mask = 0;
  int distance_bin = 0;
  uint32_t prefix = 0;
  uint32_t prefix_mask = 0;
};

/// The histogram over the cluster. Weights are 1, or the masses.
template <int kPerThread>
__device__ void CountBins(cg::cluster_group& cluster, SharedState& shared,
                          const uint32_t (&keys)[kPerThread], float largest, bool by_mass,
                          const BinRule& rule, Mass (&bins)[kBinsPerThread]) {
  auto& histogram = shared.histogram;
  for (int b = threadIdx.x; b < kBins; b += kThreads) {
    histogram.low[b] = 0;
    histogram.high[b] = 0;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (keys[i] == kNoKey) continue;
    int bin = DistanceBin(keys[i], largest);
    if (rule.shift >= 0) {
      if (bin != rule.distance_bin || (keys[i] & rule.prefix_mask) != rule.prefix) continue;
      bin = static_cast<int>((keys[i] >> rule.shift) & rule.mask);
    }
    const Mass weight = by_mass ? MassOf(keys[i], largest) : 1;
    const auto low = static_cast<uint32_t>(weight & ((1u << kLowBits) - 1));
    const auto high = static_cast<uint32_t>(weight >> kLowBits);
    if (low != 0) atomicAdd(&histogram.low[bin], low);
    if (high != 0) atomicAdd(&histogram.high[bin], high);
  }
  cluster.sync();
#pragma unroll
  for (int b = 0; b < kBinsPerThread; ++b) {
    bins[b] = 0;
#pragma unroll
    for (int rank = 0; rank < kCluster; ++rank) {
      bins[b] += cluster.map_shared_rank(histogram.low, rank)[BinOf(b)];
      bins[b] += static_cast<Mass>(cluster.map_shared_rank(histogram.high, rank)[BinOf(b)])
                 << kLowBits;
    }
  }
  cluster.sync();
}

/// Finds the bin in which the sum from the highest bin down reaches `target`: shared.bin, with the
/// sum above it in shared.before, until the next call.
__device__ inline void FindBin(SharedState& shared, const Mass (&bins)[kBinsPerThread],
                               Mass target) {
  Mass own = 0;
#pragma unroll
  for (int b = 0; b < kBinsPerThread; ++b) own += bins[b];
  const int lane = threadIdx.x % kWarp;
  Mass inclusive = own;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const Mass other = __shfl_up_sync(kAllLanes, inclusive, offset);
    if (lane >= offset) inclusive += other;
  }
  if (lane == kWarp - 1) shared.warp_sums[threadIdx.x / kWarp] = inclusive;
  __syncthreads();
  Mass before = inclusive - own;
  for (int w = 0; w < static_cast<int>(threadIdx.x) / kWarp; ++w) before += shared.warp_sums[w];
#pragma unroll
  for (int b = 0; b < kBinsPerThread; ++b) {
    if (before < target && target <= before + bins[b]) {
      shared.bin = BinOf(b);
      shared.before = before;
    }
    before += bins[b];
  }
  __syncthreads();
}

struct Cut {
  uint32_t key;  // of the element at which the target is reached
  Mass before;   // summed weight of the larger keys
};

/// Brings the keys of the cluster that fall in `distance_bin` together; how many, or -1 if there
/// are too many.
template <int kPerThread>
__device__ int CollectCandidates(cg::cluster_group& cluster, SharedState& shared,
                                 const uint32_t (&keys)[kPerThread], float largest,
                                 int distance_bin) {
  if (threadIdx.x == 0) shared.own_count = 0;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (keys[i] == kNoKey || DistanceBin(keys[i], largest) != distance_bin) continue;
    const int place = atomicAdd(&shared.own_count, 1);
    if (place < kCandidatesPerBlock) shared.own_candidates[place] = keys[i];
  }
  cluster.sync();
  int total = 0;
  bool fits = true;
#pragma unroll
  for (int rank = 0; rank < kCluster; ++rank) {
    const int count = *cluster.map_shared_rank(&shared.own_count, rank);
    fits = fits && count <= kCandidatesPerBlock;
    if (fits && static_cast<int>(threadIdx.x) < count) {
      shared.candidates[total + threadIdx.x] =
          cluster.map_shared_rank(shared.own_candidates, rank)[threadIdx.x];
    }
    total += count;
  }
  cluster.sync();
  return fits ? total : -1;
}

/// The cut among `count` candidates; `before` is the weight above them.
__device__ inline Cut CutCandidates(SharedState& shared, int count, float largest, bool by_mass,
                                    Mass before, Mass target) {
  for (int i = threadIdx.x; i < count; i += kThreads) {
    shared.weights[i] = by_mass ? MassOf(shared.candidates[i], largest) : 1;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const uint32_t key = shared.candidates[i];
    Mass above = before;
    Mass ties = 0;
    for (int j = 0; j < count; ++j) {
      const uint32_t other = shared.candidates[j];
      if (other > key) above += shared.weights[j];
      if (other == key) ties += shared.weights[j];
    }
    if (above < target && target <= above + ties) {  // all of a tie write the same
      shared.cut_key = key;
      shared.before = above;
    }
  }
  __syncthreads();
  const Cut cut = {shared.cut_key, shared.before};
  __syncthreads();
  return cut;
}

/// Where the running sum of weights reaches `target`, which is at least 1 and at most the total.
/// `bins` is the histogram by distance, with the same weights.
template <int kPerThread>
__device__ Cut Select(cg::cluster_group& cluster, SharedState& shared,
                      const uint32_t (&keys)[kPerThread], float largest, bool by_mass,
                      const Mass (&distance_bins)[kBinsPerThread], Mass target) {
  FindBin(shared, distance_bins, target);
  BinRule rule;
  rule.distance_bin = shared.bin;
  Mass before = shared.before;
  const int count = CollectCandidates(cluster, shared, keys, largest, rule.distance_bin);
  if (count >= 0) return CutCandidates(shared, count, largest, by_mass, before, target);
#pragma unroll 1
  for (int round = 0; round < 3; ++round) {
    rule.shift = round == 0 ? 21 : round == 1 ? 10 : 0;
    rule.mask = round == 2 ? 0x3FF : 0x7FF;
    Mass bins[kBinsPerThread];
    CountBins(cluster, shared, keys, largest, by_mass, rule, bins);
    FindBin(shared, bins, target - before);
    rule.prefix |= static_cast<uint32_t>(shared.bin) << rule.shift;
    rule.prefix_mask |= rule.mask << rule.shift;
    before += shared.before;
  }
  return Cut{rule.prefix, before};
}

/// The last id of those with `key` that belong to the first `count`, in rising order of ids;
/// INT_MAX where those are all. `id_of(i)` is the id of element i of this thread.
template <int kPerThread, typename IdOf>
__device__ int LastTie(cg::cluster_group& cluster, SharedState& shared,
                       const uint32_t (&keys)[kPerThread], uint32_t key, Mass count, int vocabulary,
                       const IdOf& id_of) {
  const auto ties_up_to = [&](int last) {
    Mass own = 0;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) own += keys[i] == key && id_of(i) <= last;
    return ClusterSum(cluster, shared, own);
  };
  if (ties_up_to(vocabulary) <= count) return INT_MAX;
  int low = 0;
  int high = vocabulary;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (ties_up_to(middle) >= count) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

}  // namespace glm::cuda
