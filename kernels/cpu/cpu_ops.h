// The ops of the CPU backend; contracts in kernels/ops.h.
//
// Who calls: through the table in cpu_device.cc, on the rank thread. An op returns when its outputs
// are there.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/ops.h"

namespace glm::cpu {

void Embed(Device& device, const EmbedArgs& args);
void AddRmsNorm(Device& device, const AddRmsNormArgs& args);
void Linear(Device& device, const LinearArgs& args);
void NormRopeStore(Device& device, const NormRopeStoreArgs& args);
void Attention(Device& device, const AttentionArgs& args);
void MlaRopeStore(Device& device, const MlaRopeStoreArgs& args);
void MlaAttention(Device& device, const MlaAttentionArgs& args);
void SiluMul(Device& device, const SiluMulArgs& args);
void MoeRoute(Device& device, const MoeRouteArgs& args);
void MoeExperts(Device& device, const MoeExpertsArgs& args);
void GatherLogitRows(Device& device, const GatherLogitRowsArgs& args);
void StoreTokens(Device& device, const StoreTokensArgs& args);
void Sample(Device& device, const SampleArgs& args);
void ChooseCandidates(Device& device, const ChooseCandidatesArgs& args);
void BeginDrafts(Device& device, const BeginDraftsArgs& args);
void AdvanceDrafts(Device& device, const AdvanceDraftsArgs& args);

/// The largest head size that the attention ops take.
inline constexpr int64_t kHeadSizeMax = 512;
/// The largest cell of a latent cache, L + rope.
inline constexpr int64_t kLatentCellMax = 1024;

/// Rows that make a range worth a thread, for rows of `width` elements.
inline int64_t RowGrain(int64_t width) {
  return std::max<int64_t>(1, 8192 / std::max<int64_t>(width, 1));
}

/// Valid rows of the step, from BatchView::counts; CHECKed against `rows_max`, the padded size.
inline int64_t ValidTokens(const BatchView& batch, int64_t rows_max) {
  const int64_t count = batch.counts.Data<int32_t>()[0];
  CHECK(count >= 0 && count <= rows_max) << count << " valid tokens in " << rows_max << " rows";
  return count;
}
inline int64_t ValidLogitRows(const BatchView& batch, int64_t rows_max) {
  const int64_t count = batch.counts.Data<int32_t>()[2];
  CHECK(count >= 0 && count <= rows_max) << count << " valid logit rows in " << rows_max << " rows";
  return count;
}

/// The id of token t: the plan's, or the newest of a slot.
inline int32_t TokenId(const BatchView& batch, int64_t t) {
  const int32_t id = batch.token_ids.Data<int32_t>()[t];
  return id >= 0 ? id : batch.last_ids.Data<int32_t>()[~id];
}

/// Calls body(T{}) with the element type of an activation tensor.
template <typename Body>
void WithActivationType(DType dtype, const Body& body) {
  CHECK(dtype == DType::kF32 || dtype == DType::kBF16) << Name(dtype) << " is no activation type";
  if (dtype == DType::kF32) {
    body(float{});
  } else {
    body(BFloat16{});
  }
}

/// Calls body(C{}) with the element type of a cache.
template <typename Body>
void WithCacheType(DType dtype, const Body& body) {
  if (dtype == DType::kF8E4M3) {
    body(Float8{});
  } else {
    WithActivationType(dtype, body);
  }
}

/// CHECKs the keys of a layer's cache, act or FP8, and the scales.
void CheckCache(const KvLayer& cache, DType act, int64_t kv_heads, int64_t head_size,
                const char* name);

/// Row `row` of `values` as floats; FP8 values unscaled.
void LoadRow(const Tensor& values, int64_t row, float* out);

/// Rounds values[0 .. n) to `act` in place, stores them to row `row` of `out` (unless empty), and
/// quantises the rounded values to row `row` of `quantized` (unless empty).
void StoreRow(float* values, int64_t n, DType act, int64_t row, const Tensor& out,
              const Activation& quantized);

/// CHECKs an optional rounded output and an optional quantised one, of which one must be there.
void CheckOutputs(const Tensor& out, const Activation& quantized, DType act, int64_t rows,
                  int64_t columns, const char* name);

/// Replaces values[0 .. n), n at most 128, by FP8 codes' values; returns their scale.
float QuantizeGroup(float* values, int64_t n);

}  // namespace glm::cpu
