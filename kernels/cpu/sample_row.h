// The steps of `sample` that change or report one row of logits, and what they look back at.
//
// Who calls: sample.cc, for a row at a time on any thread of the pool; draft.cc the history.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/cpu/cpu_device.h"
#include "kernels/ops.h"

namespace glm::cpu {

inline constexpr float kBanned = -std::numeric_limits<float>::infinity();

/// A logit that compares: NaN is never sampled.
inline float Comparable(float logit) { return std::isnan(logit) ? kBanned : logit; }

/// Falling order: larger logits, then lower ids.
inline bool Before(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

/// The ids that a row's logits are of: [begin, end), those past vocabulary_used left out.
struct IdRange {
  explicit IdRange(const SampleArgs& args)
      : begin(args.vocabulary_begin),
        end(std::max(begin, std::min(args.vocabulary_used, begin + args.logits.shape[1]))) {}
  int64_t count() const { return end - begin; }

  int64_t begin;
  int64_t end;
};

/// The share of a logit relative to the largest one.
inline double Share(float logit, float largest) {
  // Equal infinities would give NaN.
  return logit == largest ? 1.0 : std::exp(static_cast<double>(logit) - largest);
}

/// The ids of a sequence, found through its block table.
class History {
 public:
  History(const TokenCache& cache, const BatchView& batch, int32_t sequence)
      : ids_(cache.ids.Data<int32_t>()),
        block_size_(cache.ids.shape[1]),
        blocks_(batch.block_tables.Row<int32_t>(sequence)) {}

  /// REQUIRES that the position has been stored.
  int32_t At(int64_t position) const { return ids_[Cell(position)]; }
  /// Where the cache keeps the id of a position.
  int64_t Cell(int64_t position) const {
    return int64_t{blocks_[position / block_size_]} * block_size_ + position % block_size_;
  }

 private:
  const int32_t* ids_;
  int64_t block_size_;
  const int32_t* blocks_;
};

/// Writes row r of args.logprobs, of `id`. `logits` are the row's as they came, NaN replaced;
/// `candidates` is room for as many.
void WriteLogprobs(const SampleArgs& args, int64_t r, int32_t id, const float* logits,
                   Candidate* candidates);

/// Penalties, edits and mask, in place. `counts` is room for an entry an id.
void ShapeLogits(const SampleArgs& args, const SampleRow& row, float* logits, Candidate* counts);

/// The lowest id of the range that the row's mask allows; -1 where it allows none.
int32_t LowestAllowed(const SampleArgs& args, const SampleRow& row);

}  // namespace glm::cpu
