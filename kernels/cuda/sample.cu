// One id a logit row, without sorting the vocabulary.
//
// A cluster of 8 blocks keeps a row's logits in registers, four neighbours a thread at a time.
// Penalties, edits and mask change them there (sample_shape.cuh). top-k and top-p each end in a
// cut, a place in the order of (logit falling, id rising) that says which elements are kept
// (sample_select.cuh); min-p is a comparison. Among the kept the exponential race is one more
// largest value. Logprobs are of the logits as they came, which are read again: alternatives are
// the largest, one after the other, below the one before. Of a rank's slice of the ids the same
// kernel gives the place of the best, which choose_candidates.cu compares with the other ranks'.

#include <algorithm>
#include <array>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/sample_select.cuh"
#include "kernels/cuda/sample_shape.cuh"
#include "kernels/philox.h"

namespace glm::cuda {
namespace {

struct SampleParams {
  const int32_t* counts;
  const float* logits;
  int64_t logits_stride;
  int first_id;  // of the first column
  int end_id;
  const SampleRow* rows;
  int32_t* out_ids;
  int32_t* last_ids;
  uint32_t* candidates;  // null: the ids are all there are
  int64_t candidates_stride;
  ShapeParams shape;
  float* logprob_values;
  int32_t* logprob_ids;
  int32_t* logprob_ranks;
};

/// No exponential is below 2^-33 nor above 17: nothing that is this much below the largest wins.
constexpr float kRaceMax = 27;

/// Which of the row's ids a thread has.
struct Slice {
  int begin;  // of the block
  int end;

  __device__ Slice(int first_id, int end_id, int block) {
    const int size = (end_id - first_id + 4 * kCluster - 1) / (4 * kCluster) * 4;
    begin = min(end_id, first_id + block * size);
    end = min(end_id, begin + size);
  }
  __device__ int IdOf(int i) const {
    return begin + i / 4 * (4 * kThreads) + static_cast<int>(threadIdx.x) * 4 + i % 4;
  }
};

/// The row's logits of this thread; minus infinity past the end and for NaN. `logits` is where id 0
/// has its own, or would have it.
template <int kPerThread>
__device__ void LoadLogits(const float* logits, const Slice& slice, float (&values)[kPerThread]) {
  const bool vectors = reinterpret_cast<uintptr_t>(logits + slice.begin) % 16 == 0;
#pragma unroll
  for (int i = 0; i < kPerThread; i += 4) {
    const int id = slice.IdOf(i);
    float4 four = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    if (vectors && id + 3 < slice.end) {
      four = *reinterpret_cast<const float4*>(logits + id);
    } else {
      if (id < slice.end) four.x = logits[id];
      if (id + 1 < slice.end) four.y = logits[id + 1];
      if (id + 2 < slice.end) four.z = logits[id + 2];
      if (id + 3 < slice.end) four.w = logits[id + 3];
    }
    values[i] = four.x;
    values[i + 1] = four.y;
    values[i + 2] = four.z;
    values[i + 3] = four.w;
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (isnan(values[i])) values[i] = -INFINITY;
  }
}

/// An element and its place: larger keys first, then lower ids.
__device__ __forceinline__ Mass PlaceOf(uint32_t key, int id) {
  return (static_cast<Mass>(key) << 32) | ~static_cast<uint32_t>(id);
}
__device__ __forceinline__ int IdAt(Mass place) {
  return static_cast<int>(~static_cast<uint32_t>(place));
}
__device__ __forceinline__ uint32_t KeyAt(Mass place) { return static_cast<uint32_t>(place >> 32); }

/// As kernels/philox.h PhiloxExponential: for four ids at once, `group` = id / 4.
__device__ __forceinline__ void Exponentials(const SampleRow& row, uint32_t group,
                                             float (&draws)[4]) {
  const std::array<uint32_t, 4> bits =
      Philox({row.position, static_cast<uint32_t>(PhiloxStream::kSample), group, row.choice},
             {static_cast<uint32_t>(row.seed), static_cast<uint32_t>(row.seed >> 32)});
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float uniform = __fmul_rn(__fadd_rn(static_cast<float>(bits[j]), 0.5f), 2.3283064e-10f);
    draws[j] = -log1pf(-fminf(uniform, 0.99999994f));
  }
}

/// The same for four ids from `id` on, which need not be a multiple of 4: a rank's slice may begin
/// anywhere, though those of the models in use do not.
__device__ __forceinline__ void ExponentialsFrom(const SampleRow& row, uint32_t id,
                                                 float (&draws)[4]) {
  Exponentials(row, id / 4, draws);
  const uint32_t shift = id % 4;
  if (shift == 0) return;
  float next[4];
  Exponentials(row, id / 4 + 1, next);
  for (uint32_t s = 0; s < shift; ++s) {
    draws[0] = draws[1];
    draws[1] = draws[2];
    draws[2] = draws[3];
    draws[3] = next[0];
    next[0] = next[1];
    next[1] = next[2];
  }
}

/// The last place that is kept of the candidates; 0 keeps all.
template <int kPerThread>
__device__ Mass LastKept(const SampleParams& p, const SampleRow& row, cg::cluster_group& cluster,
                         SharedState& shared, const uint32_t (&keys)[kPerThread], float largest,
                         const Slice& slice) {
  const auto id_of = [&](int i) { return slice.IdOf(i); };
  const auto place_of_cut = [&](const Cut& cut, Mass ties) {
    const int id = LastTie(cluster, shared, keys, cut.key, ties, p.end_id, id_of);
    return PlaceOf(cut.key, id);
  };
  Mass last = 0;
  Mass bins[kBinsPerThread];
  if (row.top_k > 0) {
    Mass own = 0;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) own += keys[i] != kNoKey;
    const auto target = static_cast<Mass>(row.top_k);
    if (target < ClusterSum(cluster, shared, own)) {
      CountBins(cluster, shared, keys, largest, false, BinRule(), bins);
      const Cut cut = Select(cluster, shared, keys, largest, false, bins, target);
      last = place_of_cut(cut, target - cut.before);
    }
  }
  if (row.top_p >= 1.0f) return last;
  Mass own = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (keys[i] != kNoKey && PlaceOf(keys[i], id_of(i)) >= last) own += MassOf(keys[i], largest);
  }
  const Mass kept = ClusterSum(cluster, shared, own);
  const double wanted = ceil(static_cast<double>(row.top_p) * static_cast<double>(kept));
  const Mass target = min(kept, max(Mass{1}, static_cast<Mass>(wanted)));
  CountBins(cluster, shared, keys, largest, true, BinRule(), bins);
  const Cut cut = Select(cluster, shared, keys, largest, true, bins, target);
  const Mass weight = MassOf(cut.key, largest);
  return max(last, place_of_cut(cut, (target - cut.before + weight - 1) / weight));
}

/// The place, by score, of the id that a row draws of its logits / temperature, which `keys` stand
/// for.
template <int kPerThread>
__device__ Mass Draw(const SampleParams& p, const SampleRow& row, cg::cluster_group& cluster,
                     SharedState& shared, const uint32_t (&keys)[kPerThread], float largest,
                     const Slice& slice) {
  const Mass last = LastKept(p, row, cluster, shared, keys, largest, slice);
  Mass best = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; i += 4) {
    bool runs[4];
    bool any = false;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float value = ValueOf(keys[i + j]);
      runs[j] = keys[i + j] != kNoKey && PlaceOf(keys[i + j], slice.IdOf(i + j)) >= last &&
                (value == largest || largest - value < kRaceMax);
      if (runs[j] && row.min_p > 0.0f) {
        runs[j] = value == largest || expf(value - largest) >= row.min_p;
      }
      any = any || runs[j];
    }
    if (!any) continue;
    float draws[4];
    ExponentialsFrom(row, static_cast<uint32_t>(slice.IdOf(i)), draws);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (!runs[j]) continue;
      const uint32_t score = KeyOf(ValueOf(keys[i + j]) - logf(draws[j]));
      best = max(best, PlaceOf(score, slice.IdOf(i + j)));
    }
  }
  return ClusterMax(cluster, shared, best);
}

/// The place, with key 1, of the lowest id that the row's mask allows; 0 where it allows none.
__device__ Mass LowestAllowed(const SampleParams& p, const SampleRow& row,
                              cg::cluster_group& cluster, SharedState& shared, const Slice& slice) {
  Mass best = 0;
  for (int id = slice.begin + static_cast<int>(threadIdx.x); id < slice.end; id += kThreads) {
    if (!MaskAllows(p.shape, row, id)) continue;
    best = PlaceOf(1, id);
    break;
  }
  return ClusterMax(cluster, shared, best);
}

/// Steps 2 to 5 of the contract: the place of what is chosen, 0 where that is nothing.
template <int kPerThread>
__device__ Mass Choose(const SampleParams& p, const SampleRow& row, cg::cluster_group& cluster,
                       SharedState& shared, uint32_t* words, const float* logits,
                       const Slice& slice) {
  const auto id_of = [&](int i) { return slice.IdOf(i); };
  uint32_t keys[kPerThread];
  {
    float values[kPerThread];
    LoadLogits(logits, slice, values);
    ShapeLogits(p.shape, row, slice.begin, slice.end, words, id_of, values);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      keys[i] = KeyOf(row.temperature == 0.0f ? values[i] : values[i] / row.temperature);
    }
  }
  Mass best = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (keys[i] != kNoKey) best = max(best, PlaceOf(keys[i], id_of(i)));
  }
  best = ClusterMax(cluster, shared, best);
  if (best == 0) return LowestAllowed(p, row, cluster, shared, slice);
  if (row.temperature == 0.0f) return best;
  return Draw(p, row, cluster, shared, keys, ValueOf(KeyAt(best)), slice);
}

/// Writes the row's logprobs, of `id`.
template <int kPerThread>
__device__ void WriteLogprobs(const SampleParams& p, int row_index, int wanted, int id,
                              cg::cluster_group& cluster, SharedState& shared, const float* logits,
                              const Slice& slice) {
  float values[kPerThread];
  LoadLogits(logits, slice, values);
  float own_logit = logits[id];
  if (isnan(own_logit)) own_logit = -INFINITY;
  // Minus infinity is an alternative too, below all numbers: key 1 is no float's of ours.
  const auto key_of = [](float value) { return max(KeyOf(value), 1u); };
  Mass above = 0;
  Mass best = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (slice.IdOf(i) >= slice.end) continue;
    above += values[i] > own_logit;
    best = max(best, PlaceOf(key_of(values[i]), slice.IdOf(i)));
  }
  above = ClusterSum(cluster, shared, above);
  best = ClusterMax(cluster, shared, best);
  const auto value_at = [](Mass place) {
    return KeyAt(place) == 1 ? -INFINITY : ValueOf(KeyAt(place));
  };
  const float largest = value_at(best);
  float own_sum = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (slice.IdOf(i) >= slice.end) continue;
    own_sum += values[i] == largest ? 1.0f : expf(values[i] - largest);
  }
  const Mass total = ClusterSum(cluster, shared,
                                static_cast<Mass>(static_cast<double>(own_sum) * 17592186044416.0));
  const double log_total = log(static_cast<double>(total) / 17592186044416.0);  // 2^44
  const auto logprob = [&](float logit) {
    const double below = logit == largest ? 0.0 : static_cast<double>(logit) - largest;
    return static_cast<float>(below - log_total);
  };
  const bool writes = cluster.block_rank() == 0 && threadIdx.x == 0;
  float* out_values = p.logprob_values + static_cast<int64_t>(row_index) * (1 + kLogprobsMax);
  int32_t* out_ids = p.logprob_ids + static_cast<int64_t>(row_index) * (1 + kLogprobsMax);
  if (writes) {
    out_values[0] = logprob(own_logit);
    out_ids[0] = id;
    p.logprob_ranks[row_index] = 1 + static_cast<int32_t>(above);
  }
  for (int n = 0; n < wanted; ++n) {
    if (writes) {
      out_values[1 + n] = best == 0 ? -INFINITY : logprob(value_at(best));
      out_ids[1 + n] = best == 0 ? -1 : IdAt(best);
    }
    if (n + 1 == wanted) break;
    const Mass bound = best;
    Mass next = 0;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      if (slice.IdOf(i) >= slice.end) continue;
      const Mass place = PlaceOf(key_of(values[i]), slice.IdOf(i));
      if (place < bound) next = max(next, place);
    }
    best = ClusterMax(cluster, shared, next);
  }
}

template <int kPerThread>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kThreads, 1)
    SampleKernel(const SampleParams p) {
  __shared__ SharedState shared;
  extern __shared__ uint32_t words[];
  cg::cluster_group cluster = cg::this_cluster();
  const int row_index = blockIdx.y;
  if (row_index >= p.counts[2]) return;
  const SampleRow row = p.rows[row_index];
  const float* logits = p.logits + row_index * p.logits_stride - p.first_id;
  const Slice slice(p.first_id, p.end_id, static_cast<int>(cluster.block_rank()));
  const bool writes = cluster.block_rank() == 0 && threadIdx.x == 0;
  int id = row.target_id;
  if (id < 0) {
    const Mass place = Choose<kPerThread>(p, row, cluster, shared, words, logits, slice);
    id = place == 0 ? 0 : IdAt(place);
    if (p.candidates != nullptr) {
      if (!writes) return;
      uint32_t* candidate = p.candidates + row_index * p.candidates_stride;
      candidate[0] = KeyAt(place);
      candidate[1] = static_cast<uint32_t>(id);
      return;
    }
  }
  if (writes) {
    p.out_ids[row_index] = id;
    if (row.slot >= 0) p.last_ids[row.slot] = id;
  }
  if (row.logprobs >= 0 && p.logprob_values != nullptr) {
    WriteLogprobs<kPerThread>(p, row_index, row.logprobs, id, cluster, shared, logits, slice);
  }
}

void CheckSample(const SampleArgs& args, int64_t rows) {
  const int64_t vocabulary = args.vocabulary_used;
  CheckShape(args.logits, DType::kF32, {rows, -1}, "sample.logits");
  CHECK_GE(vocabulary, 1);
  if (args.candidates.empty()) {
    CheckShape(args.out_ids, DType::kI32, {rows}, "sample.out_ids");
    CHECK(args.vocabulary_begin == 0 && vocabulary <= args.logits.shape[1]) << vocabulary;
  } else {
    CheckShape(args.candidates, DType::kF32, {rows, 2}, "sample.candidates");
    CHECK_GE(args.vocabulary_begin, 0);
    CHECK(args.logprobs.values.empty()) << "logprobs of a slice";
  }
  if (!args.tokens.ids.empty()) {
    CheckShape(args.tokens.ids, DType::kI32, {-1, -1}, "sample.tokens");
    CHECK(args.tokens.ids.contiguous());
  }
  if (!args.masks.empty()) {
    CheckShape(args.masks, DType::kI32, {-1, (vocabulary + 31) / 32}, "sample.masks");
    CHECK(args.masks.contiguous());
  }
  if (args.logprobs.values.empty()) return;
  CheckShape(args.logprobs.values, DType::kF32, {rows, 1 + kLogprobsMax}, "sample.values");
  CheckShape(args.logprobs.ids, DType::kI32, {rows, 1 + kLogprobsMax}, "sample.ids");
  CheckShape(args.logprobs.ranks, DType::kI32, {rows}, "sample.ranks");
}

template <int kPerThread>
void Launch(cudaStream_t stream, int64_t rows, const SampleParams& params) {
  // A word for each id of a block's slice.
  constexpr int kBytes = kPerThread * kThreads * 4;
  CUDA_CHECK(cudaFuncSetAttribute(SampleKernel<kPerThread>,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const dim3 grid(kCluster, static_cast<unsigned>(rows));
  SampleKernel<kPerThread><<<grid, kThreads, kBytes, stream>>>(params);
}

}  // namespace

void Sample(Device& device, const SampleArgs& args) {
  const OpScope op(device, "sample");
  const int64_t rows = args.logits.shape[0];
  CheckSample(args, rows);
  const BatchView& batch = args.batch;
  const int64_t first_id = args.vocabulary_begin;
  const int64_t end_id =
      std::max(first_id, std::min(args.vocabulary_used, first_id + args.logits.shape[1]));
  const SampleParams params = {
      .counts = batch.counts.Data<int32_t>(),
      .logits = args.logits.Data<float>(),
      .logits_stride = args.logits.stride[0],
      .first_id = static_cast<int>(first_id),
      .end_id = static_cast<int>(end_id),
      .rows = args.rows,
      .out_ids = args.out_ids.Data<int32_t>(),
      .last_ids = batch.last_ids.Data<int32_t>(),
      .candidates = args.candidates.Data<uint32_t>(),
      .candidates_stride = args.candidates.stride[0],
      .shape = {.tokens = args.tokens.ids.Data<int32_t>(),
                .block_size =
                    args.tokens.ids.empty() ? 1 : static_cast<int>(args.tokens.ids.shape[1]),
                .block_tables = batch.block_tables.Data<int32_t>(),
                .block_tables_stride = batch.block_tables.stride[0],
                .edits = args.edits,
                .edit_contexts = args.edit_contexts,
                .masks = args.masks.Data<int32_t>(),
                .mask_words = static_cast<int>((args.vocabulary_used + 31) / 32)},
      .logprob_values = args.logprobs.values.Data<float>(),
      .logprob_ids = args.logprobs.ids.Data<int32_t>(),
      .logprob_ranks = args.logprobs.ranks.Data<int32_t>(),
  };
  constexpr int64_t kPerCluster = kCluster * kThreads;
  const int64_t ids = end_id - first_id;
  CHECK_LE(ids, 32 * kPerCluster) << "sample: vocabulary of at most 262144";
  if (ids <= 4 * kPerCluster) {
    Launch<4>(op.stream(), rows, params);
  } else if (ids <= 20 * kPerCluster) {
    Launch<20>(op.stream(), rows, params);
  } else {
    Launch<32>(op.stream(), rows, params);
  }
}

}  // namespace glm::cuda
