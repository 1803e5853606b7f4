// One id per logit row: greedy, or an exponential race among the ids that the row's limits keep.
#include <algorithm>
#include <cmath>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/sample_row.h"
#include "kernels/philox.h"

namespace glm::cpu {
namespace {

/// No exponential is below 2^-33, so that none adds this much to a logit.
constexpr float kRaceMax = 24;

/// The largest logit, ties: lowest id.
int32_t Greedy(const float* logits, int64_t vocabulary) {
  return static_cast<int32_t>(std::max_element(logits, logits + vocabulary) - logits);
}

/// Moves what top_k, then top_p, then min_p keep to the front of the candidates; returns their
/// number, at least 1. Only as much of the falling order is made as top_p needs: a heap gives its
/// next candidate.
int64_t Keep(const SampleRow& row, Candidate* candidates, int64_t count) {
  if (row.top_k > 0 && row.top_k < count) {
    std::nth_element(candidates, candidates + row.top_k - 1, candidates + count, Before);
    count = row.top_k;
  }
  float largest = candidates[0].logit;
  for (int64_t i = 1; i < count; ++i) largest = std::max(largest, candidates[i].logit);
  if (row.top_p < 1) {
    double total = 0;
    for (int64_t i = 0; i < count; ++i) total += Share(candidates[i].logit, largest);
    const auto after = [](const Candidate& a, const Candidate& b) { return Before(b, a); };
    std::make_heap(candidates, candidates + count, after);
    // The i-th candidate in falling order moves to the array's end, at count - 1 - i.
    int64_t kept = 0;
    double mass = 0;
    while (kept < count && (kept == 0 || mass < row.top_p * total)) {
      std::pop_heap(candidates, candidates + count - kept, after);
      mass += Share(candidates[count - ++kept].logit, largest);
    }
    std::move(candidates + count - kept, candidates + count, candidates);
    count = kept;
  }
  if (row.min_p == 0) return count;
  return std::partition(candidates, candidates + count,
                        [&](const Candidate& candidate) {
                          return Share(candidate.logit, largest) >= row.min_p;
                        }) -
         candidates;
}

/// The candidate that wins the race, ties: lowest id. The order of the candidates does not matter.
int32_t Race(const SampleRow& row, const Candidate* candidates, int64_t count) {
  Candidate best{kBanned, -1};
  for (int64_t i = 0; i < count; ++i) {
    const Candidate& runner = candidates[i];
    if (best.id >= 0 && runner.logit + kRaceMax < best.logit) continue;
    const float race = std::log(PhiloxExponential(row.seed, PhiloxStream::kSample, row.position,
                                                  row.choice, static_cast<uint32_t>(runner.id)));
    const Candidate score{runner.logit - race, runner.id};
    if (best.id < 0 || Before(score, best)) best = score;
  }
  return best.id;
}

int32_t Draw(const SampleRow& row, const float* logits, int64_t vocabulary, Candidate* candidates) {
  int64_t count = 0;
  for (int64_t i = 0; i < vocabulary; ++i) {
    // What is banned is no candidate, though there be fewer than top_k others.
    if (logits[i] == kBanned) continue;
    candidates[count++] = {logits[i] / row.temperature, static_cast<int32_t>(i)};
  }
  return Race(row, candidates, Keep(row, candidates, count));
}

int32_t Choose(const SampleArgs& args, const SampleRow& row, const float* logits,
               Candidate* candidates) {
  const int32_t largest = Greedy(logits, args.vocabulary_used);
  if (logits[largest] == kBanned) return LowestAllowed(args, row);
  if (row.temperature == 0) return largest;
  return Draw(row, logits, args.vocabulary_used, candidates);
}

void SampleOne(const SampleArgs& args, int64_t r, Candidate* candidates) {
  const SampleRow& row = args.rows[r];
  float* logits = args.logits.Row<float>(r);
  for (int64_t i = 0; i < args.vocabulary_used; ++i) logits[i] = Comparable(logits[i]);
  int32_t id = row.target_id;
  if (id >= 0) {
    DCHECK(id < args.vocabulary_used) << id;
    if (row.logprobs >= 0) WriteLogprobs(args, r, id, logits, candidates);
  } else if (row.logprobs >= 0) {
    // Logprobs are of the logits as they came, and of an id that is known only at the end.
    float* shaped = reinterpret_cast<float*>(candidates + args.vocabulary_used);
    std::copy_n(logits, args.vocabulary_used, shaped);
    ShapeLogits(args, row, shaped, candidates);
    id = Choose(args, row, shaped, candidates);
    WriteLogprobs(args, r, id, logits, candidates);
  } else {
    ShapeLogits(args, row, logits, candidates);
    id = Choose(args, row, logits, candidates);
  }
  args.out_ids.Data<int32_t>()[r] = id;
  if (row.slot >= 0) args.batch.last_ids.Data<int32_t>()[row.slot] = id;
}

void CheckArgs(const SampleArgs& args, int64_t rows_max) {
  CheckShape(args.logits, DType::kF32, {rows_max, -1}, "sample.logits");
  CheckShape(args.out_ids, DType::kI32, {rows_max}, "sample.out_ids");
  const int64_t vocabulary = args.vocabulary_used;
  CHECK(vocabulary >= 1 && vocabulary <= args.logits.shape[1]) << vocabulary;
  if (!args.tokens.ids.empty()) {
    CheckShape(args.tokens.ids, DType::kI32, {-1, -1}, "sample.tokens");
  }
  if (!args.masks.empty()) {
    CheckShape(args.masks, DType::kI32, {-1, (vocabulary + 31) / 32}, "sample.masks");
  }
  if (args.logprobs.values.empty()) return;
  CheckShape(args.logprobs.values, DType::kF32, {rows_max, 1 + kLogprobsMax}, "sample.values");
  CheckShape(args.logprobs.ids, DType::kI32, {rows_max, 1 + kLogprobsMax}, "sample.ids");
  CheckShape(args.logprobs.ranks, DType::kI32, {rows_max}, "sample.ranks");
}

}  // namespace

void Sample(Device& device, const SampleArgs& args) {
  const int64_t rows_max = args.logits.shape[0];
  CheckArgs(args, rows_max);
  CpuDevice& cpu = CpuDevice::Of(device);
  const int64_t rows = ValidLogitRows(args.batch, rows_max);
  const Scratch& scratch = cpu.scratch();
  CHECK_LE(args.vocabulary_used, scratch.vocabulary) << "more than PlanScratch was told";
  // A stripe of rows has one row's room for candidates.
  const int64_t stripes = std::min(rows, scratch.sample_stripes);
  CHECK(rows == 0 || stripes > 0) << "the step is larger than PlanScratch was told";
  ParallelFor(cpu.pool(), stripes, 1, [&](int64_t stripe) {
    Candidate* candidates = scratch.candidates + stripe * CandidatesOf(scratch.vocabulary);
    for (int64_t r = stripe; r < rows; r += stripes) SampleOne(args, r, candidates);
  });
}

}  // namespace glm::cpu
