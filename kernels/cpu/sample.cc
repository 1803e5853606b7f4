// One id per logit row: greedy, or the inverse distribution function in falling order.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/philox.h"

namespace glm::cpu {
namespace {

/// A logit that compares: NaN is never sampled.
float Comparable(float logit) {
  return std::isnan(logit) ? -std::numeric_limits<float>::infinity() : logit;
}

/// Falling order: larger logits, then lower ids.
bool Before(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

int32_t Greedy(const float* logits, int64_t vocabulary) {
  int32_t best = 0;
  for (int64_t id = 1; id < vocabulary; ++id) {
    if (Comparable(logits[id]) > Comparable(logits[best])) best = static_cast<int32_t>(id);
  }
  return best;
}

/// The share of a candidate relative to the largest one.
double Share(float logit, float largest) {
  // Equal infinities would give NaN.
  return logit == largest ? 1.0 : std::exp(logit - largest);
}

/// Draws from `candidates`, all of the vocabulary in id order; reorders them. Only as much of the
/// falling order is made as the draw needs: a heap gives its next candidate.
int32_t Draw(const SampleRow& row, Candidate* candidates, int64_t count) {
  if (row.top_k > 0 && row.top_k < count) {
    std::nth_element(candidates, candidates + row.top_k - 1, candidates + count, Before);
    count = row.top_k;
  }
  const auto after = [](const Candidate& a, const Candidate& b) { return Before(b, a); };
  std::make_heap(candidates, candidates + count, after);
  const float largest = candidates[0].logit;
  double total = 0;
  for (int64_t i = 0; i < count; ++i) total += Share(candidates[i].logit, largest);

  // The i-th candidate in falling order moves to the array's end, at count - 1 - i.
  int64_t ordered = 0;
  const auto take_next = [&]() -> const Candidate& {
    std::pop_heap(candidates, candidates + count - ordered, after);
    return candidates[count - ++ordered];
  };
  double mass = total;
  if (row.top_p < 1) {
    mass = 0;
    while (ordered < count && mass < row.top_p * total) {
      mass += Share(take_next().logit, largest);
    }
  }
  const int64_t kept = row.top_p < 1 ? ordered : count;

  const double target = mass * PhiloxUniform(row.seed, PhiloxStream::kSample, row.position);
  double reached = 0;
  int32_t id = candidates[0].id;
  for (int64_t i = 0; i < kept; ++i) {
    const Candidate& next = i < ordered ? candidates[count - 1 - i] : take_next();
    const double share = Share(next.logit, largest);
    if (share == 0) break;  // rounding left a rest of the target: the last with a share has it
    id = next.id;
    reached += share;
    if (reached > target) break;
  }
  return id;
}

}  // namespace

void Sample(Device& device, const SampleArgs& args) {
  const int64_t rows_max = args.logits.shape[0];
  const int64_t vocabulary = args.vocabulary_used;
  CheckShape(args.logits, DType::kF32, {rows_max, -1}, "sample.logits");
  CheckShape(args.out_ids, DType::kI32, {rows_max}, "sample.out_ids");
  CHECK(vocabulary >= 1 && vocabulary <= args.logits.shape[1]) << vocabulary;
  CpuDevice& cpu = CpuDevice::Of(device);
  const int64_t rows = ValidLogitRows(args.batch, rows_max);
  CHECK_LE(rows * vocabulary, cpu.scratch().candidates_count)
      << "the step is larger than PlanScratch was told";
  ParallelFor(cpu.pool(), rows, 1, [&](int64_t r) {
    const SampleRow& row = args.rows[r];
    const float* logits = args.logits.Row<float>(r);
    int32_t id = 0;
    if (row.temperature == 0) {
      id = Greedy(logits, vocabulary);
    } else {
      Candidate* candidates = cpu.scratch().candidates + r * vocabulary;
      for (int64_t i = 0; i < vocabulary; ++i) {
        candidates[i] = {Comparable(logits[i] / row.temperature), static_cast<int32_t>(i)};
      }
      id = Draw(row, candidates, vocabulary);
    }
    args.out_ids.Data<int32_t>()[r] = id;
    if (row.slot >= 0) args.batch.last_ids.Data<int32_t>()[row.slot] = id;
  });
}

}  // namespace glm::cpu
