#include "kernels/cuda/lt_gemms.h"

#include "kernels/cuda/cuda_check.h"

namespace glm::cuda {
namespace {

cudaDataType_t CudaType(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return CUDA_R_32F;
    case DType::kBF16:
      return CUDA_R_16BF;
    default:
      CHECK(dtype == DType::kF8E4M3) << Name(dtype) << " has no cuBLASLt form here";
      return CUDA_R_8F_E4M3;
  }
}

bool Aligned(const void* rows, int64_t stride, DType dtype) {
  return reinterpret_cast<uintptr_t>(rows) % 16 == 0 && stride * ByteSize(dtype) % 16 == 0;
}

void SetBatch(cublasLtMatrixLayout_t layout, int64_t count, int64_t apart) {
  const auto products = static_cast<int32_t>(count);
  CUBLAS_CHECK(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                                                &products, sizeof(products)));
  CUBLAS_CHECK(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                                &apart, sizeof(apart)));
}

}  // namespace

// cuBLASLt is column-major: its A is the weight (transposed), its B the input, its D the output.
struct LtGemms::Plan {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t a = nullptr;
  cublasLtMatrixLayout_t b = nullptr;
  cublasLtMatrixLayout_t d = nullptr;
  cublasLtMatmulAlgo_t algorithm;

  ~Plan() {
    cublasLtMatrixLayoutDestroy(d);
    cublasLtMatrixLayoutDestroy(b);
    cublasLtMatrixLayoutDestroy(a);
    cublasLtMatmulDescDestroy(operation);
  }

  template <typename T>
  void Set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof(value)));
  }

  void SetPointers(const LtProblem& problem) {
    if (problem.in_dtype == DType::kF8E4M3) {
      Set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, problem.output_scales);
      Set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, problem.row_scales);
    }
    if (problem.bias != nullptr) Set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, problem.bias);
  }
};

LtGemms::LtGemms(void* workspace) : workspace_(workspace) {
  CUBLAS_CHECK(cublasLtCreate(&handle_));
}

LtGemms::~LtGemms() {
  plans_.clear();
  cublasLtDestroy(handle_);
}

bool LtGemms::Takes(const LtProblem& problem) {
  const int64_t unit = problem.in_dtype == DType::kF8E4M3 ? 16 : 1;
  return problem.outputs % unit == 0 && problem.depth % unit == 0 &&
         Aligned(problem.in, problem.in_stride, problem.in_dtype) &&
         Aligned(problem.in, problem.batch.in, problem.in_dtype) &&
         Aligned(problem.weight, problem.batch.weight, problem.in_dtype) &&
         Aligned(problem.out, problem.batch.out, problem.out_dtype) &&
         Aligned(problem.weight, problem.weight_stride, problem.in_dtype) &&
         Aligned(problem.out, problem.out_stride, problem.out_dtype);
}

LtGemms::Plan& LtGemms::PlanOf(const LtProblem& problem) {
  const Key key{problem.rows,
                problem.outputs,
                problem.depth,
                problem.in_stride,
                problem.weight_stride,
                problem.out_stride,
                problem.in_dtype,
                problem.out_dtype,
                problem.bias != nullptr,
                problem.weight_by_depth,
                problem.sms,
                problem.batch};
  std::unique_ptr<Plan>& plan = plans_[key];
  if (plan != nullptr) return *plan;

  plan = std::make_unique<Plan>();
  const cudaDataType_t in_type = CudaType(problem.in_dtype);
  const cudaDataType_t out_type = CudaType(problem.out_dtype);
  const auto rows = static_cast<uint64_t>(problem.rows);
  const auto outputs = static_cast<uint64_t>(problem.outputs);
  const auto depth = static_cast<uint64_t>(problem.depth);
  CUBLAS_CHECK(cublasLtMatmulDescCreate(&plan->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  plan->Set(CUBLASLT_MATMUL_DESC_TRANSA, problem.weight_by_depth ? CUBLAS_OP_N : CUBLAS_OP_T);
  plan->Set(CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
  if (problem.in_dtype == DType::kF8E4M3) {
    constexpr int32_t kOuterVector = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    plan->Set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, kOuterVector);
    plan->Set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, kOuterVector);
  }
  if (problem.bias != nullptr) {
    plan->Set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    plan->Set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, CUDA_R_16BF);
  }
  if (problem.sms > 0) {
    plan->Set(CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET, static_cast<int32_t>(problem.sms));
  }
  plan->SetPointers(problem);
  CUBLAS_CHECK(
      cublasLtMatrixLayoutCreate(&plan->a, in_type, problem.weight_by_depth ? outputs : depth,
                                 problem.weight_by_depth ? depth : outputs, problem.weight_stride));
  CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&plan->b, in_type, depth, rows, problem.in_stride));
  CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&plan->d, out_type, outputs, rows, problem.out_stride));
  if (problem.batch.count > 1) {
    SetBatch(plan->a, problem.batch.count, problem.batch.weight);
    SetBatch(plan->b, problem.batch.count, problem.batch.in);
    SetBatch(plan->d, problem.batch.count, problem.batch.out);
  }

  cublasLtMatmulPreference_t preference = nullptr;
  CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
  constexpr uint64_t kBytes = kWorkspaceBytes;
  CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(
      preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kBytes, sizeof(kBytes)));
  cublasLtMatmulHeuristicResult_t result = {};
  int found = 0;
  CUBLAS_CHECK(cublasLtMatmulAlgoGetHeuristic(handle_, plan->operation, plan->a, plan->b, plan->d,
                                              plan->d, preference, 1, &result, &found));
  CHECK_EQ(found, 1) << "cuBLASLt has no algorithm for " << problem.rows << " x " << problem.outputs
                     << " x " << problem.depth << " of " << Name(problem.in_dtype);
  CUBLAS_CHECK(cublasLtMatmulPreferenceDestroy(preference));
  plan->algorithm = result.algo;
  return *plan;
}

void LtGemms::Run(cudaStream_t stream, const LtProblem& problem) {
  Plan& plan = PlanOf(problem);
  plan.SetPointers(problem);
  constexpr float kOne = 1;
  constexpr float kZero = 0;
  CUBLAS_CHECK(cublasLtMatmul(handle_, plan.operation, &kOne, problem.weight, plan.a, problem.in,
                              plan.b, &kZero, problem.out, plan.d, problem.out, plan.d,
                              &plan.algorithm, workspace_, kWorkspaceBytes, stream));
}

}  // namespace glm::cuda
