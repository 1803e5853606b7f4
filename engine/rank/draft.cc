#include "engine/rank/draft.h"

#include "proto/base/log.h"

namespace glm::engine {
namespace {

// Arrays start at multiples of this, as wide as any vector load.
constexpr int64_t kAlignment = 64;

int64_t AlignUp(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

/// Bytes of the view's arrays and the sample rows of `rows` drafting sequences at most.
int64_t ViewBytes(int64_t rows, int64_t blocks_max) {
  // token_ids, positions, token_sequences, kv_lengths, logit_tokens, last_ids; the rest.
  return AlignUp(rows * static_cast<int64_t>(sizeof(SampleRow))) + 6 * AlignUp(rows * 4) +
         AlignUp((rows + 1) * 4) + AlignUp(3 * 4) + AlignUp(rows * blocks_max * 4);
}

}  // namespace

Drafter::Drafter(Device& device, Sampler& sampler, const BatchLimits& limits, DType dtype)
    : device_(device),
      sampler_(sampler),
      limits_(limits),
      memory_(static_cast<char*>(
          device.Allocate(ViewBytes(limits.step.sequences_max, limits.blocks_max)))),
      hidden_all_(device.NewTensor(dtype, {limits.step.sequences_max, limits.step.hidden})) {}

int64_t Drafter::DeviceBytes(const BatchLimits& limits, DType dtype) {
  return ViewBytes(limits.step.sequences_max, limits.blocks_max) +
         limits.step.sequences_max * limits.step.hidden * ByteSize(dtype);
}

void Drafter::SetView(const Batch& batch) {
  const int64_t rows = batch.sizes().draft_rows;
  char* next = memory_;
  const auto take = [&](int64_t bytes) {
    char* taken = next;
    next += AlignUp(bytes);
    return taken;
  };
  const auto ints = [&](int64_t count) { return Tensor(take(count * 4), DType::kI32, {count}); };
  sample_rows_ = reinterpret_cast<SampleRow*>(take(rows * static_cast<int64_t>(sizeof(SampleRow))));
  view_.token_ids = ints(rows);
  view_.positions = ints(rows);
  view_.token_sequences = ints(rows);
  view_.query_starts = ints(rows + 1);
  view_.kv_lengths = ints(rows);
  view_.logit_tokens = ints(rows);
  view_.counts = ints(3);
  view_.last_ids = ints(rows);
  const int64_t blocks_max = batch.sizes().blocks_max;
  view_.block_tables = Tensor(take(rows * blocks_max * 4), DType::kI32, {rows, blocks_max});
}

void Drafter::Draw(const Batch& batch, int64_t draft) {
  // Rows of the step's, with the same limits: what suffices there suffices here.
  sampler_.Run({.batch = view_,
                .logits = batch.draft_logits(),
                .vocabulary_used = limits_.vocabulary_used,
                .rows = sample_rows_,
                .out_ids = batch.draft_ids(draft)});
}

void Drafter::Run(Glm& model, const KvCache& cache, const Batch& batch) {
  CHECK(batch.sizes().draft_layer);
  const OpTable& ops = device_.ops();
  const int64_t rows = batch.sizes().draft_rows;
  const int64_t tokens = batch.sizes().tokens;
  const Tensor logits = batch.draft_logits();
  BatchView step = batch.next_view();
  if (rows == 0) {
    model.ForwardMtp(step, model.hidden(tokens), cache, logits);
    return;
  }
  SetView(batch);
  ops.begin_drafts(device_, {.batch = batch.view(),
                             .ids = batch.ids(),
                             .rows = batch.sample_rows(),
                             .draft_rows = batch.draft_rows(),
                             .draft_count = batch.draft_count(),
                             .out = view_,
                             .out_rows = sample_rows_});
  step.logit_tokens = view_.logit_tokens;
  model.ForwardMtp(step, model.hidden(tokens), cache, logits);
  Draw(batch, 0);
  const Tensor hidden = hidden_all_.Rows(0, rows);
  for (int64_t draft = 1; draft < batch.sizes().drafts; ++draft) {
    // Of the first draft these are rows of the step's tokens, of later ones row d of draft d.
    ops.gather_logit_rows(
        device_,
        {.batch = view_, .in = model.mtp_hidden(draft == 1 ? tokens : rows), .out = hidden});
    ops.advance_drafts(device_, {.drafts = view_, .rows = sample_rows_});
    model.ForwardMtp(view_, hidden, cache, logits);
    Draw(batch, draft);
  }
}

}  // namespace glm::engine
