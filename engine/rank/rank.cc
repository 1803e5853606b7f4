#include "engine/rank/rank.h"

#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/model/glm.h"
#include "proto/base/log.h"

namespace glm::engine {

struct Rank::Machine {
  std::unique_ptr<Device> device;  // first: all else lies in its memory
  std::unique_ptr<Glm> model;
  KvCache cache;
  std::optional<Batch> batch;
  std::vector<std::unique_ptr<DeviceEvent>> events;  // end of the step, one per staging buffer
};

absl::StatusOr<std::unique_ptr<Rank>> Rank::Start(const RankOptions& options,
                                                  const ModelConfig& config) {
  std::unique_ptr<Rank> rank(new Rank(options, config));
  absl::Status status;
  {
    MutexLock lock(&rank->mailbox_mutex_);
    while (!rank->started_) rank->mailbox_changed_.Wait(&rank->mailbox_mutex_);
    status = rank->start_status_;
  }
  if (!status.ok()) return status;
  return rank;
}

Rank::Rank(const RankOptions& options, const ModelConfig& config)
    : options_(options), config_(config) {
  thread_ = std::thread([this] { Run(); });
}

Rank::~Rank() {
  {
    MutexLock lock(&mailbox_mutex_);
    CHECK_EQ(steps_open_, 0);
    ending_ = true;
    mailbox_changed_.SignalAll();
  }
  thread_.join();
}

// ---- Engine thread
// -------------------------------------------------------------------------------

void Rank::Submit(const StepPlan* plan) {
  MutexLock lock(&mailbox_mutex_);
  CHECK_LT(steps_open_, options_.batch.steps_in_flight_max);
  ++steps_open_;
  mailbox_.push_back(plan);
  mailbox_changed_.SignalAll();
}

StepResult Rank::Wait() {
  Issued issued;
  {
    MutexLock lock(&mailbox_mutex_);
    CHECK_GE(steps_open_, 1);
    while (issued_.empty()) mailbox_changed_.Wait(&mailbox_mutex_);
    issued = issued_.front();
    issued_.pop_front();
  }
  machine_->events[issued.staging]->Wait();
  StepResult result;
  result.step = issued.step;
  const int32_t* ids = machine_->batch->ids_host(issued.staging);
  result.ids.assign(ids, ids + issued.logit_rows);
  // A step that was issued early began when the one before it ended.
  const Clock::time_point end = Clock::now();
  result.seconds = std::chrono::duration<double>(end - std::max(issued.begin, last_end_)).count();
  last_end_ = end;
  MutexLock lock(&mailbox_mutex_);
  --steps_open_;
  return result;
}

// ---- Rank thread
// ---------------------------------------------------------------------------------

void Rank::Run() {
  const absl::Status status = SetUp();
  {
    MutexLock lock(&mailbox_mutex_);
    start_status_ = status;
    started_ = true;
    mailbox_changed_.SignalAll();
  }
  if (status.ok()) {
    while (const StepPlan* plan = TakePlan()) {
      const Issued issued = Issue(*plan);
      MutexLock lock(&mailbox_mutex_);
      issued_.push_back(issued);
      mailbox_changed_.SignalAll();
    }
  }
  machine_.reset();
}

absl::Status Rank::SetUp() {
  machine_ = std::make_unique<Machine>();
  if (options_.device == "cpu") {
    machine_->device = CreateCpuDevice(options_.cpu_threads);
  } else {
    std::string error;
    machine_->device = CreateCudaDevice(options_.device_index, &error);
    if (machine_->device == nullptr) {
      return absl::FailedPreconditionError(absl::StrFormat(
          "device is \"%s\", device_index %d: %s", options_.device, options_.device_index, error));
    }
  }
  Device& device = *machine_->device;
  memory_.device = device.Describe();
  absl::StatusOr<std::unique_ptr<Glm>> model =
      Glm::Load(device, config_, options_.folder, options_.dtype, options_.batch.step);
  if (!model.ok()) return model.status();
  machine_->model = *std::move(model);
  memory_.weight_bytes = machine_->model->weight_bytes();
  return PlanMemory();
}

absl::Status Rank::PlanMemory() {
  Device& device = *machine_->device;
  memory_.kv_bytes =
      options_.kv_blocks * KvCache::BytesPerBlock(config_, options_.dtype, options_.block_size);
  memory_.scratch_bytes = device.ScratchBytes(options_.batch.step);
  memory_.batch_bytes = Batch::DeviceBytes(options_.batch);
  const int64_t wanted = memory_.kv_bytes + memory_.scratch_bytes + memory_.batch_bytes;
  if (wanted > device.BytesFree()) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "kv_blocks is ", options_.kv_blocks, ": the KV cache needs ", memory_.kv_bytes,
        " bytes and the buffers of a step ", memory_.scratch_bytes + memory_.batch_bytes,
        " bytes, but ", memory_.device, " has ", device.BytesFree(), " bytes free after ",
        memory_.weight_bytes, " bytes of weights"));
  }
  machine_->cache =
      KvCache::Allocate(device, config_, options_.dtype, options_.kv_blocks, options_.block_size);
  machine_->batch.emplace(device, options_.batch);
  for (int32_t i = 0; i < options_.batch.steps_in_flight_max; ++i) {
    machine_->events.push_back(device.NewEvent());
  }
  device.PlanScratch(options_.batch.step);
  device.Seal();
  device.Synchronize();
  memory_.free_bytes = device.BytesFree();
  return absl::OkStatus();
}

const StepPlan* Rank::TakePlan() {
  MutexLock lock(&mailbox_mutex_);
  while (mailbox_.empty() && !ending_) mailbox_changed_.Wait(&mailbox_mutex_);
  if (mailbox_.empty()) return nullptr;
  const StepPlan* plan = mailbox_.front();
  mailbox_.pop_front();
  return plan;
}

Rank::Issued Rank::Issue(const StepPlan& plan) {
  // The step that used this staging buffer before was waited for: no more than
  // steps_in_flight_max are open.
  const auto staging =
      static_cast<int32_t>(steps_issued_++ % static_cast<uint64_t>(machine_->events.size()));
  Issued issued{plan.step, staging, static_cast<int64_t>(plan.logit_tokens.size()), Clock::now()};
  Device& device = *machine_->device;
  Batch& batch = *machine_->batch;
  batch.Upload(plan, staging);
  machine_->model->Forward(batch.view(), machine_->cache, batch.logits());
  device.ops().sample(device, {.batch = batch.view(),
                               .logits = batch.logits(),
                               .vocabulary_used = config_.vocabulary_used,
                               .rows = batch.sample_rows(),
                               .out_ids = batch.ids()});
  batch.Download(staging);
  machine_->events[staging]->Record();
  return issued;
}

}  // namespace glm::engine
