// GEMMs through cuBLASLt, with the descriptor and algorithm of each problem found once and kept.
//
// Who calls: the ops, on the device's thread. The first call of a problem asks cuBLASLt's heuristic
// (tens of microseconds on the host); later calls, captured ones included, only launch.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <tuple>

#include "kernels/dtype.h"

namespace glm::cuda {

/// out[m, n] = in[m, k] . weight[n, k]^T, float sums. Strides count elements between rows.
struct LtProblem {
  int64_t rows = 0;     // m
  int64_t outputs = 0;  // n
  int64_t depth = 0;    // k
  const void* in = nullptr;
  int64_t in_stride = 0;
  const void* weight = nullptr;
  int64_t weight_stride = 0;
  void* out = nullptr;
  int64_t out_stride = 0;
  DType in_dtype = DType::kBF16;         // of in and weight: BF16, or F8E4M3
  DType out_dtype = DType::kBF16;        // BF16 or F32
  const float* row_scales = nullptr;     // F32 [m], with fp8
  const float* output_scales = nullptr;  // F32 [n], with fp8
  const void* bias = nullptr;            // BF16 [n] or null; only with BF16 out
  bool weight_by_depth = false;          // the weight is [k, n]; only with BF16
  int sms = 0;                           // that it may fill; 0: all

  /// Several products of these sizes, `in`, `weight` and `out` elements apart.
  struct Batch {
    int64_t count = 1;
    int64_t in = 0;
    int64_t weight = 0;
    int64_t out = 0;
    auto operator<=>(const Batch&) const = default;
  };
  Batch batch{};
};

class LtGemms {
 public:
  static constexpr int64_t kWorkspaceBytes = 32 << 20;

  /// `workspace`: kWorkspaceBytes of device memory.
  explicit LtGemms(void* workspace);
  LtGemms(const LtGemms&) = delete;
  LtGemms& operator=(const LtGemms&) = delete;
  ~LtGemms();

  void Run(cudaStream_t stream, const LtProblem& problem);

  /// 16-byte aligned rows everywhere; fp8 also needs extents that are multiples of 16.
  static bool Takes(const LtProblem& problem);

 private:
  struct Plan;
  using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, DType, DType, bool,
                         bool, int, LtProblem::Batch>;

  Plan& PlanOf(const LtProblem& problem);

  cublasLtHandle_t handle_ = nullptr;
  void* workspace_;
  std::map<Key, std::unique_ptr<Plan>> plans_;
};

}  // namespace glm::cuda
