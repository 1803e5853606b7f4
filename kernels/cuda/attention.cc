// attention: which kernel computes which sequence of a step, and the quantised output.

#include <limits>
#include <numbers>

#include "kernels/cuda/attention_params.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/quantize_rows.h"

namespace glm::cuda {

int64_t AttentionScratchBytes(const StepLimits& limits, int sm_count) {
  ScratchLayout layout(nullptr);
  layout.Take<char>(DecodeScratchBytes(sm_count, limits.head_size));
  layout.Take<BFloat16>(limits.tokens_max * limits.query_heads * limits.head_size);
  return layout.bytes();
}

void Attention(Device& device, const AttentionArgs& args) {
  const OpScope op(device, "attention");
  const int64_t tokens = args.queries.shape[0];
  const int64_t columns = args.queries.shape[1];
  const int64_t kv_heads = args.cache.keys.shape[1];
  const int64_t block_size = args.cache.keys.shape[2];
  const int64_t head_size = args.cache.keys.shape[3];
  const int64_t query_heads = columns / head_size;
  CheckShape(args.queries, DType::kBF16, {-1, query_heads * head_size}, "attention.queries");
  const bool fp8 = args.cache.keys.dtype == DType::kF8E4M3;
  const DType cache = fp8 ? DType::kF8E4M3 : DType::kBF16;
  CheckShape(args.cache.keys, cache, {-1, -1, -1, -1}, "attention.keys");
  CheckShape(args.cache.values, cache, {-1, kv_heads, block_size, head_size}, "attention.values");
  CHECK(args.cache.keys.contiguous() && args.cache.values.contiguous());
  CHECK(query_heads % kv_heads == 0) << query_heads << " query heads, " << kv_heads << " kv heads";
  CHECK(!args.out.empty() || !args.quantized.values.empty()) << "attention has no output";

  ScratchLayout sizes(nullptr);
  const auto lay_out = [&](ScratchLayout& layout, void** parts, BFloat16** rows) {
    *parts = layout.Take<char>(DecodeScratchBytes(op.device().sm_count(), head_size));
    *rows = args.out.empty() ? layout.Take<BFloat16>(tokens * columns) : nullptr;
  };
  void* parts = nullptr;
  BFloat16* rows = nullptr;
  lay_out(sizes, &parts, &rows);
  ScratchLayout layout(op.device().Scratch(sizes.bytes()));
  lay_out(layout, &parts, &rows);

  Tensor out = args.out;
  if (out.empty()) out = Tensor(rows, DType::kBF16, {tokens, columns});
  CheckShape(out, DType::kBF16, {tokens, columns}, "attention.out");
  const BatchView& batch = args.batch;
  const AttentionParams params = {
      .counts = batch.counts.Data<int32_t>(),
      .positions = batch.positions.Data<int32_t>(),
      .query_starts = batch.query_starts.Data<int32_t>(),
      .kv_lengths = batch.kv_lengths.Data<int32_t>(),
      .block_tables = batch.block_tables.Data<int32_t>(),
      .block_tables_stride = batch.block_tables.stride[0],
      .queries = args.queries.Data<BFloat16>(),
      .queries_stride = args.queries.stride[0],
      .keys = args.cache.keys.data,
      .values = args.cache.values.data,
      .fp8 = fp8,
      .cache_blocks = args.cache.keys.shape[0],
      .block_size = static_cast<int>(block_size),
      .kv_heads = static_cast<int>(kv_heads),
      .heads_per_kv = static_cast<int>(query_heads / kv_heads),
      .scale_log2 = args.scale * std::numbers::log2e_v<float> * (fp8 ? args.cache.key_scale : 1.0f),
      .value_scale = fp8 ? args.cache.value_scale : 1.0f,
      .out = out.Data<BFloat16>(),
      .out_stride = out.stride[0],
      .sequences = static_cast<int>(batch.kv_lengths.shape[0]),
      .tokens = static_cast<int>(tokens),
  };
  // With hardly more tokens than sequences no prompt is worth a second launch.
  const bool prefill = tokens > 4 * params.sequences &&
                       tokens * params.heads_per_kv > kDecodeRowsMax &&
                       TakesPrefillAttention(params, static_cast<int>(head_size));
  const int rows_max = prefill ? kDecodeRowsMax : std::numeric_limits<int>::max();
  const int sm_count = op.device().sm_count();
  RunDecodeAttention(op.stream(), sm_count, params, static_cast<int>(head_size), rows_max, parts,
                     op.device().counters());
  if (prefill) {
    RunPrefillAttention(op.stream(), sm_count, params, static_cast<int>(head_size), rows_max);
  }
  if (!args.quantized.values.empty()) QuantizeRows(op, batch.counts, out, args.quantized);
}

}  // namespace glm::cuda
