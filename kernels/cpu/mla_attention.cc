// Latent attention in the absorbed form, for prefill and decode alike: the cached latent is key and
// value of every head, so that a position is read once for four heads.
#include <algorithm>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/head_group.h"

namespace glm::cpu {
namespace {

/// The sizes of one call.
struct Sizes {
  int64_t heads;   // N
  int64_t plain;   // of a head's key: what is not rotated
  int64_t rope;    // of a head's key: what is
  int64_t value;   // of a head
  int64_t latent;  // L

  int64_t query() const { return plain + rope; }
  int64_t cell() const { return latent + rope; }
};

Sizes SizesOf(const MlaAttentionArgs& args) {
  Sizes sizes;
  sizes.heads = args.kv_up.shape[0];
  sizes.latent = args.kv_up.shape[2];
  sizes.rope = args.cache.keys.shape[3] - sizes.latent;
  sizes.plain = args.queries.shape[1] / sizes.heads - sizes.rope;
  sizes.value = args.kv_up.shape[1] - sizes.plain;
  return sizes;
}

void CheckArguments(const MlaAttentionArgs& args, const Sizes& sizes) {
  const DType act = args.queries.dtype;
  const int64_t rows = args.queries.shape[0];
  CHECK(sizes.rope > 0 && sizes.plain > 0 && sizes.value > 0)
      << "mla_attention: queries " << args.queries.ToString() << ", keys "
      << args.cache.keys.ToString() << ", kv_up " << args.kv_up.ToString();
  CHECK_LE(sizes.cell(), kLatentCellMax);
  CheckShape(args.queries, act, {rows, sizes.heads * sizes.query()}, "mla_attention.queries");
  CheckShape(args.kv_up, act, {sizes.heads, sizes.plain + sizes.value, sizes.latent},
             "mla_attention.kv_up");
  CHECK(args.kv_up.contiguous()) << "mla_attention.kv_up";
  CheckCache(args.cache, act, 1, sizes.cell(), "mla_attention.cache");
  CheckOutputs(args.out, args.quantized, act, rows, sizes.heads * sizes.value, "mla_attention.out");
}

/// [K_h^T q_plain rounded, q_rope]: what is multiplied with a cell of the cache.
template <typename T>
void Absorb(const T* query, const T* key_rows, const Sizes& sizes, float* out) {
  float plain[kHeadSizeMax];
  for (int64_t i = 0; i < sizes.plain; ++i) plain[i] = ToFloat(query[i]);
  std::fill_n(out, sizes.latent, 0.0f);
  AddWeightedRows(plain, 0, 1, key_rows, sizes.latent, static_cast<int>(sizes.plain), sizes.latent,
                  out, 0);
  for (int64_t i = 0; i < sizes.latent; ++i) out[i] = ToFloat(FromFloat<T>(out[i]));
  for (int64_t i = 0; i < sizes.rope; ++i) {
    out[sizes.latent + i] = ToFloat(query[sizes.plain + i]);
  }
}

/// V_h c: a head's output from the weighted sum of latents.
template <typename T>
void Expand(const float* latent, const T* value_rows, const Sizes& sizes, float* out) {
  for (int64_t begin = 0; begin < sizes.value; begin += kDotOutputsMax) {
    const int64_t count = std::min<int64_t>(kDotOutputsMax, sizes.value - begin);
    float sums[kDotOutputsMax];
    DotBlock(&latent, 1, value_rows + begin * sizes.latent, sizes.latent, static_cast<int>(count),
             sizes.latent, sums);
    std::copy_n(sums, count, out + begin);
  }
}

/// Heads first .. first + heads of a token: `heads` rows of values' size go to `out`.
template <typename T, typename Cell>
void RunHeads(const MlaAttentionArgs& args, const Sizes& sizes, const KvLayer& latents,
              int64_t token, int64_t first, int heads, float* out) {
  float queries[kWeightedHeadsMax * kLatentCellMax];
  float sums[kWeightedHeadsMax * kLatentCellMax];
  for (int h = 0; h < heads; ++h) {
    Absorb(args.queries.Row<T>(token) + (first + h) * sizes.query(),
           args.kv_up.Slice(first + h).Data<T>(), sizes, queries + h * sizes.cell());
  }
  HeadGroup<Cell>(args.batch, latents, args.scale, token, 0, heads).Run(queries, sums);
  for (int h = 0; h < heads; ++h) {
    float* sum = sums + h * sizes.latent;
    for (int64_t i = 0; i < sizes.latent; ++i) sum[i] = ToFloat(FromFloat<T>(sum[i]));
    Expand(sum, args.kv_up.Slice(first + h).Data<T>() + sizes.plain * sizes.latent, sizes,
           out + h * sizes.value);
  }
}

}  // namespace

void MlaAttention(Device& device, const MlaAttentionArgs& args) {
  const Sizes sizes = SizesOf(args);
  CheckArguments(args, sizes);
  const DType act = args.queries.dtype;
  const int64_t columns = sizes.heads * sizes.value;
  CpuDevice& cpu = CpuDevice::Of(device);
  const Scratch& scratch = cpu.scratch();
  const int64_t rows = ValidTokens(args.batch, args.queries.shape[0]);
  CHECK_LE(rows * columns, scratch.row_floats) << "the step is larger than PlanScratch was told";

  // The latent part of a cell is the value.
  KvLayer latents = args.cache;
  latents.values = latents.keys.Columns(0, sizes.latent);
  latents.value_scale = latents.key_scale;
  const int64_t parts = (sizes.heads + kWeightedHeadsMax - 1) / kWeightedHeadsMax;
  WithActivationType(act, [&](auto type) {
    WithCacheType(latents.keys.dtype, [&](auto cell) {
      ParallelFor(cpu.pool(), rows * parts, 1, [&](int64_t i) {
        const int64_t token = i / parts;
        const int64_t first = i % parts * kWeightedHeadsMax;
        const int heads =
            static_cast<int>(std::min<int64_t>(kWeightedHeadsMax, sizes.heads - first));
        RunHeads<decltype(type), decltype(cell)>(
            args, sizes, latents, token, first, heads,
            scratch.rows + token * columns + first * sizes.value);
      });
    });
  });
  ParallelFor(cpu.pool(), rows, RowGrain(columns), [&](int64_t token) {
    StoreRow(scratch.rows + token * columns, columns, act, token, args.out, args.quantized);
  });
}

}  // namespace glm::cpu
