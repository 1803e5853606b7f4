// One id per logit row: greedy, or an exponential race among the ids that the row's limits keep.
// Where ranks have a slice of the ids each, the best of the slice with a key, and of these the
// best.
#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/sample_row.h"
#include "kernels/philox.h"

namespace glm::cpu {
namespace {

/// No exponential is below 2^-33, so that none adds this much to a logit.
constexpr float kRaceMax = 24;

/// What a row has chosen of the ids it knows, as `candidates` hold it.
struct Choice {
  uint32_t key = 0;
  int32_t id = 0;
};

constexpr uint32_t kNoLogitKey = 1;

bool Better(const Choice& a, const Choice& b) {
  return a.key > b.key || (a.key == b.key && a.id < b.id);
}

/// Rises with the score; both zeros have one key. Minus infinity has one too, which is above 1: the
/// quotient of a logit and a temperature may get there.
uint32_t KeyOf(float score) {
  const auto bits = std::bit_cast<uint32_t>(score + 0.0f);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

/// The largest logit, ties: lowest id.
Candidate Greedy(const float* logits, const IdRange& ids) {
  const float* largest = std::max_element(logits, logits + ids.count());
  return {*largest, static_cast<int32_t>(ids.begin + (largest - logits))};
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

/// Who wins the race, ties: lowest id, with the score. The order of the candidates does not matter.
Candidate Race(const SampleRow& row, const Candidate* candidates, int64_t count) {
  Candidate best{kBanned, -1};
  for (int64_t i = 0; i < count; ++i) {
    const Candidate& runner = candidates[i];
    if (best.id >= 0 && runner.logit + kRaceMax < best.logit) continue;
    const float race = std::log(PhiloxExponential(row.seed, PhiloxStream::kSample, row.position,
                                                  row.choice, static_cast<uint32_t>(runner.id)));
    const Candidate score{runner.logit - race, runner.id};
    if (best.id < 0 || Before(score, best)) best = score;
  }
  return best;
}

Candidate Draw(const SampleRow& row, const float* logits, const IdRange& ids,
               Candidate* candidates) {
  int64_t count = 0;
  for (int64_t i = 0; i < ids.count(); ++i) {
    // What is banned is no candidate, though there be fewer than top_k others.
    if (logits[i] == kBanned) continue;
    candidates[count++] = {logits[i] / row.temperature, static_cast<int32_t>(ids.begin + i)};
  }
  return Race(row, candidates, Keep(row, candidates, count));
}

Choice Choose(const SampleArgs& args, const SampleRow& row, const float* logits,
              Candidate* candidates) {
  const IdRange ids(args);
  if (ids.count() == 0) return {};
  Candidate best = Greedy(logits, ids);
  if (best.logit == kBanned) {
    const int32_t id = LowestAllowed(args, row);
    return id < 0 ? Choice{} : Choice{kNoLogitKey, id};
  }
  if (row.temperature != 0) best = Draw(row, logits, ids, candidates);
  return {KeyOf(best.logit), best.id};
}

void WriteId(const BatchView& batch, const SampleRow& row, int64_t r, int32_t id,
             const Tensor& out_ids) {
  out_ids.Data<int32_t>()[r] = id;
  if (row.slot >= 0) batch.last_ids.Data<int32_t>()[row.slot] = id;
}

/// The best of a slice of the row's ids.
void SampleSlice(const SampleArgs& args, int64_t r, Candidate* candidates) {
  const SampleRow& row = args.rows[r];
  DCHECK(row.target_id < 0 && row.logprobs < 0) << "row " << r << " needs whole logits";
  DCHECK(row.temperature == 0 || (row.top_k <= 0 && row.top_p >= 1 && row.min_p <= 0))
      << "row " << r << " has limits, which need whole logits";
  float* logits = args.logits.Row<float>(r);
  for (int64_t i = 0; i < IdRange(args).count(); ++i) logits[i] = Comparable(logits[i]);
  ShapeLogits(args, row, logits, candidates);
  const Choice choice = Choose(args, row, logits, candidates);
  uint32_t* words = args.candidates.Row<uint32_t>(r);
  words[0] = choice.key;
  words[1] = static_cast<uint32_t>(choice.id);
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
    id = Choose(args, row, shaped, candidates).id;
    WriteLogprobs(args, r, id, logits, candidates);
  } else {
    ShapeLogits(args, row, logits, candidates);
    id = Choose(args, row, logits, candidates).id;
  }
  WriteId(args.batch, row, r, id, args.out_ids);
}

void CheckArgs(const SampleArgs& args, int64_t rows_max) {
  CheckShape(args.logits, DType::kF32, {rows_max, -1}, "sample.logits");
  const int64_t vocabulary = args.vocabulary_used;
  CHECK_GE(vocabulary, 1);
  if (args.candidates.empty()) {
    CheckShape(args.out_ids, DType::kI32, {rows_max}, "sample.out_ids");
    CHECK(args.vocabulary_begin == 0 && vocabulary <= args.logits.shape[1]) << vocabulary;
  } else {
    CheckShape(args.candidates, DType::kF32, {rows_max, 2}, "sample.candidates");
    CHECK_GE(args.vocabulary_begin, 0);
    CHECK(args.logprobs.values.empty()) << "logprobs of a slice";
  }
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
    for (int64_t r = stripe; r < rows; r += stripes) {
      if (args.candidates.empty()) {
        SampleOne(args, r, candidates);
      } else {
        SampleSlice(args, r, candidates);
      }
    }
  });
}

void ChooseCandidates(Device& /*device*/, const ChooseCandidatesArgs& args) {
  const int64_t slices = args.candidates.shape[0];
  const int64_t rows_max = args.candidates.shape[1];
  CheckShape(args.candidates, DType::kF32, {-1, -1, 2}, "choose_candidates.candidates");
  CHECK(args.candidates.contiguous()) << "choose_candidates.candidates";
  CheckShape(args.out_ids, DType::kI32, {rows_max}, "choose_candidates.out_ids");
  const int64_t rows = ValidLogitRows(args.batch, rows_max);
  for (int64_t r = 0; r < rows; ++r) {
    Choice best;
    for (int64_t i = 0; i < slices; ++i) {
      const uint32_t* words = args.candidates.Row<uint32_t>(i) + 2 * r;
      const Choice choice{words[0], static_cast<int32_t>(words[1])};
      if (choice.key > 0 && Better(choice, best)) best = choice;
    }
    WriteId(args.batch, args.rows[r], r, best.id, args.out_ids);
  }
}

}  // namespace glm::cpu
