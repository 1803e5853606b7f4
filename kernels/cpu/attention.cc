// Grouped-query attention over the paged cache.
#include <algorithm>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/head_group.h"

namespace glm::cpu {

void Attention(Device& device, const AttentionArgs& args) {
  const DType act = args.queries.dtype;
  const int64_t rows_max = args.queries.shape[0];
  const int64_t columns = args.queries.shape[1];
  const int64_t kv_heads = args.cache.keys.shape[1];
  const int64_t head_size = args.cache.keys.shape[3];
  const int64_t query_heads = columns / head_size;
  const int64_t group = query_heads / kv_heads;
  CHECK_LE(head_size, kHeadSizeMax);
  CheckShape(args.queries, act, {rows_max, group * kv_heads * head_size}, "attention.queries");
  CheckCache(args.cache, act, kv_heads, head_size, "attention.cache");
  const auto& shape = args.cache.keys.shape;
  CheckShape(args.cache.values, args.cache.keys.dtype, {shape[0], shape[1], shape[2], shape[3]},
             "attention.values");
  CheckOutputs(args.out, args.quantized, act, rows_max, columns, "attention.out");
  CpuDevice& cpu = CpuDevice::Of(device);
  const Scratch& scratch = cpu.scratch();
  const int64_t rows = ValidTokens(args.batch, rows_max);
  CHECK_LE(rows * columns, scratch.row_floats) << "the step is larger than PlanScratch was told";

  const int64_t parts = (group + kWeightedHeadsMax - 1) / kWeightedHeadsMax;
  WithActivationType(act, [&](auto type) {
    WithCacheType(args.cache.keys.dtype, [&](auto cell) {
      ParallelFor(cpu.pool(), rows * kv_heads * parts, 1, [&](int64_t i) {
        const int64_t token = i / (kv_heads * parts);
        const int64_t kv_head = i / parts % kv_heads;
        const int64_t first = i % parts * kWeightedHeadsMax;
        const int heads = static_cast<int>(std::min<int64_t>(kWeightedHeadsMax, group - first));
        const int64_t head = kv_head * group + first;
        const auto* source = args.queries.Row<decltype(type)>(token) + head * head_size;
        float queries[kWeightedHeadsMax * kHeadSizeMax];
        for (int64_t j = 0; j < heads * head_size; ++j) queries[j] = ToFloat(source[j]);
        HeadGroup<decltype(cell)> heads_of_token(args.batch, args.cache, args.scale, token, kv_head,
                                                 heads);
        heads_of_token.Run(queries, scratch.rows + token * columns + head * head_size);
      });
    });
  });
  ParallelFor(cpu.pool(), rows, RowGrain(columns), [&](int64_t token) {
    StoreRow(scratch.rows + token * columns, columns, act, token, args.out, args.quantized);
  });
}

}  // namespace glm::cpu
