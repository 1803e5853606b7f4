// Batch: the device buffers of a step, sized once for the largest, and the upload of a plan.
//
// Who calls: a rank, on its thread. All arrays of a step lie behind each other in one pinned host
// buffer and go to the device in one copy; where each begins depends on the padded sizes alone, so
// a captured step of the same sizes finds everything at the same place. Device memory exists once:
// copies and ops are ordered. Host memory exists once for each step that may be in flight.
//
// Padding: on a device that can capture, T, S, R and the width of the block tables are rounded up
// to buckets (1, 2, 3, 4, 6, 8, 12, 16, ...), so that few different steps exist; on others they are
// exact. R is at least 1. Padding is zeros, apart from query_starts (T_valid) and sample slots
// (-1).
#pragma once

#include <cstdint>
#include <vector>

#include "engine/schedule/step.h"
#include "kernels/ops.h"

namespace glm::engine {

/// Padded sizes of a step.
struct StepSizes {
  int64_t tokens = 0;      // T
  int64_t sequences = 0;   // S
  int64_t logit_rows = 0;  // R
  int64_t blocks_max = 0;  // width of block_tables

  bool operator==(const StepSizes&) const = default;
};

/// What the largest step is, and how many may be in flight.
struct BatchLimits {
  StepLimits step;
  int64_t blocks_max = 0;  // blocks of the longest sequence
  int64_t slots = 0;       // entries of last_ids
  int32_t steps_in_flight_max = 1;
};

class Batch {
 public:
  /// Allocates everything, and clears last_ids.
  Batch(Device& device, const BatchLimits& limits);
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  /// Device memory that the constructor takes.
  static int64_t DeviceBytes(const BatchLimits& limits);
  /// The smallest bucket that holds `count`, at most `count_max`.
  static int64_t Bucket(int64_t count, int64_t count_max);

  StepSizes SizesOf(const StepPlan& plan) const;

  /// Starts the copy of `plan` to the device, through host buffer `staging` (0 ..
  /// steps_in_flight_max - 1), which must not be in use by a step in flight; afterwards the views
  /// below are those of this plan.
  void Upload(const StepPlan& plan, int32_t staging);
  /// Starts the copy of the sampled ids to ids_host(staging).
  void Download(int32_t staging);

  const BatchView& view() const { return view_; }
  const SampleRow* sample_rows() const { return sample_rows_; }  // device, [R]
  const Tensor& logits() const { return logits_; }               // F32 [R, V]
  const Tensor& ids() const { return ids_; }                     // I32 [R]
  const int32_t* ids_host(int32_t staging) const { return ids_host_[staging]; }

 private:
  Device& device_;
  const BatchLimits limits_;
  char* step_memory_ = nullptr;  // device: all arrays of a step
  Tensor last_ids_;              // I32 [slots]
  Tensor logits_all_;            // F32 [R_max, V]
  Tensor ids_all_;               // I32 [R_max]
  std::vector<char*> staging_;   // pinned host memory, each as large as step_memory_
  std::vector<int32_t*> ids_host_;

  BatchView view_;
  const SampleRow* sample_rows_ = nullptr;
  Tensor logits_;
  Tensor ids_;
};

}  // namespace glm::engine
