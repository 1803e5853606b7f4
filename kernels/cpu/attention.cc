// Attention over the paged cache: one pass over the keys with a running maximum.
//
// The cache is read in chunks that end at fixed positions, so a token's result does not depend on
// what else is in the step.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/lanes.h"

namespace glm::cpu {
namespace {

constexpr int64_t kChunk = 64;  // positions of one softmax update, at most

/// Up to four query heads that share one kv head, for one token.
template <typename T>
class HeadGroup {
 public:
  HeadGroup(const AttentionArgs& args, int64_t token, int64_t kv_head, int64_t first_head,
            int heads)
      : args_(args),
        head_size_(args.cache.keys.shape[3]),
        token_(token),
        kv_head_(kv_head),
        first_head_(first_head),
        heads_(heads) {}

  /// Writes heads_ x D floats to `out`.
  void Run(float* out) {
    LoadQueries();
    std::fill_n(out, heads_ * head_size_, 0.0f);
    std::fill_n(largest_, heads_, -std::numeric_limits<float>::infinity());
    std::fill_n(total_, heads_, 0.0f);

    const BatchView& batch = args_.batch;
    const int64_t block_size = args_.cache.keys.shape[2];
    const int64_t sequence = batch.token_sequences.Data<int32_t>()[token_];
    const int64_t end = batch.positions.Data<int32_t>()[token_] + int64_t{1};
    const int32_t* table = batch.block_tables.Row<int32_t>(sequence);
    DCHECK((end - 1) / block_size < batch.block_tables.shape[1]);
    for (int64_t position = 0; position < end;) {
      const int64_t slot = position % block_size;
      const int64_t count = std::min({kChunk, block_size - slot, end - position});
      AddChunk(table[position / block_size], slot, static_cast<int>(count), out);
      position += count;
    }
    for (int h = 0; h < heads_; ++h) {
      for (int64_t d = 0; d < head_size_; ++d) out[h * head_size_ + d] /= total_[h];
    }
  }

 private:
  void LoadQueries() {
    const T* source = args_.queries.Row<T>(token_) + first_head_ * head_size_;
    for (int64_t i = 0; i < heads_ * head_size_; ++i) queries_[i] = ToFloat(source[i]);
  }

  const T* Cell(const Tensor& tensor, int64_t block, int64_t slot) const {
    return tensor.Data<T>() + block * tensor.stride[0] + kv_head_ * tensor.stride[1] +
           slot * tensor.stride[2];
  }

  void AddChunk(int64_t block, int64_t slot, int count, float* out) {
    const Tensor& keys = args_.cache.keys;
    const Tensor& values = args_.cache.values;
    DCHECK(block >= 0 && block < keys.shape[0]);
    const float* rows[kWeightedHeadsMax];
    for (int h = 0; h < heads_; ++h) rows[h] = queries_ + h * head_size_;
    float factors[kWeightedHeadsMax * kChunk];
    float sums[kWeightedHeadsMax * kDotOutputsMax];
    for (int begin = 0; begin < count; begin += kDotOutputsMax) {
      const int outputs = std::min(kDotOutputsMax, count - begin);
      DotBlock(rows, heads_, Cell(keys, block, slot + begin), keys.stride[2], outputs, head_size_,
               sums);
      for (int h = 0; h < heads_; ++h) {
        for (int n = 0; n < outputs; ++n) {
          factors[h * kChunk + begin + n] = sums[h * kDotOutputsMax + n] * args_.scale;
        }
      }
    }
    for (int h = 0; h < heads_; ++h) {
      Rescale(h, factors + h * kChunk, count, out + h * head_size_);
    }
    AddWeightedRows(factors, kChunk, heads_, Cell(values, block, slot), values.stride[2], count,
                    head_size_, out, head_size_);
  }

  /// Turns scores into factors relative to the largest score so far, and `sum` with them.
  void Rescale(int h, float* scores, int count, float* sum) {
    const float largest = std::max(largest_[h], *std::max_element(scores, scores + count));
    if (largest > largest_[h]) {
      const float factor = std::exp(largest_[h] - largest);
      total_[h] *= factor;
      for (int64_t d = 0; d < head_size_; ++d) sum[d] *= factor;
      largest_[h] = largest;
    }
    for (int i = 0; i < count; ++i) {
      scores[i] = std::exp(scores[i] - largest);
      total_[h] += scores[i];
    }
  }

  const AttentionArgs& args_;
  const int64_t head_size_;
  const int64_t token_;
  const int64_t kv_head_;
  const int64_t first_head_;
  const int heads_;
  float largest_[kWeightedHeadsMax];
  float total_[kWeightedHeadsMax];
  float queries_[kWeightedHeadsMax * kHeadSizeMax];
};

}  // namespace

void Attention(Device& device, const AttentionArgs& args) {
  const DType act = args.queries.dtype;
  const int64_t rows_max = args.queries.shape[0];
  const int64_t columns = args.queries.shape[1];
  const int64_t kv_heads = args.cache.keys.shape[1];
  const int64_t head_size = args.cache.keys.shape[3];
  const int64_t query_heads = columns / head_size;
  const int64_t group = query_heads / kv_heads;
  CHECK_LE(head_size, kHeadSizeMax);
  CheckShape(args.queries, act, {rows_max, group * kv_heads * head_size}, "attention.queries");
  CheckShape(args.cache.keys, act, {-1, kv_heads, -1, head_size}, "attention.keys");
  CheckShape(args.cache.values, act,
             {args.cache.keys.shape[0], kv_heads, args.cache.keys.shape[2], head_size},
             "attention.values");
  CheckOutputs(args.out, args.quantized, act, rows_max, columns, "attention.out");
  CpuDevice& cpu = CpuDevice::Of(device);
  const Scratch& scratch = cpu.scratch();
  const int64_t rows = ValidTokens(args.batch, rows_max);
  CHECK_LE(rows * columns, scratch.row_floats) << "the step is larger than PlanScratch was told";

  const int64_t parts = (group + kWeightedHeadsMax - 1) / kWeightedHeadsMax;
  WithActivationType(act, [&](auto type) {
    ParallelFor(cpu.pool(), rows * kv_heads * parts, 1, [&](int64_t i) {
      const int64_t token = i / (kv_heads * parts);
      const int64_t kv_head = i / parts % kv_heads;
      const int64_t first = i % parts * kWeightedHeadsMax;
      const int heads = static_cast<int>(std::min<int64_t>(kWeightedHeadsMax, group - first));
      const int64_t head = kv_head * group + first;
      HeadGroup<decltype(type)> heads_of_token(args, token, kv_head, head, heads);
      heads_of_token.Run(scratch.rows + token * columns + head * head_size);
    });
  });
  ParallelFor(cpu.pool(), rows, std::max<int64_t>(1, 8192 / columns), [&](int64_t token) {
    StoreRow(scratch.rows + token * columns, columns, act, token, args.out, args.quantized);
  });
}

}  // namespace glm::cpu
