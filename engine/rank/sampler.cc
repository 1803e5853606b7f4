#include "engine/rank/sampler.h"

#include "proto/base/log.h"

namespace glm::engine {

Sampler::Sampler(Device& device, Communicator& communicator, const StepLimits& limits)
    : device_(device), communicator_(communicator), limits_(limits) {
  const int64_t ranks = communicator.size();
  CHECK_EQ(limits.vocabulary_slices, ranks);
  if (ranks == 1) return;
  own_ = device.NewTensor(DType::kF32, {limits.logit_rows_max, 2});
  all_ = device.NewTensor(DType::kF32, {ranks * limits.logit_rows_max, 2});
}

int64_t Sampler::DeviceBytes(const StepLimits& limits) {
  if (limits.vocabulary_slices == 1) return 0;
  return limits.logit_rows_max * 2 * (1 + limits.vocabulary_slices) * ByteSize(DType::kF32);
}

void Sampler::Run(SampleArgs args) {
  const int64_t rows = args.logits.shape[0];
  const int64_t columns = args.logits.shape[1];
  if (columns == limits_.vocabulary) return device_.ops().sample(device_, args);
  const int64_t ranks = communicator_.size();
  CHECK_EQ(columns * ranks, limits_.vocabulary) << "columns of a rank";
  args.candidates = own_.Rows(0, rows);
  args.vocabulary_begin = communicator_.rank() * columns;
  device_.ops().sample(device_, args);
  // As one long row of each rank: that is quicker than many of two words.
  communicator_.AllGatherColumns(device_, Tensor(own_.data, DType::kF32, {1, rows * 2}),
                                 Tensor(all_.data, DType::kF32, {1, ranks * rows * 2}));
  const Tensor all(all_.data, DType::kF32, {ranks, rows, 2});
  device_.ops().choose_candidates(
      device_,
      {.batch = args.batch, .candidates = all, .rows = args.rows, .out_ids = args.out_ids});
}

}  // namespace glm::engine
