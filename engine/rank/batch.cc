#include "engine/rank/batch.h"

#include <algorithm>
#include <cstring>

#include "proto/base/log.h"

namespace glm::engine {
namespace {

// Arrays of a step start at multiples of this, as wide as any vector load.
constexpr int64_t kAlignment = 64;

/// Byte offsets of a step's arrays for given sizes.
struct Layout {
  int64_t token_ids, positions, token_sequences, query_starts, kv_lengths, logit_tokens, counts;
  int64_t sample_rows, block_tables;
  int64_t bytes;
};

Layout LayoutOf(const StepSizes& sizes) {
  int64_t end = 0;
  const auto place = [&end](int64_t bytes) {
    const int64_t begin = end;
    end += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return begin;
  };
  Layout layout{};
  layout.token_ids = place(sizes.tokens * 4);
  layout.positions = place(sizes.tokens * 4);
  layout.token_sequences = place(sizes.tokens * 4);
  layout.query_starts = place((sizes.sequences + 1) * 4);
  layout.kv_lengths = place(sizes.sequences * 4);
  layout.logit_tokens = place(sizes.logit_rows * 4);
  layout.counts = place(3 * 4);
  layout.sample_rows = place(sizes.logit_rows * static_cast<int64_t>(sizeof(SampleRow)));
  layout.block_tables = place(sizes.sequences * sizes.blocks_max * 4);
  layout.bytes = end;
  return layout;
}

StepSizes Largest(const BatchLimits& limits) {
  return {limits.step.tokens_max, limits.step.sequences_max, limits.step.logit_rows_max,
          limits.blocks_max};
}

/// Copies `from` to `to` and fills up to `count` elements with `padding`.
template <typename T>
void CopyPadded(const std::vector<T>& from, int64_t count, const T& padding, void* to) {
  T* out = static_cast<T*>(to);
  out = std::copy(from.begin(), from.end(), out);
  std::fill_n(out, count - static_cast<int64_t>(from.size()), padding);
}

void CheckPlan(const StepPlan& plan, const StepSizes& largest) {
  const auto tokens = static_cast<int64_t>(plan.token_ids.size());
  const auto sequences = static_cast<int64_t>(plan.kv_lengths.size());
  const auto logit_rows = static_cast<int64_t>(plan.logit_tokens.size());
  CHECK(tokens >= 1 && tokens <= largest.tokens) << tokens << " tokens";
  CHECK(sequences >= 1 && sequences <= largest.sequences) << sequences << " sequences";
  CHECK_LE(logit_rows, largest.logit_rows);
  CHECK(plan.blocks_max >= 1 && plan.blocks_max <= largest.blocks_max) << plan.blocks_max;
  CHECK_EQ(plan.positions.size(), plan.token_ids.size());
  CHECK_EQ(plan.token_sequences.size(), plan.token_ids.size());
  CHECK_EQ(static_cast<int64_t>(plan.query_starts.size()), sequences + 1);
  CHECK_EQ(plan.query_starts.back(), tokens);
  CHECK_EQ(static_cast<int64_t>(plan.block_tables.size()), sequences * plan.blocks_max);
  CHECK_EQ(plan.sample_rows.size(), plan.logit_tokens.size());
}

}  // namespace

Batch::Batch(Device& device, const BatchLimits& limits) : device_(device), limits_(limits) {
  CHECK_GE(limits_.steps_in_flight_max, 1);
  const int64_t bytes = LayoutOf(Largest(limits_)).bytes;
  const int64_t rows = limits_.step.logit_rows_max;
  step_memory_ = static_cast<char*>(device_.Allocate(bytes));
  last_ids_ = device_.NewTensor(DType::kI32, {limits_.slots});
  logits_all_ = device_.NewTensor(DType::kF32, {rows, limits_.step.vocabulary});
  ids_all_ = device_.NewTensor(DType::kI32, {rows});
  for (int32_t i = 0; i < limits_.steps_in_flight_max; ++i) {
    staging_.push_back(static_cast<char*>(device_.AllocateHost(bytes)));
    ids_host_.push_back(static_cast<int32_t*>(device_.AllocateHost(rows * 4)));
  }
  device_.Fill(last_ids_.data, 0, last_ids_.bytes());
}

int64_t Batch::DeviceBytes(const BatchLimits& limits) {
  return LayoutOf(Largest(limits)).bytes + limits.slots * 4 +
         limits.step.logit_rows_max * (limits.step.vocabulary + 1) * 4;
}

int64_t Batch::Bucket(int64_t count, int64_t count_max) {
  CHECK(count >= 0 && count <= count_max) << count << " of " << count_max;
  int64_t power = 1;
  while (power < count) power *= 2;
  // Three quarters of a power of two is a bucket too: at most a third of a step is padding.
  const int64_t between = power / 4 * 3;
  return std::min(count <= between ? between : power, count_max);
}

StepSizes Batch::SizesOf(const StepPlan& plan) const {
  const StepSizes largest = Largest(limits_);
  StepSizes sizes;
  sizes.tokens = static_cast<int64_t>(plan.token_ids.size());
  sizes.sequences = static_cast<int64_t>(plan.kv_lengths.size());
  sizes.logit_rows = std::max<int64_t>(1, static_cast<int64_t>(plan.logit_tokens.size()));
  sizes.blocks_max = plan.blocks_max;
  if (!device_.CanCapture()) return sizes;
  sizes.tokens = Bucket(sizes.tokens, largest.tokens);
  sizes.sequences = Bucket(sizes.sequences, largest.sequences);
  sizes.logit_rows = Bucket(sizes.logit_rows, largest.logit_rows);
  sizes.blocks_max = Bucket(sizes.blocks_max, largest.blocks_max);
  return sizes;
}

void Batch::Upload(const StepPlan& plan, int32_t staging) {
  CheckPlan(plan, Largest(limits_));
  const StepSizes sizes = SizesOf(plan);
  const Layout layout = LayoutOf(sizes);
  char* host = staging_[staging];
  const auto tokens = static_cast<int32_t>(plan.token_ids.size());
  const auto sequences = static_cast<int32_t>(plan.kv_lengths.size());
  const auto logit_rows = static_cast<int32_t>(plan.logit_tokens.size());

  CopyPadded(plan.token_ids, sizes.tokens, 0, host + layout.token_ids);
  CopyPadded(plan.positions, sizes.tokens, 0, host + layout.positions);
  CopyPadded(plan.token_sequences, sizes.tokens, 0, host + layout.token_sequences);
  CopyPadded(plan.query_starts, sizes.sequences + 1, tokens, host + layout.query_starts);
  CopyPadded(plan.kv_lengths, sizes.sequences, 0, host + layout.kv_lengths);
  CopyPadded(plan.logit_tokens, sizes.logit_rows, 0, host + layout.logit_tokens);
  SampleRow no_row{};
  no_row.top_p = 1.0f;
  no_row.slot = -1;
  CopyPadded(plan.sample_rows, sizes.logit_rows, no_row, host + layout.sample_rows);
  const int32_t counts[3] = {tokens, sequences, logit_rows};
  std::memcpy(host + layout.counts, counts, sizeof(counts));
  auto* tables = reinterpret_cast<int32_t*>(host + layout.block_tables);
  std::fill_n(tables, sizes.sequences * sizes.blocks_max, 0);
  for (int64_t s = 0; s < sequences; ++s) {
    std::copy_n(plan.block_tables.begin() + s * plan.blocks_max, plan.blocks_max,
                tables + s * sizes.blocks_max);
  }
  device_.CopyToDevice(step_memory_, host, layout.bytes);

  const auto ints = [&](int64_t offset, int64_t count) {
    return Tensor(step_memory_ + offset, DType::kI32, {count});
  };
  view_.token_ids = ints(layout.token_ids, sizes.tokens);
  view_.positions = ints(layout.positions, sizes.tokens);
  view_.token_sequences = ints(layout.token_sequences, sizes.tokens);
  view_.query_starts = ints(layout.query_starts, sizes.sequences + 1);
  view_.kv_lengths = ints(layout.kv_lengths, sizes.sequences);
  view_.block_tables =
      Tensor(step_memory_ + layout.block_tables, DType::kI32, {sizes.sequences, sizes.blocks_max});
  view_.logit_tokens = ints(layout.logit_tokens, sizes.logit_rows);
  view_.counts = ints(layout.counts, 3);
  view_.last_ids = last_ids_;
  sample_rows_ = reinterpret_cast<const SampleRow*>(step_memory_ + layout.sample_rows);
  logits_ = logits_all_.Rows(0, sizes.logit_rows);
  ids_ = ids_all_.Rows(0, sizes.logit_rows);
}

void Batch::Download(int32_t staging) {
  device_.CopyToHost(ids_host_[staging], ids_.data, ids_.bytes());
}

}  // namespace glm::engine
