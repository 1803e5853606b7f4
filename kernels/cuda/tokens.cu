// Ids of tokens: store_tokens, begin_drafts, advance_drafts. A few words a token: what counts is
// that the host need not wait for them.

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/launch_after.h"
#include "kernels/cuda/ptx.cuh"

namespace glm::cuda {
namespace {

constexpr int kThreads = 128;

struct StoreParams {
  const int32_t* counts;
  const int32_t* token_ids;
  const int32_t* last_ids;
  const int32_t* positions;
  const int32_t* token_sequences;
  const int32_t* block_tables;
  int64_t block_tables_stride;
  int32_t* cache;
  int block_size;
};

__global__ void __launch_bounds__(kThreads) StoreTokensKernel(const StoreParams p) {
  const int token = static_cast<int>(blockIdx.x) * kThreads + threadIdx.x;
  DependencyStart();
  if (token >= p.counts[0]) return;
  int32_t id = p.token_ids[token];
  if (id < 0) id = p.last_ids[~id];
  const int position = p.positions[token];
  const int64_t block =
      p.block_tables[p.token_sequences[token] * p.block_tables_stride + position / p.block_size];
  p.cache[block * p.block_size + position % p.block_size] = id;
}

/// The arrays of a view of drafts.
struct DraftView {
  int32_t* token_ids;
  int32_t* positions;
  int32_t* token_sequences;
  int32_t* query_starts;
  int32_t* kv_lengths;
  int32_t* block_tables;
  int64_t block_tables_stride;
  int32_t* logit_tokens;
  int32_t* counts;
  int rows;
};

struct BeginParams {
  const int32_t* token_ids;
  const int32_t* positions;
  const int32_t* logit_tokens;
  const int32_t* block_tables;
  int64_t block_tables_stride;
  int blocks_max;
  const int32_t* ids;
  const SampleRow* rows;
  const DraftRow* draft_rows;
  const int32_t* draft_count;
  DraftView out;
  SampleRow* out_rows;
};

/// How many of the row's drafts were drawn by the rows before them, one after the other.
__device__ int Accepted(const BeginParams& p, const DraftRow& draft) {
  int accepted = 0;
  while (accepted < draft.drafts) {
    const int row = draft.first_logit_row + accepted;
    if (p.ids[row] != p.token_ids[p.logit_tokens[row + 1]]) break;
    ++accepted;
  }
  return accepted;
}

/// A block a draft row; one more writes what is of all.
__global__ void __launch_bounds__(kThreads) BeginDraftsKernel(const BeginParams p) {
  DependencyStart();
  const int count = *p.draft_count;
  const DraftView& out = p.out;
  const int d = static_cast<int>(blockIdx.x);
  if (d == out.rows) {
    for (int i = threadIdx.x; i <= out.rows; i += kThreads) out.query_starts[i] = min(i, count);
    if (threadIdx.x < 3) out.counts[threadIdx.x] = count;
    return;
  }
  if (d >= count) return;
  const DraftRow draft = p.draft_rows[d];
  const int32_t* blocks = p.block_tables + draft.sequence * p.block_tables_stride;
  for (int i = threadIdx.x; i < p.blocks_max; i += kThreads) {
    out.block_tables[d * out.block_tables_stride + i] = blocks[i];
  }
  if (threadIdx.x != 0) return;
  const int row = draft.first_logit_row + Accepted(p, draft);
  const int token = p.logit_tokens[row];
  const int position = p.positions[token];
  out.token_ids[d] = ~d;
  out.positions[d] = position;
  out.token_sequences[d] = d;
  out.kv_lengths[d] = position + 1;
  out.logit_tokens[d] = token;
  // Without what looks back or reports.
  const SampleRow& step_row = p.rows[row];
  SampleRow next;
  next.temperature = step_row.temperature;
  next.top_p = step_row.top_p;
  next.min_p = step_row.min_p;
  next.top_k = step_row.top_k;
  next.position = static_cast<uint32_t>(position + 2);
  next.seed = step_row.seed;
  next.choice = step_row.choice;
  next.sequence = d;
  next.slot = d;
  p.out_rows[d] = next;
}

__global__ void __launch_bounds__(kThreads)
    AdvanceDraftsKernel(const DraftView view, SampleRow* rows) {
  const int d = static_cast<int>(blockIdx.x) * kThreads + threadIdx.x;
  DependencyStart();
  if (d >= view.counts[0]) return;
  ++view.positions[d];
  ++view.kv_lengths[d];
  view.logit_tokens[d] = d;
  ++rows[d].position;
}

DraftView CheckedView(const BatchView& view) {
  const int64_t rows = view.token_ids.shape[0];
  CheckShape(view.token_ids, DType::kI32, {rows}, "drafts.token_ids");
  CheckShape(view.positions, DType::kI32, {rows}, "drafts.positions");
  CheckShape(view.token_sequences, DType::kI32, {rows}, "drafts.token_sequences");
  CheckShape(view.query_starts, DType::kI32, {rows + 1}, "drafts.query_starts");
  CheckShape(view.kv_lengths, DType::kI32, {rows}, "drafts.kv_lengths");
  CheckShape(view.logit_tokens, DType::kI32, {rows}, "drafts.logit_tokens");
  CheckShape(view.counts, DType::kI32, {3}, "drafts.counts");
  return {.token_ids = view.token_ids.Data<int32_t>(),
          .positions = view.positions.Data<int32_t>(),
          .token_sequences = view.token_sequences.Data<int32_t>(),
          .query_starts = view.query_starts.Data<int32_t>(),
          .kv_lengths = view.kv_lengths.Data<int32_t>(),
          .block_tables = view.block_tables.Data<int32_t>(),
          .block_tables_stride = view.block_tables.stride[0],
          .logit_tokens = view.logit_tokens.Data<int32_t>(),
          .counts = view.counts.Data<int32_t>(),
          .rows = static_cast<int>(rows)};
}

unsigned BlocksFor(int64_t count) {
  return static_cast<unsigned>((count + kThreads - 1) / kThreads);
}

}  // namespace

void StoreTokens(Device& device, const StoreTokensArgs& args) {
  const OpScope op(device, "store_tokens");
  const BatchView& batch = args.batch;
  const int64_t tokens = batch.token_ids.shape[0];
  CheckShape(args.cache.ids, DType::kI32, {-1, -1}, "store_tokens.cache");
  CHECK(args.cache.ids.contiguous());
  const StoreParams params = {
      .counts = batch.counts.Data<int32_t>(),
      .token_ids = batch.token_ids.Data<int32_t>(),
      .last_ids = batch.last_ids.Data<int32_t>(),
      .positions = batch.positions.Data<int32_t>(),
      .token_sequences = batch.token_sequences.Data<int32_t>(),
      .block_tables = batch.block_tables.Data<int32_t>(),
      .block_tables_stride = batch.block_tables.stride[0],
      .cache = args.cache.ids.Data<int32_t>(),
      .block_size = static_cast<int>(args.cache.ids.shape[1]),
  };
  LaunchAfter(StoreTokensKernel, dim3(BlocksFor(tokens)), kThreads, 0, op.stream(), params);
}

void BeginDrafts(Device& device, const BeginDraftsArgs& args) {
  const OpScope op(device, "begin_drafts");
  const BatchView& batch = args.batch;
  const DraftView out = CheckedView(args.out);
  const int64_t blocks_max = batch.block_tables.shape[1];
  CheckShape(args.out.block_tables, DType::kI32, {out.rows, blocks_max}, "drafts.block_tables");
  CheckShape(args.draft_count, DType::kI32, {1}, "begin_drafts.draft_count");
  const BeginParams params = {
      .token_ids = batch.token_ids.Data<int32_t>(),
      .positions = batch.positions.Data<int32_t>(),
      .logit_tokens = batch.logit_tokens.Data<int32_t>(),
      .block_tables = batch.block_tables.Data<int32_t>(),
      .block_tables_stride = batch.block_tables.stride[0],
      .blocks_max = static_cast<int>(blocks_max),
      .ids = args.ids.Data<int32_t>(),
      .rows = args.rows,
      .draft_rows = args.draft_rows,
      .draft_count = args.draft_count.Data<int32_t>(),
      .out = out,
      .out_rows = args.out_rows,
  };
  LaunchAfter(BeginDraftsKernel, dim3(static_cast<unsigned>(out.rows) + 1), kThreads, 0,
              op.stream(), params);
}

void AdvanceDrafts(Device& device, const AdvanceDraftsArgs& args) {
  const OpScope op(device, "advance_drafts");
  const DraftView view = CheckedView(args.drafts);
  LaunchAfter(AdvanceDraftsKernel, dim3(BlocksFor(view.rows)), kThreads, 0, op.stream(), view,
              args.rows);
}

}  // namespace glm::cuda
