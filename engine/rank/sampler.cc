#include "engine/rank/sampler.h"

#include "proto/base/log.h"

namespace glm::engine {

Sampler::Sampler(Device& device, Communicator& communicator, const StepLimits& limits)
    : device_(device), communicator_(communicator), limits_(limits) {
  const int64_t ranks = communicator.size();
  CHECK_EQ(limits.vocabulary_slices, ranks);
  if (ranks == 1) return;
  own_ = device.NewTensor(DType::kF32, {limits.logit_rows_max, 2});
  all_ = device.NewTensor(DType::kF32, {limits.logit_rows_max, 2 * ranks});
}

int64_t Sampler::DeviceBytes(const StepLimits& limits) {
  if (limits.vocabulary_slices == 1) return 0;
  return limits.logit_rows_max * 2 * (1 + limits.vocabulary_slices) * ByteSize(DType::kF32);
}

void Sampler::Run(SampleArgs args) {
  const int64_t rows = args.logits.shape[0];
  const int64_t columns = args.logits.shape[1];
  if (columns == limits_.vocabulary) return device_.ops().sample(device_, args);
  CHECK_EQ(columns * communicator_.size(), limits_.vocabulary) << "columns of a rank";
  const Tensor all = all_.Rows(0, rows);
  args.candidates = own_.Rows(0, rows);
  args.vocabulary_begin = communicator_.rank() * columns;
  device_.ops().sample(device_, args);
  communicator_.AllGatherColumns(device_, args.candidates, all);
  device_.ops().choose_candidates(
      device_,
      {.batch = args.batch, .candidates = all, .rows = args.rows, .out_ids = args.out_ids});
}

}  // namespace glm::engine
