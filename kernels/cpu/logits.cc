// What `sample` does to a row of logits before it draws, and the logprobs that it reports.
#include <algorithm>
#include <cmath>

#include "kernels/cpu/sample_row.h"

namespace glm::cpu {
namespace {

bool Allowed(const int32_t* mask, int64_t id) {
  return (static_cast<uint32_t>(mask[id / 32]) >> (id % 32) & 1) != 0;
}

/// Of an entry of `counts`, `logit` says whether the id is anywhere in the history, and `id` how
/// often it was generated.
void CountHistory(const SampleRow& row, const History& history, const IdRange& ids,
                  Candidate* counts) {
  std::fill_n(counts, ids.count(), Candidate{0, 0});
  for (int64_t position = 0; position < row.position; ++position) {
    const int32_t id = history.At(position);
    // A prompt may hold ids that are never drawn.
    if (id < ids.begin || id >= ids.end) continue;
    Candidate& count = counts[id - ids.begin];
    count.logit = 1;
    if (position >= row.prompt_tokens) ++count.id;
  }
}

void Penalize(const SampleRow& row, const History& history, const IdRange& ids, float* logits,
              Candidate* counts) {
  CountHistory(row, history, ids, counts);
  for (int64_t i = 0; i < ids.count(); ++i) {
    if (counts[i].logit == 0) continue;
    float& logit = logits[i];
    logit = logit > 0 ? logit / row.repetition_penalty : logit * row.repetition_penalty;
    if (counts[i].id == 0) continue;
    logit -= row.frequency_penalty * static_cast<float>(counts[i].id);
    logit -= row.presence_penalty;
  }
}

bool Holds(const SampleArgs& args, const SampleRow& row, const LogitEdit& edit) {
  if (static_cast<int64_t>(row.position) >= edit.until_position) return false;
  if (edit.context_count == 0) return true;
  const int64_t begin = static_cast<int64_t>(row.position) - edit.context_count;
  if (begin < 0) return false;
  const History history(args.tokens, args.batch, row.sequence);
  for (int32_t i = 0; i < edit.context_count; ++i) {
    if (history.At(begin + i) != args.edit_contexts[edit.context_begin + i]) return false;
  }
  return true;
}

}  // namespace

int32_t LowestAllowed(const SampleArgs& args, const SampleRow& row) {
  const IdRange ids(args);
  const int32_t* mask = row.mask < 0 ? nullptr : args.masks.Row<int32_t>(row.mask);
  for (int64_t id = ids.begin; id < ids.end; ++id) {
    if (mask == nullptr || Allowed(mask, id)) return static_cast<int32_t>(id);
  }
  return -1;
}

void ShapeLogits(const SampleArgs& args, const SampleRow& row, float* logits, Candidate* counts) {
  const IdRange ids(args);
  if (row.repetition_penalty != 1 || row.frequency_penalty != 0 || row.presence_penalty != 0) {
    Penalize(row, History(args.tokens, args.batch, row.sequence), ids, logits, counts);
  }
  for (int32_t i = 0; i < row.edits_count; ++i) {
    const LogitEdit& edit = args.edits[row.edits_begin + i];
    DCHECK(edit.id >= 0 && edit.id < args.vocabulary_used) << edit.id;
    if (edit.id < ids.begin || edit.id >= ids.end || !Holds(args, row, edit)) continue;
    float& logit = logits[edit.id - ids.begin];
    logit = Comparable(logit + edit.add);
  }
  if (row.mask < 0) return;
  const int32_t* mask = args.masks.Row<int32_t>(row.mask);
  for (int64_t id = ids.begin; id < ids.end; ++id) {
    if (!Allowed(mask, id)) logits[id - ids.begin] = kBanned;
  }
}

void WriteLogprobs(const SampleArgs& args, int64_t r, int32_t id, const float* logits,
                   Candidate* candidates) {
  const int64_t vocabulary = args.vocabulary_used;
  const float largest = *std::max_element(logits, logits + vocabulary);
  double total = 0;
  int32_t rank = 1;
  for (int64_t i = 0; i < vocabulary; ++i) {
    total += Share(logits[i], largest);
    if (logits[i] > logits[id]) ++rank;
    candidates[i] = {logits[i], static_cast<int32_t>(i)};
  }
  const double log_total = std::log(total);
  const auto logprob = [&](float logit) {
    const double below = logit == largest ? 0.0 : static_cast<double>(logit) - largest;
    return static_cast<float>(below - log_total);
  };
  float* values = args.logprobs.values.Row<float>(r);
  int32_t* ids = args.logprobs.ids.Row<int32_t>(r);
  values[0] = logprob(logits[id]);
  ids[0] = id;
  args.logprobs.ranks.Data<int32_t>()[r] = rank;
  const int64_t top = std::min<int64_t>(args.rows[r].logprobs, vocabulary);
  std::partial_sort(candidates, candidates + top, candidates + vocabulary, Before);
  for (int64_t i = 0; i < args.rows[r].logprobs; ++i) {
    values[1 + i] = i < top ? logprob(candidates[i].logit) : kBanned;
    ids[1 + i] = i < top ? candidates[i].id : -1;
  }
}

}  // namespace glm::cpu
