// One id a logit row, without sorting the vocabulary.
//
// A cluster of 8 blocks keeps a row's logits in registers. Order is by (logit falling, id rising),
// so each question of the contract is the same one: at which element does the running sum of
// weights reach a target? top-k asks it with weight 1, top-p and the draw with the probability. A
// histogram over the distance to the largest logit, in steps of 1/64, finds the bin; the few logits
// in it are then compared each with each. Where they are many (equal logits, say), three more
// histograms over the bits of the logit decide. Equal logits have equal weights, so the place
// within a tie follows by division. top-p and the draw share one histogram.
//
// Probabilities are 33-bit fixed point: sums are exact, so a row's id depends on nothing but the
// row. A histogram is two of 32-bit words, for the low 17 and the high bits, since shared memory
// adds those in hardware. One row of 151,552 on an H100: 295 us with 64-bit words and one addition
// per bin and warp (match_any), 145 us with 32-bit words but bins of the logit's exponent, where
// most meet in a few.

#include <cooperative_groups.h>

#include <array>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/warp.cuh"
#include "kernels/philox.h"

namespace glm::cuda {
namespace {

namespace cg = cooperative_groups;

constexpr int kCluster = 8;
constexpr int kThreads = 1024;
constexpr int kBins = 2048;
constexpr float kMassOne = 8589934592.0f;  // 2^33: the weight of probability exp(0)
constexpr int kLowBits = 17;               // of a weight, that the low words of a histogram add

using Mass = unsigned long long;

struct SampleParams {
  const int32_t* counts;
  const float* logits;
  int64_t logits_stride;
  int vocabulary;
  const SampleRow* rows;
  int32_t* out_ids;
  int32_t* last_ids;
};

/// Larger floats have larger keys; both zeros have the same one; NaN counts as minus infinity.
__device__ __forceinline__ uint32_t KeyOf(float value) {
  if (isnan(value)) value = -INFINITY;
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

__device__ Mass WarpSumMass(Mass value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

/// Sum over the cluster, in every thread.
__device__ Mass ClusterSum(cg::cluster_group& cluster, SharedState& shared, Mass value) {
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
__device__ Mass ClusterMax(cg::cluster_group& cluster, SharedState& shared, Mass value) {
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
  return __float2ull_rn(__expf(ValueOf(key) - largest) * kMassOne);
}

constexpr int kBinsPerThread = kBins / kThreads;

/// Thread t has bins 2047 - 2t and 2046 - 2t.
__device__ __forceinline__ int BinOf(int b) {
  return kBins - 1 - (static_cast<int>(threadIdx.x) * kBinsPerThread + b);
}

/// Bins of the first histogram: distance to the largest, in steps of 1/64, the last bin without
/// end.
__device__ __forceinline__ int DistanceBin(uint32_t key, float largest) {
  return kBins - 1 - static_cast<int>(fminf((largest - ValueOf(key)) * 64.0f, kBins - 1.0f));
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
                          const uint32_t (&keys)[kPerThread], int valid, float largest,
                          bool by_mass, const BinRule& rule, Mass (&bins)[kBinsPerThread]) {
  auto& histogram = shared.histogram;
  for (int b = threadIdx.x; b < kBins; b += kThreads) {
    histogram.low[b] = 0;
    histogram.high[b] = 0;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (i >= valid) continue;
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
__device__ void FindBin(SharedState& shared, const Mass (&bins)[kBinsPerThread], Mass target) {
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
                                 const uint32_t (&keys)[kPerThread], int valid, float largest,
                                 int distance_bin) {
  if (threadIdx.x == 0) shared.own_count = 0;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (i >= valid || DistanceBin(keys[i], largest) != distance_bin) continue;
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
__device__ Cut CutCandidates(SharedState& shared, int count, float largest, bool by_mass,
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
                      const uint32_t (&keys)[kPerThread], int valid, float largest, bool by_mass,
                      const Mass (&distance_bins)[kBinsPerThread], Mass target) {
  FindBin(shared, distance_bins, target);
  BinRule rule;
  rule.distance_bin = shared.bin;
  Mass before = shared.before;
  const int count = CollectCandidates(cluster, shared, keys, valid, largest, rule.distance_bin);
  if (count >= 0) return CutCandidates(shared, count, largest, by_mass, before, target);
#pragma unroll 1
  for (int round = 0; round < 3; ++round) {
    rule.shift = round == 0 ? 21 : round == 1 ? 10 : 0;
    rule.mask = round == 2 ? 0x3FF : 0x7FF;
    Mass bins[kBinsPerThread];
    CountBins(cluster, shared, keys, valid, largest, by_mass, rule, bins);
    FindBin(shared, bins, target - before);
    rule.prefix |= static_cast<uint32_t>(shared.bin) << rule.shift;
    rule.prefix_mask |= rule.mask << rule.shift;
    before += shared.before;
  }
  return Cut{rule.prefix, before};
}

template <int kPerThread>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kThreads, 1)
    SampleKernel(const SampleParams p) {
  __shared__ SharedState shared;
  cg::cluster_group cluster = cg::this_cluster();
  const int row_index = blockIdx.y;
  if (row_index >= p.counts[2]) return;
  const SampleRow row = p.rows[row_index];
  const float* logits = p.logits + row_index * p.logits_stride;
  const int slice = (p.vocabulary + kCluster - 1) / kCluster;
  const int first = static_cast<int>(cluster.block_rank()) * slice + threadIdx.x;
  const int end = min(p.vocabulary, (static_cast<int>(cluster.block_rank()) + 1) * slice);
  // Elements i < valid of this thread have ids first + i * kThreads.
  const int valid = first < end ? (end - first + kThreads - 1) / kThreads : 0;
  const bool greedy = row.temperature == 0.0f;

  uint32_t keys[kPerThread];
  Mass best = 0;  // (key, lowest id)
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    keys[i] = 0;
    if (i < valid) {
      const int id = first + i * kThreads;
      const float logit = logits[id];
      keys[i] = KeyOf(greedy ? logit : logit / row.temperature);
      const Mass candidate = (static_cast<Mass>(keys[i]) << 32) | ~static_cast<uint32_t>(id);
      best = max(best, candidate);
    }
  }
  best = ClusterMax(cluster, shared, best);
  if (greedy) {
    if (cluster.block_rank() == 0 && threadIdx.x == 0) {
      const auto id = static_cast<int32_t>(~static_cast<uint32_t>(best));
      p.out_ids[row_index] = id;
      if (row.slot >= 0) p.last_ids[row.slot] = id;
    }
    return;
  }
  const float largest = ValueOf(static_cast<uint32_t>(best >> 32));

  Mass bins[kBinsPerThread];
  Mass kept = 0;
  if (row.top_k > 0 && row.top_k < p.vocabulary) {
    // The mass that top-k keeps.
    const Mass target = static_cast<Mass>(row.top_k);
    CountBins(cluster, shared, keys, valid, largest, false, BinRule(), bins);
    const Cut cut = Select(cluster, shared, keys, valid, largest, false, bins, target);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      if (i < valid && keys[i] > cut.key) kept += MassOf(keys[i], largest);
    }
    kept = ClusterSum(cluster, shared, kept) + (target - cut.before) * MassOf(cut.key, largest);
  }
  CountBins(cluster, shared, keys, valid, largest, true, BinRule(), bins);
  if (kept == 0) {
    // Every block has the whole histogram.
#pragma unroll
    for (int b = 0; b < kBinsPerThread; ++b) kept += bins[b];
    kept = WarpSumMass(kept);
    __syncthreads();
    if (threadIdx.x % kWarp == 0) shared.warp_sums[threadIdx.x / kWarp] = kept;
    __syncthreads();
    kept = WarpSumMass(shared.warp_sums[threadIdx.x % kWarp]);
    __syncthreads();
  }

  // The mass that top-p keeps of it.
  if (row.top_p < 1.0f) {
    const double wanted = ceil(static_cast<double>(row.top_p) * static_cast<double>(kept));
    const Mass target = min(kept, max(Mass{1}, static_cast<Mass>(wanted)));
    const Cut cut = Select(cluster, shared, keys, valid, largest, true, bins, target);
    const Mass weight = MassOf(cut.key, largest);
    kept = cut.before + (target - cut.before + weight - 1) / weight * weight;
  }

  const float uniform = PhiloxUniform(row.seed, PhiloxStream::kSample, row.position);
  const Mass drawn = static_cast<Mass>(static_cast<double>(uniform) * static_cast<double>(kept));
  const Mass target = min(kept, drawn + 1);
  const Cut cut = Select(cluster, shared, keys, valid, largest, true, bins, target);
  // The place among equal logits, from 0, and then its block, its register and its thread.
  Mass place = (target - cut.before - 1) / MassOf(cut.key, largest);
  int own_ties = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) own_ties += i < valid && keys[i] == cut.key;
  const Mass warp_ties = WarpSumMass(own_ties);
  if (threadIdx.x % kWarp == 0) shared.warp_sums[threadIdx.x / kWarp] = warp_ties;
  __syncthreads();
  if (threadIdx.x < kWarp) {
    const Mass sum = WarpSumMass(shared.warp_sums[threadIdx.x]);
    if (threadIdx.x == 0) shared.exchange = sum;
  }
  cluster.sync();
  Mass block_ties = 0;
  bool here = false;
  for (int rank = 0; rank < kCluster; ++rank) {
    block_ties = *cluster.map_shared_rank(&shared.exchange, rank);
    here = static_cast<int>(cluster.block_rank()) == rank;
    if (place < block_ties) break;
    place -= block_ties;
    here = false;
  }
  cluster.sync();
  if (!here) return;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const bool tie = i < valid && keys[i] == cut.key;
    const uint32_t votes = __ballot_sync(kAllLanes, tie);
    const int warp = threadIdx.x / kWarp;
    if (threadIdx.x % kWarp == 0) shared.warp_sums[warp] = __popc(votes);
    __syncthreads();
    Mass before = 0;
    Mass total = 0;
    for (int w = 0; w < kWarp; ++w) {
      if (w < warp) before += shared.warp_sums[w];
      total += shared.warp_sums[w];
    }
    before += __popc(votes & ((1u << (threadIdx.x % kWarp)) - 1));
    if (tie && before == place) {
      const int32_t id = first + i * kThreads;
      p.out_ids[row_index] = id;
      if (row.slot >= 0) p.last_ids[row.slot] = id;
    }
    place = place < total ? ~Mass{0} : place - total;
    __syncthreads();
  }
}

}  // namespace

void Sample(Device& device, const SampleArgs& args) {
  const OpScope op(device, "sample");
  const int64_t rows = args.logits.shape[0];
  CheckShape(args.logits, DType::kF32, {-1, -1}, "sample.logits");
  CheckShape(args.out_ids, DType::kI32, {rows}, "sample.out_ids");
  CHECK(args.vocabulary_used >= 1 && args.vocabulary_used <= args.logits.shape[1])
      << "vocabulary_used " << args.vocabulary_used;
  const SampleParams params = {
      .counts = args.batch.counts.Data<int32_t>(),
      .logits = args.logits.Data<float>(),
      .logits_stride = args.logits.stride[0],
      .vocabulary = static_cast<int>(args.vocabulary_used),
      .rows = args.rows,
      .out_ids = args.out_ids.Data<int32_t>(),
      .last_ids = args.batch.last_ids.Data<int32_t>(),
  };
  const dim3 grid(kCluster, static_cast<unsigned>(rows));
  constexpr int64_t kPerCluster = kCluster * kThreads;
  CHECK_LE(args.vocabulary_used, 32 * kPerCluster) << "sample: vocabulary of at most 262144";
  if (args.vocabulary_used <= 2 * kPerCluster) {
    SampleKernel<2><<<grid, kThreads, 0, op.stream()>>>(params);
  } else if (args.vocabulary_used <= 20 * kPerCluster) {
    SampleKernel<20><<<grid, kThreads, 0, op.stream()>>>(params);
  } else {
    SampleKernel<32><<<grid, kThreads, 0, op.stream()>>>(params);
  }
}

}  // namespace glm::cuda
