// linear: which GEMM computes it. Few rows: our own, bound by reading the weight, for up to 256 of
// FP8 too. More: cuBLASLt.

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/lt_gemms.h"
#include "kernels/cuda/mid_gemm.h"
#include "kernels/cuda/side_stream.h"
#include "kernels/cuda/small_gemm.h"
#include "kernels/output_parts.h"

namespace glm::cuda {
namespace {

void CheckLinear(const LinearArgs& args, int64_t rows, int64_t outputs, int64_t depth) {
  const DType type = args.in.values.dtype;
  CHECK(type == DType::kBF16 || type == DType::kF8E4M3)
      << "linear.in is " << args.in.values.ToString()
      << "; the CUDA backend takes BF16 and F8_E4M3";
  CHECK_EQ(args.weight.scale_column_offset, 0) << "linear: blocks of scales that are cut";
  CheckShape(args.in.values, type, {rows, depth}, "linear.in");
  CheckShape(args.weight.values, type, {outputs, depth}, "linear.weight");
  CHECK(args.out.dtype == DType::kBF16 || args.out.dtype == DType::kF32);
  CheckShape(args.out, args.out.dtype, {rows, outputs}, "linear.out");
  if (!args.bias.empty()) CheckShape(args.bias, DType::kBF16, {outputs}, "linear.bias");
  if (type == DType::kBF16) {
    CHECK(args.in.scales.empty() && args.weight.scales.empty()) << "BF16 has no scales";
  } else if (args.weight.scales.rank == 1) {
    CheckShape(args.weight.scales, DType::kF32, {outputs}, "linear.weight.scales");
    CheckShape(args.in.scales, DType::kF32, {rows}, "linear.in.scales");
  } else {
    CheckShape(args.weight.scales, DType::kF32, {(outputs + 127) / 128, (depth + 127) / 128},
               "linear.weight.scales");
    CheckShape(args.in.scales, DType::kF32, {rows, (depth + 127) / 128}, "linear.in.scales");
  }
}

void Multiply(const OpScope& op, const LinearArgs& args) {
  const int64_t rows = args.in.values.shape[0];
  const int64_t depth = args.in.values.shape[1];
  const int64_t outputs = args.weight.values.shape[0];
  CheckLinear(args, rows, outputs, depth);

  const bool fp8 = args.in.values.dtype == DType::kF8E4M3;
  const SmallGemm small = {
      .rows = rows,
      .outputs = outputs,
      .depth = depth,
      .in = args.in.values.data,
      .in_stride = args.in.values.stride[0],
      .weight = args.weight.values.data,
      .weight_stride = args.weight.values.stride[0],
      .out = args.out.data,
      .out_stride = args.out.stride[0],
      .in_dtype = args.in.values.dtype,
      .out_dtype = args.out.dtype,
      .row_scales = args.in.scales.Data<float>(),
      .output_scales = args.weight.scales.Data<float>(),
      .block_scales = fp8 && args.weight.scales.rank == 2,
      .bias = args.bias.Data<BFloat16>(),
      .valid_rows = args.batch.counts.Data<int32_t>() + (args.per_logit_row ? 2 : 0),
  };
  // Beside an exchange it is not known how many clusters find room.
  const int sm_count = op.device().sm_count();
  if (op.device().exchange_sms() == 0 && TakesMidGemm(small, sm_count)) {
    RunMidGemm(op.stream(), sm_count, small);
    return;
  }
  if (TakesSmallGemm(small)) {
    RunSmallGemm(op.stream(), op.device().product_sms(), small);
    return;
  }
  const bool bias_apart = !args.bias.empty() && args.out.dtype == DType::kF32;
  const LtProblem large = {
      .rows = rows,
      .outputs = outputs,
      .depth = depth,
      .in = small.in,
      .in_stride = small.in_stride,
      .weight = small.weight,
      .weight_stride = small.weight_stride,
      .out = small.out,
      .out_stride = small.out_stride,
      .in_dtype = small.in_dtype,
      .out_dtype = small.out_dtype,
      .row_scales = small.row_scales,
      .output_scales = small.output_scales,
      .bias = bias_apart ? nullptr : small.bias,
      .sms = op.device().exchange_sms() > 0 ? op.device().product_sms() : 0,
  };
  if (small.block_scales || !LtGemms::Takes(large)) {
    RunPlainGemm(op.stream(), small);
    return;
  }
  op.device().gemms().Run(op.stream(), large);
  if (bias_apart) {
    AddBias(op.stream(), args.out.Data<float>(), args.out.stride[0], small.bias, rows, outputs);
  }
}

}  // namespace

void Linear(Device& device, const LinearArgs& args) {
  const OpScope op(device, "linear");
  if (args.sum_over == nullptr) return Multiply(op, args);
  const auto multiply = [&](int64_t first, int64_t count) {
    Multiply(op, OutputsOf(args, first, count));
  };
  SumBeside(op.device(), *args.sum_over, args.out, multiply);
}

}  // namespace glm::cuda
