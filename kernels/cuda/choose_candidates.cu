// Of what each rank has chosen of its ids (sample.cu), the best: a thread a row.
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"

namespace glm::cuda {
namespace {

constexpr int kRowsPerBlock = 128;

struct ChooseParams {
  const int32_t* counts;
  const uint2* candidates;  // [slices, row_count]
  int slices;
  int row_count;  // padding included
  const SampleRow* rows;
  int32_t* out_ids;
  int32_t* last_ids;
};

__global__ void __launch_bounds__(kRowsPerBlock) ChooseKernel(const ChooseParams p) {
  const int r = static_cast<int>(blockIdx.x * kRowsPerBlock + threadIdx.x);
  if (r >= p.counts[2]) return;
  uint32_t best_key = 0;
  int32_t best_id = 0;
  for (int i = 0; i < p.slices; ++i) {
    const uint2 candidate = p.candidates[static_cast<int64_t>(i) * p.row_count + r];
    const uint32_t key = candidate.x;
    const auto id = static_cast<int32_t>(candidate.y);
    if (key > best_key || (key == best_key && key > 0 && id < best_id)) {
      best_key = key;
      best_id = id;
    }
  }
  p.out_ids[r] = best_id;
  const int32_t slot = p.rows[r].slot;
  if (slot >= 0) p.last_ids[slot] = best_id;
}

}  // namespace

void ChooseCandidates(Device& device, const ChooseCandidatesArgs& args) {
  const OpScope op(device, "choose_candidates");
  const int64_t slices = args.candidates.shape[0];
  const int64_t rows = args.candidates.shape[1];
  CheckShape(args.candidates, DType::kF32, {-1, -1, 2}, "choose_candidates.candidates");
  CHECK(args.candidates.contiguous()) << "choose_candidates.candidates";
  CheckShape(args.out_ids, DType::kI32, {rows}, "choose_candidates.out_ids");
  const ChooseParams params = {
      .counts = args.batch.counts.Data<int32_t>(),
      .candidates = args.candidates.Data<uint2>(),
      .slices = static_cast<int>(slices),
      .row_count = static_cast<int>(rows),
      .rows = args.rows,
      .out_ids = args.out_ids.Data<int32_t>(),
      .last_ids = args.batch.last_ids.Data<int32_t>(),
  };
  const auto blocks = static_cast<unsigned>((rows + kRowsPerBlock - 1) / kRowsPerBlock);
  ChooseKernel<<<blocks, kRowsPerBlock, 0, op.stream()>>>(params);
}

}  // namespace glm::cuda
