// Rank: one device of a worker: its thread, Device, weights, KV memory and the steps it runs.
//
// Who calls: RankGroup, on the engine thread (Submit, Wait) and on the one that creates it. The
// rank thread owns the device: it creates it, loads the weights, plans all memory, then issues one
// step after another and never waits for the device. The engine thread does that, in Wait, on the
// event recorded at the end of a step; so step n+1 is issued while step n runs. A device error
// aborts the process.
#pragma once

#include <array>
#include <chrono>
#include <deque>
#include <memory>
#include <set>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/config.h"
#include "engine/model/glm.h"
#include "engine/rank/batch.h"
#include "engine/rank/start_gate.h"
#include "kernels/communicator.h"
#include "proto/base/mutex.h"

namespace glm::engine {

/// What a rank is told; all ranks of a worker are told the same.
struct RankOptions {
  std::string folder;            // of the checkpoint
  std::string device;            // "cpu" or "cuda"
  int32_t device_index = 0;      // of rank 0's GPU; the others have the next ones
  int32_t ranks_per_device = 1;  // that share a GPU
  GpuExchange exchange = GpuExchange::kAuto;
  int64_t overlap_tokens_min = GlmOptions{}.overlap_tokens_min;
  int32_t cpu_threads = 1;       // of this rank's CPU device, at least 1
  DType dtype = DType::kF32;     // of activations
  DType kv_dtype = DType::kF32;  // of the KV cache: as activations, or FP8
  bool quantize = false;         // linears to FP8 while loading
  bool random_weights = false;   // by the config alone
  int32_t load_threads = 1;      // of this rank
  int64_t kv_blocks = 0;
  int32_t block_size = 0;
  /// `step` complete, as Glm::CompleteLimits leaves it for a rank's config. With drafts_max above 0
  /// the draft layer is loaded.
  BatchLimits batch;
};

/// Where a rank's device memory goes.
struct RankMemory {
  std::string device;
  int64_t weight_bytes = 0;
  int64_t kv_bytes = 0;
  int64_t buffer_bytes = 0;  // of the model's activations
  int64_t scratch_bytes = 0;
  int64_t batch_bytes = 0;
  int64_t exchange_bytes = 0;  // of the communicator
  int64_t graph_bytes = 0;     // of the driver's, for captured steps; an estimate
  /// All that a step needs but weights and cache.
  int64_t step_bytes() const {
    return buffer_bytes + scratch_bytes + batch_bytes + exchange_bytes + graph_bytes;
  }
  int64_t planned_bytes() const { return weight_bytes + kv_bytes + step_bytes(); }
  int64_t allocated_bytes = 0;  // once all was taken; the device allocates no more afterwards
  int64_t free_bytes = 0;
};

/// Which of a worker's ranks this is, and where it meets the others; both outlive it.
struct RankPlace {
  int32_t rank = 0;
  Meeting* meeting = nullptr;  // of as many as there are ranks
  StartGate* gate = nullptr;
};

class Rank {
 public:
  /// Starts the thread. `config` is the whole model's.
  Rank(const RankOptions& options, const ModelConfig& config, const RankPlace& place);
  /// How many KV blocks fit, with weights and buffers, into `share` of what the device of rank 0 of
  /// `ranks` has free; options.kv_blocks is not looked at. RESOURCE_EXHAUSTED when not even one
  /// does, and errors as AwaitStart's.
  static absl::StatusOr<int64_t> BlocksThatFit(const RankOptions& options,
                                               const ModelConfig& config, int32_t ranks,
                                               double share);
  Rank(const Rank&) = delete;
  Rank& operator=(const Rank&) = delete;
  /// Ends the thread. REQUIRES that no step is handed over and not waited for.
  ~Rank();

  /// Blocks until the rank is ready for the first step, or failed: INVALID_ARGUMENT or NOT_FOUND
  /// for a wrong checkpoint, or one without the draft layer that is asked for, FAILED_PRECONDITION
  /// for a device that is not there, RESOURCE_EXHAUSTED for memory that does not suffice, ABORTED
  /// where another rank failed.
  absl::Status AwaitStart();

  /// As StepRunner's; every rank gets the same plans in the same order. REQUIRES a good start.
  void Submit(const StepPlan* plan);
  StepResult Wait();

  const RankMemory& memory() const { return memory_; }

 private:
  using Clock = std::chrono::steady_clock;
  struct Machine;  // what the rank thread owns

  /// A step that the device has been given.
  struct Issued {
    uint64_t step;
    int32_t staging;
    int32_t mark;
    StepSizes sizes;
    int64_t logit_rows;  // valid ones
    int64_t draft_rows;
    Clock::time_point begin;
  };

  void Run();
  absl::Status SetUp();
  absl::Status CreateDevice();
  absl::Status Join();
  absl::Status LoadModel();
  /// Waits for all ranks: OK when they and this one are well so far.
  absl::Status Gate(const absl::Status& status);
  /// What a rank of this config needs on `device` besides weights and KV cache.
  static RankMemory BufferNeeds(const RankOptions& options, const ModelConfig& rank_config,
                                const Device& device, const Meeting& meeting);
  int32_t ranks() const { return place_.meeting->size(); }
  /// Logs where the memory will go and refuses what does not fit, saying what would.
  absl::Status PlanMemory(int64_t weight_bytes);
  void AllocateMemory();
  /// Captures the decode steps that will come, so that no request waits for that.
  void CaptureSteps();
  bool drafts() const { return options_.batch.drafts_max > 0; }
  /// Blocks for the next plan; null: the rank ends.
  const StepPlan* TakePlan();
  Issued Issue(const StepPlan& plan);
  /// The ops of the plan that was uploaded last.
  void IssueOps();

  const RankOptions options_;
  const ModelConfig config_;  // of the whole model
  const ModelConfig rank_config_;
  const RankPlace place_;
  RankMemory memory_;                 // written before the start is reported
  std::unique_ptr<Machine> machine_;  // made and ended on the rank thread
  uint64_t steps_issued_ = 0;         // rank thread
  // Of several ranks: the sizes that were run, as far as kernels are chosen by them.
  std::set<std::array<int64_t, 4>> sizes_run_;  // rank thread
  Clock::time_point last_end_;  // engine thread: when the step waited for last was done
  int32_t last_mark_ = -1;      // engine thread: the marks of that step; -1: there was none

  // "Rank mailbox": between the engine thread and the rank thread.
  Mutex mailbox_mutex_;
  Condition mailbox_changed_;
  bool started_ ABSL_GUARDED_BY(mailbox_mutex_) = false;
  absl::Status start_status_ ABSL_GUARDED_BY(mailbox_mutex_);
  bool ending_ ABSL_GUARDED_BY(mailbox_mutex_) = false;
  std::deque<const StepPlan*> mailbox_ ABSL_GUARDED_BY(mailbox_mutex_);  // handed over
  std::deque<Issued> issued_ ABSL_GUARDED_BY(mailbox_mutex_);            // given to the device
  int32_t steps_open_ ABSL_GUARDED_BY(mailbox_mutex_) = 0;  // at most steps_in_flight_max

  std::thread thread_;  // last: it uses all of the above
};

}  // namespace glm::engine
