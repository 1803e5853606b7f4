// Ids of tokens: where a sequence keeps them, and which of them the draft layer goes on from.
#include <algorithm>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/sample_row.h"

namespace glm::cpu {
namespace {

/// How many of the row's drafts were drawn by the rows before them, one after the other.
int32_t Accepted(const BeginDraftsArgs& args, const DraftRow& draft) {
  const int32_t* ids = args.ids.Data<int32_t>() + draft.first_logit_row;
  const int32_t* tokens = args.batch.logit_tokens.Data<int32_t>() + draft.first_logit_row;
  int32_t accepted = 0;
  while (accepted < draft.drafts) {
    const int32_t proposed = args.batch.token_ids.Data<int32_t>()[tokens[accepted + 1]];
    DCHECK(proposed >= 0) << "a draft whose id is not in the plan";
    if (ids[accepted] != proposed) break;
    ++accepted;
  }
  return accepted;
}

/// The step's row for the draft after the next token, without what looks back or reports.
SampleRow RowOfDraft(const SampleRow& step_row, int32_t d, int32_t position) {
  SampleRow row;
  row.temperature = step_row.temperature;
  row.top_p = step_row.top_p;
  row.min_p = step_row.min_p;
  row.top_k = step_row.top_k;
  row.position = static_cast<uint32_t>(position);
  row.seed = step_row.seed;
  row.choice = step_row.choice;
  row.sequence = d;
  row.slot = d;
  return row;
}

void CheckView(const BatchView& view, int64_t rows) {
  CheckShape(view.token_ids, DType::kI32, {rows}, "drafts.token_ids");
  CheckShape(view.positions, DType::kI32, {rows}, "drafts.positions");
  CheckShape(view.token_sequences, DType::kI32, {rows}, "drafts.token_sequences");
  CheckShape(view.query_starts, DType::kI32, {rows + 1}, "drafts.query_starts");
  CheckShape(view.kv_lengths, DType::kI32, {rows}, "drafts.kv_lengths");
  CheckShape(view.logit_tokens, DType::kI32, {rows}, "drafts.logit_tokens");
  CheckShape(view.counts, DType::kI32, {3}, "drafts.counts");
}

void BeginDraft(const BeginDraftsArgs& args, int32_t d) {
  const DraftRow& draft = args.draft_rows[d];
  const int32_t row = draft.first_logit_row + Accepted(args, draft);
  const int32_t token = args.batch.logit_tokens.Data<int32_t>()[row];
  const int32_t position = args.batch.positions.Data<int32_t>()[token];
  const BatchView& out = args.out;
  out.token_ids.Data<int32_t>()[d] = ~d;
  out.positions.Data<int32_t>()[d] = position;
  out.token_sequences.Data<int32_t>()[d] = d;
  out.kv_lengths.Data<int32_t>()[d] = position + 1;
  out.logit_tokens.Data<int32_t>()[d] = token;
  const int32_t* blocks = args.batch.block_tables.Row<int32_t>(draft.sequence);
  std::copy_n(blocks, out.block_tables.shape[1], out.block_tables.Row<int32_t>(d));
  args.out_rows[d] = RowOfDraft(args.rows[row], d, position + 2);
}

}  // namespace

void StoreTokens(Device& /*device*/, const StoreTokensArgs& args) {
  const BatchView& batch = args.batch;
  const int64_t rows = batch.token_ids.shape[0];
  const Tensor& cache = args.cache.ids;
  CheckShape(cache, DType::kI32, {-1, -1}, "store_tokens.cache");
  CheckShape(batch.positions, DType::kI32, {rows}, "store_tokens.positions");
  CheckShape(batch.token_sequences, DType::kI32, {rows}, "store_tokens.token_sequences");
  const int64_t tokens = ValidTokens(batch, rows);
  for (int64_t t = 0; t < tokens; ++t) {
    const History history(args.cache, batch, batch.token_sequences.Data<int32_t>()[t]);
    const int64_t cell = history.Cell(batch.positions.Data<int32_t>()[t]);
    DCHECK(cell >= 0 && cell < cache.elements()) << cell;
    cache.Data<int32_t>()[cell] = TokenId(batch, t);
  }
}

void BeginDrafts(Device& /*device*/, const BeginDraftsArgs& args) {
  const BatchView& out = args.out;
  const int64_t rows = out.token_ids.shape[0];
  CheckView(out, rows);
  CheckShape(out.block_tables, DType::kI32, {rows, args.batch.block_tables.shape[1]},
             "drafts.block_tables");
  CheckShape(args.draft_count, DType::kI32, {1}, "begin_drafts.draft_count");
  const int32_t count = args.draft_count.Data<int32_t>()[0];
  CHECK(count >= 0 && count <= rows) << count << " draft rows of " << rows;
  for (int32_t d = 0; d < count; ++d) BeginDraft(args, d);
  int32_t* starts = out.query_starts.Data<int32_t>();
  for (int32_t d = 0; d <= rows; ++d) starts[d] = std::min(d, count);
  std::fill_n(out.counts.Data<int32_t>(), 3, count);
}

void AdvanceDrafts(Device& /*device*/, const AdvanceDraftsArgs& args) {
  const int64_t rows = args.drafts.token_ids.shape[0];
  CheckView(args.drafts, rows);
  const int64_t count = ValidTokens(args.drafts, rows);
  for (int32_t d = 0; d < count; ++d) {
    ++args.drafts.positions.Data<int32_t>()[d];
    ++args.drafts.kv_lengths.Data<int32_t>()[d];
    args.drafts.logit_tokens.Data<int32_t>()[d] = d;
    ++args.rows[d].position;
  }
}

}  // namespace glm::cpu
