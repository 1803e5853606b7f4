// Sampler: draws the ids of a step's rows, or of its drafts, on all ranks alike.
//
// Who calls: a rank, on its thread, and its Drafter. Where the logits are a rank's slice of the
// vocabulary, each rank finds the best id of its slice, and the ranks exchange these in place of
// logits: two words a row.
#pragma once

#include <cstdint>

#include "kernels/communicator.h"
#include "kernels/ops.h"

namespace glm::engine {

class Sampler {
 public:
  /// Allocates for steps within `limits`; nothing with one rank. `communicator` must outlive this.
  Sampler(Device& device, Communicator& communicator, const StepLimits& limits);
  Sampler(const Sampler&) = delete;
  Sampler& operator=(const Sampler&) = delete;

  /// Device memory that the constructor takes.
  static int64_t DeviceBytes(const StepLimits& limits);

  /// As the op `sample`; args.logits are F32 [R, V], or [R, V / ranks]: this rank's columns, of
  /// rows for which that suffices. args.candidates and vocabulary_begin are left out.
  void Run(SampleArgs args);

 private:
  Device& device_;
  Communicator& communicator_;
  const StepLimits limits_;
  Tensor own_;  // F32 [R_max, 2]; with one rank empty, as is
  Tensor all_;  // F32 [ranks * R_max, 2]
};

}  // namespace glm::engine
