// Attention of a few heads of one token over the paged cache: one pass over the keys with a running
// maximum.
//
// Who calls: attention.cc and mla_attention.cc, from any thread of the pool. The cache is read in
// chunks that end at fixed positions, so a token's result does not depend on what else is in the
// step. The element type of the cache is the template's.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/cpu/lanes.h"
#include "kernels/ops.h"

namespace glm::cpu {

/// Up to kWeightedHeadsMax query heads that share one kv head, for one token. Keys and values may
/// differ in width: `cache.values` may be a view of some columns of `cache.keys`.
template <typename Cell>
class HeadGroup {
 public:
  HeadGroup(const BatchView& batch, const KvLayer& cache, float scale, int64_t token,
            int64_t kv_head, int heads)
      : batch_(batch),
        cache_(cache),
        score_scale_(scale * cache.key_scale),
        key_size_(cache.keys.shape[3]),
        value_size_(cache.values.shape[3]),
        token_(token),
        kv_head_(kv_head),
        heads_(heads) {}

  /// `queries`: a row of keys' width per head. Writes a row of values' width per head to `out`.
  void Run(const float* queries, float* out) {
    for (int h = 0; h < heads_; ++h) queries_[h] = queries + h * key_size_;
    std::fill_n(out, heads_ * value_size_, 0.0f);
    std::fill_n(largest_, heads_, -std::numeric_limits<float>::infinity());
    std::fill_n(total_, heads_, 0.0f);

    const int64_t block_size = cache_.keys.shape[2];
    const int64_t sequence = batch_.token_sequences.Data<int32_t>()[token_];
    const int64_t end = batch_.positions.Data<int32_t>()[token_] + int64_t{1};
    const int32_t* table = batch_.block_tables.Row<int32_t>(sequence);
    DCHECK((end - 1) / block_size < batch_.block_tables.shape[1]);
    for (int64_t position = 0; position < end;) {
      const int64_t slot = position % block_size;
      const int64_t count = std::min({kChunk, block_size - slot, end - position});
      AddChunk(table[position / block_size], slot, static_cast<int>(count), out);
      position += count;
    }
    for (int h = 0; h < heads_; ++h) {
      for (int64_t d = 0; d < value_size_; ++d) {
        out[h * value_size_ + d] = out[h * value_size_ + d] / total_[h] * cache_.value_scale;
      }
    }
  }

 private:
  static constexpr int64_t kChunk = 64;  // positions of one softmax update, at most

  const Cell* CellAt(const Tensor& tensor, int64_t block, int64_t slot) const {
    return tensor.Data<Cell>() + block * tensor.stride[0] + kv_head_ * tensor.stride[1] +
           slot * tensor.stride[2];
  }

  void AddChunk(int64_t block, int64_t slot, int count, float* out) {
    const Tensor& keys = cache_.keys;
    const Tensor& values = cache_.values;
    DCHECK(block >= 0 && block < keys.shape[0]);
    float factors[kWeightedHeadsMax * kChunk];
    float sums[kWeightedHeadsMax * kDotOutputsMax];
    for (int begin = 0; begin < count; begin += kDotOutputsMax) {
      const int outputs = std::min(kDotOutputsMax, count - begin);
      DotBlock(queries_, heads_, CellAt(keys, block, slot + begin), keys.stride[2], outputs,
               key_size_, sums);
      for (int h = 0; h < heads_; ++h) {
        for (int n = 0; n < outputs; ++n) {
          factors[h * kChunk + begin + n] = sums[h * kDotOutputsMax + n] * score_scale_;
        }
      }
    }
    for (int h = 0; h < heads_; ++h) {
      Rescale(h, factors + h * kChunk, count, out + h * value_size_);
    }
    AddWeightedRows(factors, kChunk, heads_, CellAt(values, block, slot), values.stride[2], count,
                    value_size_, out, value_size_);
  }

  /// Turns scores into factors relative to the largest score so far, and `sum` with them.
  void Rescale(int h, float* scores, int count, float* sum) {
    const float largest = std::max(largest_[h], *std::max_element(scores, scores + count));
    if (largest > largest_[h]) {
      const float factor = std::exp(largest_[h] - largest);
      total_[h] *= factor;
      for (int64_t d = 0; d < value_size_; ++d) sum[d] *= factor;
      largest_[h] = largest;
    }
    for (int i = 0; i < count; ++i) {
      scores[i] = std::exp(scores[i] - largest);
      total_[h] += scores[i];
    }
  }

  const BatchView& batch_;
  const KvLayer& cache_;
  const float score_scale_;
  const int64_t key_size_;
  const int64_t value_size_;
  const int64_t token_;
  const int64_t kv_head_;
  const int heads_;
  const float* queries_[kWeightedHeadsMax];
  float largest_[kWeightedHeadsMax];
  float total_[kWeightedHeadsMax];
};

}  // namespace glm::cpu
