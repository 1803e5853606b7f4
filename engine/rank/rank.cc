#include "engine/rank/rank.h"

#include <pthread.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/model/glm.h"
#include "engine/rank/draft.h"
#include "engine/rank/graphs.h"
#include "engine/rank/rank_meeting.h"
#include "engine/rank/sampler.h"
#include "engine/rank/start_plans.h"
#include "proto/base/log.h"

namespace glm::engine {

struct Rank::Machine {
  std::unique_ptr<Device> device;  // first: all else lies in its memory
  std::unique_ptr<Communicator> communicator;
  std::unique_ptr<Glm> model;
  KvCache cache;
  std::optional<Batch> batch;
  std::optional<StepGraphs> graphs;
  std::optional<Sampler> sampler;
  std::optional<Drafter> drafter;
  // Begin and end of a step. One pair more than steps may be in flight: when a step is waited for,
  // those of the step before it must still stand.
  struct Marks {
    std::unique_ptr<DeviceEvent> begin;
    std::unique_ptr<DeviceEvent> end;
  };
  std::vector<Marks> marks;
};

namespace {

// Operations of a captured step a layer, rounded up.
constexpr int64_t kOperationsALayer = 20;

/// How many of `ranks` ranks share what a device has free: ranks on the CPU the machine's memory.
int64_t RanksSharing(const RankOptions& options, int32_t ranks) {
  return std::min(ranks, options.device == "cpu" ? ranks : options.ranks_per_device);
}

/// Bytes of the weights of rank 0 of `ranks`.
absl::StatusOr<int64_t> WeightBytes(const RankOptions& options, const ModelConfig& config,
                                    int32_t ranks, const Device& device) {
  PlanTerms terms{.scaling = config.quantization.weights,
                  .quantize = options.quantize,
                  .cut_blocks = device.ops().takes_cut_blocks,
                  .slice = {.rank = 0, .size = ranks}};
  std::optional<Checkpoint> checkpoint;
  if (!options.random_weights) {
    absl::StatusOr<Checkpoint> opened = Checkpoint::Open(options.folder);
    if (!opened.ok()) return opened.status();
    checkpoint = *std::move(opened);
    terms.stored = &checkpoint->tensors();
  }
  const absl::StatusOr<WeightPlan> plan =
      Glm::Plan(config, options.dtype, terms, {.mtp = options.batch.drafts_max > 0});
  if (!plan.ok()) return plan.status();
  return plan->bytes();
}

}  // namespace

absl::StatusOr<int64_t> Rank::BlocksThatFit(const RankOptions& options, const ModelConfig& config,
                                            int32_t ranks, double share) {
  const absl::StatusOr<std::unique_ptr<Device>> device = CreateRankDevice(options, 0);
  if (!device.ok()) return device.status();
  const absl::StatusOr<int64_t> weights = WeightBytes(options, config, ranks, **device);
  if (!weights.ok()) return weights.status();
  const ModelConfig rank_config = config.OfRank(ranks);
  const absl::StatusOr<std::unique_ptr<Meeting>> meeting = CreateRankMeeting(options, ranks);
  if (!meeting.ok()) return meeting.status();
  RankMemory needs = BufferNeeds(options, rank_config, **device, **meeting);
  needs.weight_bytes = *weights;
  const int64_t sharing = RanksSharing(options, ranks);
  const int64_t bytes_free = (*device)->BytesFree() / sharing;
  const double usable = share * static_cast<double>(bytes_free);
  const int64_t left = static_cast<int64_t>(usable) - needs.planned_bytes();
  const int64_t block_bytes = KvCache::BytesPerBlock(
      rank_config, options.kv_dtype, options.block_size, options.batch.drafts_max > 0);
  if (left >= block_bytes) return left / block_bytes;
  return absl::ResourceExhaustedError(absl::StrFormat(
      "gpu_memory_utilization is %g: of %d bytes that %s has free it leaves no KV block to %d "
      "bytes of weights and buffers; it must be above %.3f",
      share, bytes_free, (*device)->Describe(), needs.planned_bytes(),
      share * static_cast<double>(needs.planned_bytes() + block_bytes) / usable));
}

Rank::Rank(const RankOptions& options, const ModelConfig& config, const RankPlace& place)
    : options_(options),
      config_(config),
      rank_config_(config.OfRank(place.meeting->size())),
      place_(place) {
  thread_ = std::thread([this] { Run(); });
  pthread_setname_np(thread_.native_handle(), absl::StrCat("rank ", place_.rank).c_str());
}

absl::Status Rank::AwaitStart() {
  MutexLock lock(&mailbox_mutex_);
  while (!started_) mailbox_changed_.Wait(&mailbox_mutex_);
  return start_status_;
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
  const Machine::Marks& marks = machine_->marks[issued.mark];
  marks.end->Wait();
  StepResult result;
  result.step = issued.step;
  machine_->batch->Read(issued.staging, issued.sizes, issued.logit_rows, issued.draft_rows,
                        &result);
  // A step that was issued early began when the one before it ended.
  const Clock::time_point end = Clock::now();
  result.seconds = std::chrono::duration<double>(end - std::max(issued.begin, last_end_)).count();
  last_end_ = end;
  if (last_mark_ >= 0) {
    result.idle_seconds =
        std::max(0.0, marks.begin->SecondsSince(*machine_->marks[last_mark_].end));
  }
  last_mark_ = issued.mark;
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

absl::Status Rank::CreateDevice() {
  absl::StatusOr<std::unique_ptr<Device>> device = CreateRankDevice(options_, place_.rank);
  if (!device.ok()) return device.status();
  machine_->device = *std::move(device);
  memory_.device = machine_->device->Describe();
  if (ranks() > 1) absl::StrAppend(&memory_.device, " (rank ", place_.rank, " of ", ranks(), ")");
  return absl::OkStatus();
}

absl::Status Rank::Gate(const absl::Status& status) {
  const bool all_well = place_.gate->Pass(status.ok());
  if (!status.ok() || all_well) return status;
  return absl::AbortedError("another rank failed to start");
}

absl::Status Rank::Join() {
  std::string error;
  machine_->communicator = place_.meeting->Join(*machine_->device, place_.rank, &error);
  if (machine_->communicator != nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrFormat("tensor_parallel_size is %d: %s", ranks(), error));
}

absl::Status Rank::SetUp() {
  machine_ = std::make_unique<Machine>();
  // Each part waits for the other ranks: what comes after it exchanges with them.
  absl::Status status = Gate(CreateDevice());
  if (!status.ok()) return status;
  const int64_t free_at_start = machine_->device->BytesFree();
  status = Gate(Join());
  if (!status.ok()) return status;
  status = LoadModel();
  if (status.ok()) AllocateMemory();
  status = Gate(status);
  if (!status.ok()) return status;
  CaptureSteps();
  memory_.free_bytes = machine_->device->BytesFree();
  memory_.allocated_bytes = free_at_start - memory_.free_bytes;
  return absl::OkStatus();
}

absl::Status Rank::LoadModel() {
  WeightSource source(options_.folder);
  source.random = options_.random_weights;
  source.quantize = options_.quantize;
  source.threads = options_.load_threads;
  source.admit = [this](int64_t weight_bytes) { return PlanMemory(weight_bytes); };
  absl::StatusOr<std::unique_ptr<Glm>> model =
      Glm::Load(*machine_->device, config_, source, options_.dtype, options_.batch.step,
                {.mtp = drafts(),
                 .communicator = machine_->communicator.get(),
                 .overlap_tokens_min = options_.overlap_tokens_min});
  if (!model.ok()) return model.status();
  if (drafts() && !(*model)->has_mtp()) {
    return absl::InvalidArgumentError(absl::StrCat("num_speculative_tokens is ",
                                                   options_.batch.drafts_max, ": ", options_.folder,
                                                   " has no draft layer (MTP); must be 0"));
  }
  machine_->model = *std::move(model);
  return absl::OkStatus();
}

RankMemory Rank::BufferNeeds(const RankOptions& options, const ModelConfig& rank_config,
                             const Device& device, const Meeting& meeting) {
  const bool drafts = options.batch.drafts_max > 0;
  RankMemory needs;
  needs.buffer_bytes =
      Glm::BufferBytes(rank_config, options.dtype, options.batch.step, {.mtp = drafts});
  needs.scratch_bytes = device.ScratchBytes(options.batch.step);
  needs.batch_bytes = Batch::DeviceBytes(options.batch) + Sampler::DeviceBytes(options.batch.step);
  // The host's memory is the CPU device's.
  if (options.device == "cpu") needs.batch_bytes += Batch::HostBytes(options.batch);
  if (drafts) needs.batch_bytes += Drafter::DeviceBytes(options.batch, options.dtype);
  needs.exchange_bytes = meeting.DeviceBytes();
  if (device.CanCapture()) {
    // Those of the start, and as many again that come later.
    const auto graphs = 2 * static_cast<int64_t>(StartBatches(options.batch).size());
    needs.graph_bytes = graphs * kOperationsALayer * StepGraphs::kBytesAnOperation *
                        (rank_config.layers + 1 + options.batch.drafts_max);
  }
  return needs;
}

absl::Status Rank::PlanMemory(int64_t weight_bytes) {
  const Device& device = *machine_->device;
  const int64_t block_bytes =
      KvCache::BytesPerBlock(rank_config_, options_.kv_dtype, options_.block_size, drafts());
  const std::string name = memory_.device;
  memory_ = BufferNeeds(options_, rank_config_, device, *place_.meeting);
  memory_.device = name;
  memory_.weight_bytes = weight_bytes;
  memory_.kv_bytes = options_.kv_blocks * block_bytes;
  const int64_t buffers = memory_.step_bytes();
  // Join has taken its part.
  const int64_t wanted = memory_.planned_bytes() - memory_.exchange_bytes;
  const int64_t free = device.BytesFree() / RanksSharing(options_, ranks());
  const double gib = 1 << 30;
  LOG(INFO) << absl::StrFormat(
      "memory plan of %s: weights %.3f GiB, step buffers %.3f GiB, KV cache %.3f GiB (%d blocks of "
      "%d bytes, %s); %.3f GiB of %.3f GiB free",
      memory_.device, weight_bytes / gib, buffers / gib, memory_.kv_bytes / gib, options_.kv_blocks,
      block_bytes, Name(options_.kv_dtype), wanted / gib, free / gib);
  if (wanted <= free) return absl::OkStatus();
  const int64_t blocks_fit = std::max<int64_t>(0, free - weight_bytes - buffers) / block_bytes;
  std::string fits;
  if (blocks_fit > 0) {
    fits = absl::StrCat("kv_blocks ", blocks_fit, " would fit, for max_model_len up to ",
                        std::min<int64_t>(blocks_fit * options_.block_size, config_.positions_max));
  } else {
    fits = absl::StrCat("no KV cache would fit: weights and buffers alone need ",
                        weight_bytes + buffers + block_bytes, " bytes with one block",
                        config_.quantization.weights == WeightScaling::kNone && !options_.quantize
                            ? "; quantization \"fp8\" would take about half of the weights' bytes"
                            : "");
  }
  return absl::ResourceExhaustedError(
      absl::StrCat("kv_blocks is ", options_.kv_blocks, ": the KV cache needs ", memory_.kv_bytes,
                   " bytes, the weights ", weight_bytes, " and the buffers of a step ", buffers,
                   ", but ", memory_.device, " has ", free, " bytes free; ", fits));
}

void Rank::AllocateMemory() {
  Device& device = *machine_->device;
  machine_->cache = KvCache::Allocate(device, rank_config_, options_.kv_dtype, options_.kv_blocks,
                                      options_.block_size, drafts());
  machine_->model->ScaleCache(&machine_->cache);
  machine_->batch.emplace(device, options_.batch);
  machine_->graphs.emplace(device);
  machine_->sampler.emplace(device, *machine_->communicator, options_.batch.step);
  if (drafts()) {
    machine_->drafter.emplace(device, *machine_->sampler, options_.batch, options_.dtype);
  }
  for (int32_t i = 0; i < options_.batch.steps_in_flight_max + 1; ++i) {
    machine_->marks.push_back({device.NewEvent(), device.NewEvent()});
  }
  device.PlanScratch(options_.batch.step);
  device.Seal();
  device.Synchronize();
}

void Rank::CaptureSteps() {
  Device& device = *machine_->device;
  if (!device.CanCapture()) return;
  const Clock::time_point begin = Clock::now();
  const int64_t free_before = device.BytesFree();
  Clock::time_point told = begin;
  const std::vector<int32_t> batches = StartBatches(options_.batch);
  for (size_t i = 0; i < batches.size(); ++i) {
    machine_->batch->Upload(StartPlan(options_.batch, batches[i]), /*staging=*/0);
    const StepSizes& sizes = machine_->batch->sizes();
    const auto issue = [this] { IssueOps(); };
    // A capture takes memory of the driver's. Where ranks share a GPU, that must not wait for a
    // kernel that waits for another rank: all have run the step before one captures it.
    device.WaitAfterOps(ranks() > 1);
    machine_->graphs->Run(sizes, issue);
    device.WaitAfterOps(false);
    device.Synchronize();
    place_.gate->Pass(true);
    machine_->graphs->Capture(sizes, issue);
    place_.gate->Pass(true);
    if (Clock::now() - told < std::chrono::seconds(2)) continue;
    told = Clock::now();
    LOG(INFO) << "capturing decode steps: " << i + 1 << " of " << batches.size();
  }
  LOG(INFO) << absl::StrFormat(
      "captured %d decode steps of up to %d sequences in %.1f s, %.1f MiB of the driver's (%.1f "
      "MiB "
      "planned)",
      machine_->graphs->captured(), batches.front(),
      std::chrono::duration<double>(Clock::now() - begin).count(),
      static_cast<double>(free_before - device.BytesFree()) / (1 << 20),
      static_cast<double>(memory_.graph_bytes) / (1 << 20));
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
      static_cast<int32_t>(steps_issued_ % static_cast<uint64_t>(machine_->marks.size() - 1));
  const auto mark =
      static_cast<int32_t>(steps_issued_ % static_cast<uint64_t>(machine_->marks.size()));
  ++steps_issued_;
  const Clock::time_point begin = Clock::now();
  Batch& batch = *machine_->batch;
  machine_->marks[mark].begin->Record();
  batch.Upload(plan, staging);
  const StepSizes& sizes = batch.sizes();
  // Ranks are told the same steps, so all of them wait in the same ones.
  const bool fresh = ranks() > 1 && sizes_run_
                                        .insert({sizes.tokens, sizes.logit_rows, sizes.draft_rows,
                                                 sizes.whole_logits ? 1 : 0})
                                        .second;
  if (fresh) machine_->device->WaitAfterOps(true);
  machine_->graphs->Run(sizes, [this] { IssueOps(); });
  if (fresh) machine_->device->WaitAfterOps(false);
  batch.Download(staging);
  machine_->marks[mark].end->Record();
  return {plan.step,
          staging,
          mark,
          batch.sizes(),
          static_cast<int64_t>(plan.logit_tokens.size()),
          static_cast<int64_t>(plan.draft_rows.size()),
          begin};
}

void Rank::IssueOps() {
  Device& device = *machine_->device;
  const Batch& batch = *machine_->batch;
  const KvCache& cache = machine_->cache;
  // Penalties and edits look back at the step's own tokens too.
  device.ops().store_tokens(device, {.batch = batch.view(), .cache = cache.tokens});
  machine_->model->Forward(batch.view(), cache, batch.logits(), batch.logit_row_view());
  machine_->sampler->Run(batch.sample_args(cache.tokens));
  if (batch.sizes().draft_layer) machine_->drafter->Run(*machine_->model, cache, batch);
}

}  // namespace glm::engine
