// The ops of the CPU backend; contracts in kernels/ops.h.
//
// Who calls: through the table in cpu_device.cc, on the rank thread. An op returns when its outputs
// are there.
#pragma once

#include "kernels/ops.h"

namespace glm::cpu {

void Embed(Device& device, const EmbedArgs& args);
void AddRmsNorm(Device& device, const AddRmsNormArgs& args);
void Linear(Device& device, const LinearArgs& args);
void NormRopeStore(Device& device, const NormRopeStoreArgs& args);
void Attention(Device& device, const AttentionArgs& args);
void SiluMul(Device& device, const SiluMulArgs& args);
void MoeRoute(Device& device, const MoeRouteArgs& args);
void MoeExperts(Device& device, const MoeExpertsArgs& args);
void GatherLogitRows(Device& device, const GatherLogitRowsArgs& args);
void Sample(Device& device, const SampleArgs& args);

/// The largest head size that Attention and NormRopeStore take.
inline constexpr int64_t kHeadSizeMax = 512;

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
