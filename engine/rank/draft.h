// Drafter: lets the draft layer run behind a step: over the step's tokens, so that its KV cache is
// whole, and then K - 1 times over one token a sequence that drafts, each time the one drawn last.
//
// Who calls: a rank, on its thread, after `sample` of the step. The host decides nothing in between
// but by the sizes of the plan: how many drafts were right, and so where each sequence goes on, is
// read on the device.
#pragma once

#include <cstdint>

#include "engine/model/glm.h"
#include "engine/rank/batch.h"
#include "engine/rank/sampler.h"
#include "kernels/ops.h"

namespace glm::engine {

class Drafter {
 public:
  /// Allocates for steps within `limits`; `dtype` is that of hidden states. `sampler` must outlive
  /// this.
  Drafter(Device& device, Sampler& sampler, const BatchLimits& limits, DType dtype);
  Drafter(const Drafter&) = delete;
  Drafter& operator=(const Drafter&) = delete;

  /// Device memory that the constructor takes.
  static int64_t DeviceBytes(const BatchLimits& limits, DType dtype);

  /// Drafts as the batch's plan says, into batch.draft_ids. REQUIRES that the draft layer runs in
  /// the plan, and that Forward and sample of the step have been issued.
  void Run(Glm& model, const KvCache& cache, const Batch& batch);

 private:
  void SetView(const Batch& batch);
  void Draw(const Batch& batch, int64_t draft);

  Device& device_;
  Sampler& sampler_;
  const BatchLimits limits_;
  char* memory_ = nullptr;            // device: the arrays of the view below, and its rows
  SampleRow* sample_rows_ = nullptr;  // device, [D_max]
  Tensor hidden_all_;                 // act [D_max, H]: what the next draft goes on from
  BatchView view_;                    // D tokens of D sequences
};

}  // namespace glm::engine
