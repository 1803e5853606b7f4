#include "kernels/cpu/cpu_device.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "kernels/cpu/cpu_ops.h"

namespace glm {
namespace cpu {
namespace {

constexpr int64_t kAlignment = 256;

constexpr OpTable kCpuOps = {
    .takes_cut_blocks = true,
    .embed = Embed,
    .add_rms_norm = AddRmsNorm,
    .linear = Linear,
    .norm_rope_store = NormRopeStore,
    .attention = Attention,
    .mla_rope_store = MlaRopeStore,
    .mla_attention = MlaAttention,
    .silu_mul = SiluMul,
    .moe_route = MoeRoute,
    .moe_experts = MoeExperts,
    .gather_logit_rows = GatherLogitRows,
    .store_tokens = StoreTokens,
    .sample = Sample,
    .choose_candidates = ChooseCandidates,
    .begin_drafts = BeginDrafts,
    .advance_drafts = AdvanceDrafts,
};

class CpuEvent final : public DeviceEvent {
 public:
  // Ops have finished when they return, so every point has been reached.
  void Record() override { reached_ = std::chrono::steady_clock::now(); }
  void Wait() override {}
  double SecondsSince(const DeviceEvent& earlier) const override {
    const auto& other = static_cast<const CpuEvent&>(earlier);
    return std::chrono::duration<double>(reached_ - other.reached_).count();
  }

 private:
  std::chrono::steady_clock::time_point reached_;
};

int64_t AlignUp(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

/// The number in a one-line file, or -1: not there, or "max".
int64_t ReadNumber(const char* path) {
  std::ifstream file(path);
  int64_t value = -1;
  return file >> value ? value : -1;
}

/// What the machine, and the control group if it has a limit, can still give.
int64_t MachineBytesFree() {
  int64_t bytes = 0;
  std::ifstream meminfo("/proc/meminfo");
  std::string key;
  for (int64_t kib = 0; meminfo >> key >> kib; meminfo.ignore(64, '\n')) {
    if (key == "MemAvailable:") bytes = kib * 1024;
  }
  const int64_t limit = ReadNumber("/sys/fs/cgroup/memory.max");
  const int64_t used = ReadNumber("/sys/fs/cgroup/memory.current");
  if (limit >= 0 && used >= 0) bytes = std::min(bytes, std::max<int64_t>(limit - used, 0));
  return bytes;
}

/// The sizes of the scratch arrays; pointers stay null.
Scratch ScratchSizes(const StepLimits& limits, int threads) {
  // Twice H: the draft layer's projection reads an embedding beside a hidden state.
  const int64_t width =
      std::max({2 * limits.hidden, limits.query_heads * limits.head_size, limits.query_latent,
                limits.latent, limits.dense_width, limits.expert_width});
  Scratch sizes;
  sizes.row_floats = std::max(limits.tokens_max, limits.logit_rows_max) * width;
  sizes.pair_rows = limits.experts > 0 ? limits.tokens_max * limits.experts_per_token : 0;
  sizes.expert_width = limits.expert_width;
  sizes.hidden = limits.hidden;
  sizes.route_floats = limits.tokens_max * limits.experts;
  sizes.vocabulary = limits.vocabulary;
  sizes.sample_stripes = std::min<int64_t>(limits.logit_rows_max, threads);
  return sizes;
}

int64_t GroupsOf(int64_t columns) { return (columns + 127) / 128; }

/// Lays the arrays out from `memory` on; returns their bytes. With null only the sum counts.
int64_t LayOut(Scratch* scratch, char* memory) {
  int64_t used = 0;
  const auto take = [&](auto** array, int64_t count) {
    if (memory != nullptr) *array = reinterpret_cast<std::decay_t<decltype(*array)>>(memory + used);
    used += AlignUp(count * static_cast<int64_t>(sizeof(**array)));
  };
  take(&scratch->rows, scratch->row_floats);
  take(&scratch->gate_up, scratch->pair_rows * 2 * scratch->expert_width);
  take(&scratch->expert_scales, scratch->pair_rows * GroupsOf(scratch->expert_width));
  take(&scratch->expert_out, scratch->pair_rows * scratch->hidden);
  take(&scratch->route_logits, scratch->route_floats);
  take(&scratch->candidates, scratch->sample_stripes * CandidatesOf(scratch->vocabulary));
  return used;
}

}  // namespace

CpuDevice::CpuDevice(int threads)
    : Device(&kCpuOps), pool_(threads), bytes_at_start_(MachineBytesFree()) {}

CpuDevice::~CpuDevice() {
  for (void* memory : allocations_) std::free(memory);
}

std::string CpuDevice::Describe() const {
  const int threads = pool_.threads();
  return "CPU, " + std::to_string(threads) + (threads == 1 ? " thread" : " threads");
}

int64_t CpuDevice::BytesFree() const {
  // Untouched pages still count as available to the machine, hence the own account.
  return std::max<int64_t>(bytes_at_start_ - bytes_allocated_, 0);
}

void* CpuDevice::Allocate(int64_t bytes) {
  CHECK(!sealed_) << "Allocate(" << bytes << ") after Seal";
  CHECK_GE(bytes, 0);
  const int64_t size = std::max(AlignUp(bytes), kAlignment);
  void* memory = std::aligned_alloc(kAlignment, size);
  CHECK(memory != nullptr) << "out of memory: " << bytes << " bytes asked, " << bytes_allocated_
                           << " bytes in use";
  allocations_.push_back(memory);
  bytes_allocated_ += size;
  return memory;
}

void* CpuDevice::AllocateHost(int64_t bytes) { return Allocate(bytes); }

int64_t CpuDevice::ScratchBytes(const StepLimits& limits) const {
  Scratch sizes = ScratchSizes(limits, pool_.threads());
  return LayOut(&sizes, nullptr);
}

void CpuDevice::PlanScratch(const StepLimits& limits) {
  CHECK(!planned_) << "PlanScratch called twice";
  planned_ = true;
  scratch_ = ScratchSizes(limits, pool_.threads());
  const int64_t bytes = LayOut(&scratch_, nullptr);
  LayOut(&scratch_, static_cast<char*>(Allocate(bytes)));
}

void CpuDevice::Seal() { sealed_ = true; }

void CpuDevice::CopyToDevice(void* device_dst, const void* host_src, int64_t bytes) {
  if (bytes > 0) std::memcpy(device_dst, host_src, bytes);
}

void CpuDevice::CopyToHost(void* host_dst, const void* device_src, int64_t bytes) {
  if (bytes > 0) std::memcpy(host_dst, device_src, bytes);
}

void CpuDevice::Fill(void* device_dst, uint8_t byte, int64_t bytes) {
  if (bytes > 0) std::memset(device_dst, byte, bytes);
}

std::unique_ptr<DeviceEvent> CpuDevice::NewEvent() { return std::make_unique<CpuEvent>(); }

void CpuDevice::BeginCapture() { CHECK(CanCapture()) << "the CPU captures no graphs"; }

std::unique_ptr<DeviceGraph> CpuDevice::EndCapture() {
  CHECK(CanCapture()) << "the CPU captures no graphs";
  return nullptr;
}

}  // namespace cpu

std::unique_ptr<Device> CreateCpuDevice(int threads) {
  return std::make_unique<cpu::CpuDevice>(threads);
}

}  // namespace glm
