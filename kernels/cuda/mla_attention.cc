// mla_attention: which kernels compute it. The latent of GLM-4.7-Flash: absorb K_h by a GEMM a
// head, attend over the latents on wgmma, and expand the sums by V_h, another GEMM a head; prompts
// that begin in the step take the expanded form instead. Other sizes and FP8 caches: one kernel
// that does all, slowly.

#include <numbers>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/lt_gemms.h"
#include "kernels/cuda/mla_params.h"
#include "kernels/cuda/quantize_rows.h"

namespace glm::cuda {
namespace {

/// How the scratch of a step is used.
struct MlaScratch {
  BFloat16* latents;  // [T, N, L]: absorbed queries, then sums
  void* parts;
  BFloat16* rows;      // [T, N * v] where only the quantised output is wanted
  BFloat16* cells;     // [T, L + rope] of the step's tokens
  BFloat16* expanded;  // [T, N * (nope + v)]
};

struct MlaWidths {
  int64_t latent;    // N * L
  int64_t out;       // N * v
  int64_t cell;      // L + rope
  int64_t expanded;  // N * (nope + v)
};

MlaScratch LayOut(ScratchLayout& layout, int sm_count, int64_t tokens, const MlaWidths& widths) {
  MlaScratch scratch{};
  scratch.latents = layout.Take<BFloat16>(tokens * widths.latent);
  scratch.parts = layout.Take<char>(MlaPartsBytes(sm_count));
  scratch.rows = layout.Take<BFloat16>(tokens * widths.out);
  scratch.cells = layout.Take<BFloat16>(tokens * widths.cell);
  scratch.expanded = layout.Take<BFloat16>(tokens * widths.expanded);
  return scratch;
}

/// latents[t, h] = K_h^T (plain part of query h), rounded, of the first `rows` tokens.
LtProblem Absorption(const MlaParams& p, int64_t rows, BFloat16* latents) {
  return {.rows = rows,
          .outputs = p.latent,
          .depth = p.plain,
          .in = p.queries,
          .in_stride = static_cast<int64_t>(p.heads) * (p.plain + p.rope),
          .weight = p.kv_up,
          .weight_stride = p.latent,
          .out = latents,
          .out_stride = static_cast<int64_t>(p.heads) * p.latent,
          .weight_by_depth = true,
          .batch = {.count = p.heads,
                    .in = p.plain + p.rope,
                    .weight = static_cast<int64_t>(p.plain + p.value) * p.latent,
                    .out = p.latent}};
}

/// out[t, h] = V_h latents[t, h], of the first `rows` tokens.
LtProblem Expansion(const MlaParams& p, int64_t rows, const BFloat16* latents, const Tensor& out) {
  return {.rows = rows,
          .outputs = p.value,
          .depth = p.latent,
          .in = latents,
          .in_stride = static_cast<int64_t>(p.heads) * p.latent,
          .weight = p.kv_up + static_cast<int64_t>(p.plain) * p.latent,
          .weight_stride = p.latent,
          .out = out.data,
          .out_stride = out.stride[0],
          .batch = {.count = p.heads,
                    .in = p.latent,
                    .weight = static_cast<int64_t>(p.plain + p.value) * p.latent,
                    .out = p.value}};
}

/// expanded[t] = kv_up cells[t], the latent part: the keys and values of every head.
LtProblem KeysAndValues(const MlaParams& p, const MlaScratch& scratch) {
  const int64_t columns = static_cast<int64_t>(p.heads) * (p.plain + p.value);
  return {.rows = p.tokens,
          .outputs = columns,
          .depth = p.latent,
          .in = scratch.cells,
          .in_stride = p.latent + p.rope,
          .weight = p.kv_up,
          .weight_stride = p.latent,
          .out = scratch.expanded,
          .out_stride = columns};
}

MlaParams ParamsOf(const MlaAttentionArgs& args) {
  const BatchView& batch = args.batch;
  const int64_t heads = args.kv_up.shape[0];
  const int64_t latent = args.kv_up.shape[2];
  const int64_t rope = args.cache.keys.shape[3] - latent;
  const int64_t plain = args.queries.shape[1] / heads - rope;
  const int64_t value = args.kv_up.shape[1] - plain;
  CHECK(plain > 0 && rope > 0 && value > 0)
      << "mla_attention: plain " << plain << ", rope " << rope << ", value " << value;
  return {.counts = batch.counts.Data<int32_t>(),
          .positions = batch.positions.Data<int32_t>(),
          .query_starts = batch.query_starts.Data<int32_t>(),
          .kv_lengths = batch.kv_lengths.Data<int32_t>(),
          .token_sequences = batch.token_sequences.Data<int32_t>(),
          .block_tables = batch.block_tables.Data<int32_t>(),
          .block_tables_stride = batch.block_tables.stride[0],
          .queries = args.queries.Data<BFloat16>(),
          .cells = args.cache.keys.data,
          .kv_up = args.kv_up.Data<BFloat16>(),
          .cell_scale = args.cache.keys.dtype == DType::kF8E4M3 ? args.cache.key_scale : 1.0f,
          .cache_blocks = args.cache.keys.shape[0],
          .block_size = static_cast<int>(args.cache.keys.shape[2]),
          .heads = static_cast<int>(heads),
          .plain = static_cast<int>(plain),
          .rope = static_cast<int>(rope),
          .value = static_cast<int>(value),
          .latent = static_cast<int>(latent),
          .scale_log2 = args.scale * std::numbers::log2e_v<float>,
          .sequences = static_cast<int>(batch.kv_lengths.shape[0]),
          .tokens = static_cast<int>(args.queries.shape[0])};
}

void CheckArguments(const MlaAttentionArgs& args) {
  const DType cache = args.cache.keys.dtype;
  CHECK(cache == DType::kBF16 || cache == DType::kF8E4M3) << "cache of " << Name(cache);
  CheckShape(args.cache.keys, cache, {-1, 1, -1, -1}, "mla_attention.keys");
  CheckShape(args.kv_up, DType::kBF16, {-1, -1, -1}, "mla_attention.kv_up");
  CheckShape(args.queries, DType::kBF16, {-1, -1}, "mla_attention.queries");
  CHECK(args.cache.keys.contiguous() && args.kv_up.contiguous() && args.queries.contiguous());
  CHECK_EQ(args.queries.shape[1] % args.kv_up.shape[0], 0);
  CHECK(!args.out.empty() || !args.quantized.values.empty()) << "mla_attention has no output";
}

}  // namespace

int64_t MlaScratchBytes(const StepLimits& limits, int sm_count) {
  if (limits.latent == 0) return 0;
  ScratchLayout layout(nullptr);
  LayOut(layout, sm_count, limits.tokens_max,
         {.latent = limits.query_heads * limits.latent,
          .out = limits.query_heads * limits.head_size,
          .cell = limits.latent,
          .expanded = 2 * limits.query_heads * limits.head_size});
  return layout.bytes();
}

void MlaAttention(Device& device, const MlaAttentionArgs& args) {
  const OpScope op(device, "mla_attention");
  CheckArguments(args);
  const MlaParams params = ParamsOf(args);
  const int sm_count = op.device().sm_count();
  const int64_t columns = static_cast<int64_t>(params.heads) * params.value;
  const MlaWidths widths = {
      .latent = static_cast<int64_t>(params.heads) * params.latent,
      .out = columns,
      .cell = params.latent + params.rope,
      .expanded = static_cast<int64_t>(params.heads) * (params.plain + params.value)};
  ScratchLayout sizes(nullptr);
  LayOut(sizes, sm_count, params.tokens, widths);
  ScratchLayout layout(op.device().Scratch(sizes.bytes()));
  const MlaScratch scratch = LayOut(layout, sm_count, params.tokens, widths);

  Tensor out = args.out;
  if (out.empty()) out = Tensor(scratch.rows, DType::kBF16, {params.tokens, columns});
  CheckShape(out, DType::kBF16, {params.tokens, columns}, "mla_attention.out");
  // Prompts that begin in the step have a form of their own; the absorbed form is for the others.
  const bool fresh = HasMlaPrompts(params) && TakesMlaPrefill(params);
  int64_t absorbed = params.tokens;
  if (fresh && args.batch.prompts_begin >= 0 && kWholePromptMin * params.heads > kMlaSplitRowsMax) {
    absorbed = args.batch.prompts_begin;
  }
  const LtProblem absorb = Absorption(params, absorbed, scratch.latents);
  const LtProblem expand = Expansion(params, absorbed, scratch.latents, out);
  if (TakesWideMla(params, args.cache.keys.dtype) && LtGemms::Takes(absorb) &&
      LtGemms::Takes(expand)) {
    const bool few = TakesMlaFewTokens(params);
    if (few) {
      RunMlaAbsorption(op.stream(), params, scratch.latents);
    } else if (absorbed > 0) {
      op.device().gemms().Run(op.stream(), absorb);
    }
    if (TakesMlaDecode(params)) {
      RunMlaDecode(op.stream(), sm_count, params, scratch.latents, scratch.parts);
    } else if (absorbed > 0) {
      RunWideMla(op.stream(), sm_count, params, fresh, scratch.latents, scratch.parts);
    }
    if (few) {
      RunMlaExpansion(op.stream(), sm_count, params, scratch.latents, scratch.parts,
                      out.Data<BFloat16>(), out.stride[0]);
    } else if (absorbed > 0) {
      op.device().gemms().Run(op.stream(), expand);
    }
    if (fresh) {
      GatherCells(op.stream(), params, scratch.cells);
      op.device().gemms().Run(op.stream(), KeysAndValues(params, scratch));
      RunMlaPrefill(op.stream(), sm_count, params, kMlaSplitRowsMax, scratch.cells,
                    scratch.expanded, op.device().counters(), out.Data<BFloat16>(), out.stride[0]);
    }
  } else {
    RunPlainMla(op.stream(), params, args.cache.keys.dtype, out.Data<BFloat16>(), out.stride[0]);
  }
  if (!args.quantized.values.empty()) QuantizeRows(op, args.batch.counts, out, args.quantized);
}

}  // namespace glm::cuda
