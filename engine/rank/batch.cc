#include "engine/rank/batch.h"

#include <algorithm>
#include <cstring>

#include "proto/base/log.h"

namespace glm::engine {
namespace {

// Arrays of a step start at multiples of this, as wide as any vector load.
constexpr int64_t kAlignment = 64;

constexpr int64_t kLogprobEntries = 1 + kLogprobsMax;

/// Places arrays behind each other.
class Placer {
 public:
  template <typename T>
  int64_t Place(int64_t count) {
    const int64_t begin = end_;
    end_ += (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return begin;
  }
  int64_t end() const { return end_; }

 private:
  int64_t end_ = 0;
};

/// Copies `from` to `to` and fills up to `count` elements with `padding`.
template <typename T>
void CopyPadded(const std::vector<T>& from, int64_t count, const T& padding, void* to) {
  T* out = static_cast<T*>(to);
  out = std::copy(from.begin(), from.end(), out);
  std::fill_n(out, count - static_cast<int64_t>(from.size()), padding);
}

template <typename T>
int64_t SizeOf(const std::vector<T>& values) {
  return static_cast<int64_t>(values.size());
}

/// Where whole prompts begin, if enough of the step is of theirs: steps like decoding, which are
/// captured, are not told apart by it.
int64_t PromptsBegin(const StepPlan& plan) {
  constexpr int64_t kTokensMin = 1024;
  int64_t begin = SizeOf(plan.token_ids);
  for (int64_t s = SizeOf(plan.kv_lengths) - 1; s >= 0; --s) {
    const int32_t tokens = plan.query_starts[s + 1] - plan.query_starts[s];
    if (tokens != plan.kv_lengths[s] || tokens < kWholePromptMin) break;
    begin = plan.query_starts[s];
  }
  return SizeOf(plan.token_ids) - begin >= kTokensMin ? begin : -1;
}

/// Whether the row's id can be found slice by slice of the vocabulary: what is best in each
/// decides.
bool DrawsBySlice(const SampleRow& row) {
  const bool limited = row.top_k > 0 || row.top_p < 1 || row.min_p > 0;
  return row.target_id < 0 && row.logprobs < 0 && (row.temperature == 0 || !limited);
}

/// Whether logit rows are so few that the last layer is worth running on them apart.
bool RowsApart(const StepSizes& sizes) {
  constexpr int64_t kTokensPerRowMin = 4;
  return !sizes.draft_layer && sizes.tokens >= kTokensPerRowMin * sizes.logit_rows;
}

template <typename T>
void Assign(const char* memory, int64_t count, std::vector<T>* out) {
  const T* values = reinterpret_cast<const T*>(memory);
  out->assign(values, values + count);
}

}  // namespace

/// Byte offsets of a step's arrays for given sizes.
struct Batch::Layout {
  int64_t token_ids, positions, token_sequences, query_starts, kv_lengths, logit_tokens, counts;
  int64_t sample_rows, block_tables, edits, edit_contexts, masks;
  int64_t row_ids, row_positions, row_sequences, row_starts, row_lengths, row_tokens, row_counts;
  int64_t next_ids, draft_counts, draft_rows;
  int64_t bytes;
};

/// The same of what comes back.
struct Batch::ResultLayout {
  int64_t ids, drafts, logprobs, logprob_ids, ranks;
  int64_t bytes;
};

Batch::Layout Batch::LayoutOf(const StepSizes& sizes, int64_t mask_words) {
  Placer placer;
  Layout layout{};
  layout.token_ids = placer.Place<int32_t>(sizes.tokens);
  layout.positions = placer.Place<int32_t>(sizes.tokens);
  layout.token_sequences = placer.Place<int32_t>(sizes.tokens);
  layout.query_starts = placer.Place<int32_t>(sizes.sequences + 1);
  layout.kv_lengths = placer.Place<int32_t>(sizes.sequences);
  layout.logit_tokens = placer.Place<int32_t>(sizes.logit_rows);
  layout.counts = placer.Place<int32_t>(3);
  layout.sample_rows = placer.Place<SampleRow>(sizes.logit_rows);
  layout.block_tables = placer.Place<int32_t>(sizes.sequences * sizes.blocks_max);
  layout.edits = placer.Place<LogitEdit>(sizes.edits);
  layout.edit_contexts = placer.Place<int32_t>(sizes.edit_contexts);
  layout.masks = placer.Place<uint32_t>(sizes.masks * mask_words);
  if (sizes.rows_apart) {
    layout.row_ids = placer.Place<int32_t>(sizes.logit_rows);
    layout.row_positions = placer.Place<int32_t>(sizes.logit_rows);
    layout.row_sequences = placer.Place<int32_t>(sizes.logit_rows);
    layout.row_starts = placer.Place<int32_t>(sizes.sequences + 1);
    layout.row_lengths = placer.Place<int32_t>(sizes.sequences);
    layout.row_tokens = placer.Place<int32_t>(sizes.logit_rows);
    layout.row_counts = placer.Place<int32_t>(3);
  }
  if (sizes.draft_layer) {
    layout.next_ids = placer.Place<int32_t>(sizes.tokens);
    layout.draft_counts = placer.Place<int32_t>(3);
    layout.draft_rows = placer.Place<DraftRow>(sizes.draft_rows);
  }
  layout.bytes = placer.end();
  return layout;
}

Batch::ResultLayout Batch::ResultLayoutOf(const StepSizes& sizes) {
  Placer placer;
  ResultLayout layout{};
  layout.ids = placer.Place<int32_t>(sizes.logit_rows);
  layout.drafts = placer.Place<int32_t>(sizes.drafts * sizes.draft_rows);
  if (sizes.logprobs) {
    layout.logprobs = placer.Place<float>(sizes.logit_rows * kLogprobEntries);
    layout.logprob_ids = placer.Place<int32_t>(sizes.logit_rows * kLogprobEntries);
    layout.ranks = placer.Place<int32_t>(sizes.logit_rows);
  }
  layout.bytes = placer.end();
  return layout;
}

StepSizes Batch::Largest(const BatchLimits& limits) {
  StepSizes sizes;
  sizes.tokens = limits.step.tokens_max;
  sizes.sequences = limits.step.sequences_max;
  sizes.logit_rows = limits.step.logit_rows_max;
  sizes.blocks_max = limits.blocks_max;
  sizes.edits = limits.edits_max;
  sizes.edit_contexts = limits.edit_contexts_max;
  sizes.masks = limits.masks_max;
  sizes.logprobs = true;
  sizes.rows_apart = true;
  sizes.draft_layer = limits.drafts_max > 0;
  sizes.draft_rows = sizes.draft_layer ? sizes.sequences : 0;
  sizes.drafts = limits.drafts_max;
  return sizes;
}

Batch::Batch(Device& device, const BatchLimits& limits) : device_(device), limits_(limits) {
  CHECK_GE(limits_.steps_in_flight_max, 1);
  const StepSizes largest = Largest(limits_);
  const int64_t bytes = LayoutOf(largest, mask_words()).bytes;
  const int64_t result_bytes = ResultLayoutOf(largest).bytes;
  step_memory_ = static_cast<char*>(device_.Allocate(bytes));
  result_memory_ = static_cast<char*>(device_.Allocate(result_bytes));
  last_ids_ = device_.NewTensor(DType::kI32, {limits_.slots});
  logits_all_ =
      device_.NewTensor(DType::kF32, {limits_.step.logit_rows_max, limits_.step.vocabulary});
  for (int32_t i = 0; i < limits_.steps_in_flight_max; ++i) {
    staging_.push_back(static_cast<char*>(device_.AllocateHost(bytes)));
    results_.push_back(static_cast<char*>(device_.AllocateHost(result_bytes)));
  }
  device_.Fill(last_ids_.data, 0, last_ids_.bytes());
}

int64_t Batch::DeviceBytes(const BatchLimits& limits) {
  const StepSizes largest = Largest(limits);
  return LayoutOf(largest, (limits.vocabulary_used + 31) / 32).bytes +
         ResultLayoutOf(largest).bytes + limits.slots * 4 +
         limits.step.logit_rows_max * limits.step.vocabulary * 4;
}

int64_t Batch::HostBytes(const BatchLimits& limits) {
  const StepSizes largest = Largest(limits);
  return limits.steps_in_flight_max * (LayoutOf(largest, (limits.vocabulary_used + 31) / 32).bytes +
                                       ResultLayoutOf(largest).bytes);
}

int64_t Batch::Bucket(int64_t count, int64_t count_max) {
  CHECK(count >= 0 && count <= count_max) << count << " of " << count_max;
  int64_t power = 1;
  while (power < count) power *= 2;
  // Three quarters of a power of two is a bucket too: at most a third of a step is padding.
  const int64_t between = power / 4 * 3;
  return std::min(count <= between ? between : power, count_max);
}

int64_t Batch::TokenBucket(int64_t count, int64_t count_max) {
  constexpr int64_t kFineFrom = 1024;
  constexpr int64_t kFine = 128;
  if (count <= kFineFrom) return Bucket(count, count_max);
  return std::min((count + kFine - 1) / kFine * kFine, count_max);
}

int64_t Batch::TableBucket(int64_t count, int64_t count_max) {
  int64_t bucket = 256;
  while (bucket < count) bucket *= 4;
  return std::min(bucket, count_max);
}

StepSizes Batch::SizesOf(const StepPlan& plan) const {
  const StepSizes largest = Largest(limits_);
  StepSizes sizes;
  sizes.tokens = SizeOf(plan.token_ids);
  sizes.sequences = SizeOf(plan.kv_lengths);
  sizes.logit_rows = std::max<int64_t>(1, SizeOf(plan.logit_tokens));
  sizes.blocks_max = plan.blocks_max;
  sizes.edits = SizeOf(plan.edits);
  sizes.edit_contexts = SizeOf(plan.edit_contexts);
  sizes.masks = plan.masks.empty() ? 0 : SizeOf(plan.masks) / mask_words();
  sizes.logprobs = plan.logprobs;
  sizes.draft_layer = !plan.next_ids.empty();
  sizes.draft_rows = SizeOf(plan.draft_rows);
  sizes.drafts = plan.drafts;
  sizes.prompts_begin = PromptsBegin(plan);
  sizes.whole_logits = limits_.step.vocabulary_slices > 1 &&
                       !std::all_of(plan.sample_rows.begin(), plan.sample_rows.end(), DrawsBySlice);
  sizes.rows_apart = RowsApart(sizes);
  if (!device_.CanCapture()) return sizes;
  for (int64_t StepSizes::*size :
       {&StepSizes::sequences, &StepSizes::logit_rows, &StepSizes::edits, &StepSizes::edit_contexts,
        &StepSizes::masks, &StepSizes::draft_rows}) {
    if (sizes.*size > 0) sizes.*size = Bucket(sizes.*size, largest.*size);
  }
  sizes.tokens = TokenBucket(sizes.tokens, largest.tokens);
  sizes.blocks_max = TableBucket(sizes.blocks_max, largest.blocks_max);
  if (sizes.prompts_begin > 0) {
    sizes.prompts_begin = TokenBucket(sizes.prompts_begin, sizes.tokens);
  }
  sizes.rows_apart = RowsApart(sizes);
  return sizes;
}

void Batch::CheckPlan(const StepPlan& plan) const {
  const StepSizes largest = Largest(limits_);
  const int64_t tokens = SizeOf(plan.token_ids);
  const int64_t sequences = SizeOf(plan.kv_lengths);
  CHECK(tokens >= 1 && tokens <= largest.tokens) << tokens << " tokens";
  CHECK(sequences >= 1 && sequences <= largest.sequences) << sequences << " sequences";
  CHECK_LE(SizeOf(plan.logit_tokens), largest.logit_rows);
  CHECK(plan.blocks_max >= 1 && plan.blocks_max <= largest.blocks_max) << plan.blocks_max;
  CHECK_EQ(plan.positions.size(), plan.token_ids.size());
  CHECK_EQ(plan.token_sequences.size(), plan.token_ids.size());
  CHECK_EQ(SizeOf(plan.query_starts), sequences + 1);
  CHECK_EQ(plan.query_starts.back(), tokens);
  CHECK_EQ(SizeOf(plan.block_tables), sequences * plan.blocks_max);
  CHECK_EQ(plan.sample_rows.size(), plan.logit_tokens.size());
  CHECK(std::is_sorted(plan.logit_tokens.begin(), plan.logit_tokens.end()));
  CHECK_LE(SizeOf(plan.edits), largest.edits);
  CHECK_LE(SizeOf(plan.edit_contexts), largest.edit_contexts);
  CHECK_LE(SizeOf(plan.masks), largest.masks * mask_words());
  if (!plan.masks.empty()) CHECK_EQ(SizeOf(plan.masks) % mask_words(), 0);
  CHECK_LE(plan.drafts, largest.drafts);
  CHECK_LE(SizeOf(plan.draft_rows), largest.draft_rows);
  CHECK_EQ(plan.draft_rows.empty(), plan.drafts == 0);
  if (plan.next_ids.empty()) {
    CHECK(plan.draft_rows.empty()) << "drafts without the draft layer";
  } else {
    CHECK(largest.draft_layer) << "next_ids without a draft layer";
    CHECK_EQ(plan.next_ids.size(), plan.token_ids.size());
  }
}

void Batch::FillStaging(const StepPlan& plan, const Layout& layout, char* host) const {
  const StepSizes& sizes = sizes_;
  const auto tokens = static_cast<int32_t>(plan.token_ids.size());
  const auto sequences = static_cast<int32_t>(plan.kv_lengths.size());
  const auto logit_rows = static_cast<int32_t>(plan.logit_tokens.size());
  CopyPadded(plan.token_ids, sizes.tokens, 0, host + layout.token_ids);
  CopyPadded(plan.positions, sizes.tokens, 0, host + layout.positions);
  CopyPadded(plan.token_sequences, sizes.tokens, 0, host + layout.token_sequences);
  CopyPadded(plan.query_starts, sizes.sequences + 1, tokens, host + layout.query_starts);
  CopyPadded(plan.kv_lengths, sizes.sequences, 0, host + layout.kv_lengths);
  CopyPadded(plan.logit_tokens, sizes.logit_rows, 0, host + layout.logit_tokens);
  CopyPadded(plan.sample_rows, sizes.logit_rows, SampleRow{}, host + layout.sample_rows);
  CopyPadded(plan.edits, sizes.edits, LogitEdit{}, host + layout.edits);
  CopyPadded(plan.edit_contexts, sizes.edit_contexts, 0, host + layout.edit_contexts);
  CopyPadded(plan.masks, sizes.masks * mask_words(), 0u, host + layout.masks);
  const int32_t counts[3] = {tokens, sequences, logit_rows};
  std::memcpy(host + layout.counts, counts, sizeof(counts));
  auto* tables = reinterpret_cast<int32_t*>(host + layout.block_tables);
  std::fill_n(tables, sizes.sequences * sizes.blocks_max, 0);
  for (int64_t s = 0; s < sequences; ++s) {
    std::copy_n(plan.block_tables.begin() + s * plan.blocks_max, plan.blocks_max,
                tables + s * sizes.blocks_max);
  }
}

void Batch::FillRowStaging(const StepPlan& plan, const Layout& layout, char* host) const {
  std::vector<int32_t> ids, positions, sequences, rows;
  std::vector<int32_t> starts{0}, lengths;
  for (const int32_t token : plan.logit_tokens) {
    rows.push_back(static_cast<int32_t>(rows.size()));
    ids.push_back(plan.token_ids[token]);
    positions.push_back(plan.positions[token]);
    sequences.push_back(plan.token_sequences[token]);
  }
  for (size_t s = 0; s < plan.kv_lengths.size(); ++s) {
    const auto end = std::upper_bound(sequences.begin(), sequences.end(), static_cast<int32_t>(s));
    starts.push_back(static_cast<int32_t>(end - sequences.begin()));
    lengths.push_back(starts[s] == starts[s + 1] ? 0 : plan.kv_lengths[s]);
  }
  CopyPadded(ids, sizes_.logit_rows, 0, host + layout.row_ids);
  CopyPadded(positions, sizes_.logit_rows, 0, host + layout.row_positions);
  CopyPadded(sequences, sizes_.logit_rows, 0, host + layout.row_sequences);
  CopyPadded(starts, sizes_.sequences + 1, starts.back(), host + layout.row_starts);
  CopyPadded(lengths, sizes_.sequences, 0, host + layout.row_lengths);
  CopyPadded(rows, sizes_.logit_rows, 0, host + layout.row_tokens);
  const int32_t counts[3] = {starts.back(), static_cast<int32_t>(lengths.size()), starts.back()};
  std::memcpy(host + layout.row_counts, counts, sizeof(counts));
}

void Batch::FillDraftStaging(const StepPlan& plan, const Layout& layout, char* host) const {
  CopyPadded(plan.next_ids, sizes_.tokens, 0, host + layout.next_ids);
  CopyPadded(plan.draft_rows, sizes_.draft_rows, DraftRow{}, host + layout.draft_rows);
  const int32_t counts[3] = {static_cast<int32_t>(plan.token_ids.size()),
                             static_cast<int32_t>(plan.kv_lengths.size()),
                             static_cast<int32_t>(plan.draft_rows.size())};
  std::memcpy(host + layout.draft_counts, counts, sizeof(counts));
}

void Batch::Upload(const StepPlan& plan, int32_t staging) {
  CheckPlan(plan);
  sizes_ = SizesOf(plan);
  const Layout layout = LayoutOf(sizes_, mask_words());
  char* host = staging_[staging];
  FillStaging(plan, layout, host);
  if (sizes_.rows_apart) FillRowStaging(plan, layout, host);
  if (sizes_.draft_layer) FillDraftStaging(plan, layout, host);
  device_.CopyToDevice(step_memory_, host, layout.bytes);
  SetViews(layout);
  SetResultViews();
}

void Batch::SetViews(const Layout& layout) {
  const auto ints = [&](int64_t offset, int64_t count) {
    return Tensor(step_memory_ + offset, DType::kI32, {count});
  };
  view_.token_ids = ints(layout.token_ids, sizes_.tokens);
  view_.positions = ints(layout.positions, sizes_.tokens);
  view_.token_sequences = ints(layout.token_sequences, sizes_.tokens);
  view_.query_starts = ints(layout.query_starts, sizes_.sequences + 1);
  view_.kv_lengths = ints(layout.kv_lengths, sizes_.sequences);
  view_.block_tables = Tensor(step_memory_ + layout.block_tables, DType::kI32,
                              {sizes_.sequences, sizes_.blocks_max});
  view_.logit_tokens = ints(layout.logit_tokens, sizes_.logit_rows);
  view_.counts = ints(layout.counts, 3);
  view_.last_ids = last_ids_;
  view_.prompts_begin = sizes_.prompts_begin;
  sample_rows_ = reinterpret_cast<const SampleRow*>(step_memory_ + layout.sample_rows);
  edits_ = reinterpret_cast<const LogitEdit*>(step_memory_ + layout.edits);
  edit_contexts_ = reinterpret_cast<const int32_t*>(step_memory_ + layout.edit_contexts);
  masks_ = {};
  if (sizes_.masks > 0) {
    masks_ = Tensor(step_memory_ + layout.masks, DType::kI32, {sizes_.masks, mask_words()});
  }
  if (sizes_.rows_apart) {
    row_view_ = view_;
    row_view_.token_ids = ints(layout.row_ids, sizes_.logit_rows);
    row_view_.positions = ints(layout.row_positions, sizes_.logit_rows);
    row_view_.token_sequences = ints(layout.row_sequences, sizes_.logit_rows);
    row_view_.query_starts = ints(layout.row_starts, sizes_.sequences + 1);
    row_view_.kv_lengths = ints(layout.row_lengths, sizes_.sequences);
    row_view_.logit_tokens = ints(layout.row_tokens, sizes_.logit_rows);
    row_view_.counts = ints(layout.row_counts, 3);
    row_view_.prompts_begin = -1;
  }
  next_view_ = {};
  draft_rows_ = nullptr;
  draft_count_ = {};
  if (!sizes_.draft_layer) return;
  next_view_ = view_;
  next_view_.token_ids = ints(layout.next_ids, sizes_.tokens);
  next_view_.counts = ints(layout.draft_counts, 3);
  next_view_.logit_tokens = {};
  draft_count_ = next_view_.counts.Rows(2, 1);
  draft_rows_ = reinterpret_cast<const DraftRow*>(step_memory_ + layout.draft_rows);
}

void Batch::SetResultViews() {
  const ResultLayout layout = ResultLayoutOf(sizes_);
  logits_ = LogitsOf(sizes_.logit_rows);
  ids_ = Tensor(result_memory_ + layout.ids, DType::kI32, {sizes_.logit_rows});
  drafts_ = Tensor(result_memory_ + layout.drafts, DType::kI32, {sizes_.drafts, sizes_.draft_rows});
  if (sizes_.draft_layer) next_view_.last_ids = ids_;
  logprobs_ = {};
  if (!sizes_.logprobs) return;
  const auto table = [&](int64_t offset, DType dtype) {
    return Tensor(result_memory_ + offset, dtype, {sizes_.logit_rows, kLogprobEntries});
  };
  logprobs_.values = table(layout.logprobs, DType::kF32);
  logprobs_.ids = table(layout.logprob_ids, DType::kI32);
  logprobs_.ranks = Tensor(result_memory_ + layout.ranks, DType::kI32, {sizes_.logit_rows});
}

SampleArgs Batch::sample_args(const TokenCache& tokens) const {
  return {.batch = view_,
          .logits = logits_,
          .vocabulary_used = limits_.vocabulary_used,
          .rows = sample_rows_,
          .out_ids = ids_,
          .tokens = tokens,
          .edits = edits_,
          .edit_contexts = edit_contexts_,
          .masks = masks_,
          .logprobs = logprobs_};
}

Tensor Batch::LogitsOf(int64_t rows) const {
  const int64_t slices = sizes_.whole_logits ? 1 : limits_.step.vocabulary_slices;
  return {logits_all_.data, DType::kF32, {rows, limits_.step.vocabulary / slices}};
}

Tensor Batch::draft_logits() const { return LogitsOf(sizes_.draft_rows); }

Tensor Batch::draft_ids(int64_t draft) const {
  CHECK(draft >= 0 && draft < sizes_.drafts) << draft;
  return drafts_.Slice(draft);
}

void Batch::Download(int32_t staging) {
  device_.CopyToHost(results_[staging], result_memory_, ResultLayoutOf(sizes_).bytes);
}

void Batch::Read(int32_t staging, const StepSizes& sizes, int64_t logit_rows, int64_t draft_rows,
                 StepResult* result) const {
  const ResultLayout layout = ResultLayoutOf(sizes);
  const char* memory = results_[staging];
  Assign(memory + layout.ids, logit_rows, &result->ids);
  // On the device a draft's ids of all sequences lie together, here a sequence's drafts.
  const auto* drafts = reinterpret_cast<const int32_t*>(memory + layout.drafts);
  result->drafts.clear();
  for (int64_t d = 0; d < draft_rows; ++d) {
    for (int64_t k = 0; k < sizes.drafts; ++k) {
      result->drafts.push_back(drafts[k * sizes.draft_rows + d]);
    }
  }
  if (!sizes.logprobs) return;
  Assign(memory + layout.logprobs, logit_rows * kLogprobEntries, &result->logprobs.values);
  Assign(memory + layout.logprob_ids, logit_rows * kLogprobEntries, &result->logprobs.ids);
  Assign(memory + layout.ranks, logit_rows, &result->logprobs.ranks);
}

}  // namespace glm::engine
