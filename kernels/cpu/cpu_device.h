// The CPU as a Device: host memory, a thread pool, and the scratch that its ops share.
//
// Who calls: cpu_device.cc makes it; ops take it from their Device& with Of(). Rank thread only.
#pragma once

#include <string>
#include <vector>

#include "kernels/cpu/parallel.h"
#include "kernels/device.h"

namespace glm::cpu {

/// A token id and its logit after temperature.
struct Candidate {
  float logit;
  int32_t id;
};

/// Room of one row that is sampled: a candidate and a float an id.
constexpr int64_t CandidatesOf(int64_t vocabulary) { return vocabulary + (vocabulary + 1) / 2; }

/// Planned once; an op uses what it needs from the start of its own array, and nothing stays there
/// from one op to the next.
struct Scratch {
  int64_t row_floats = 0;      // size of rows
  int64_t pair_rows = 0;       // rows of gate_up, expert_scales and expert_out: T * k
  int64_t expert_width = 0;    // M
  int64_t hidden = 0;          // H
  int64_t route_floats = 0;    // T * E
  int64_t vocabulary = 0;      // V
  int64_t sample_stripes = 0;  // rows that are sampled at one time: min(R, threads)

  float* rows = nullptr;            // F32 [max(T, R), widest row]: an op's rows, unrounded
  float* gate_up = nullptr;         // F32 [T * k, 2M]
  float* expert_scales = nullptr;   // F32 [T * k, ceil(M/128)]
  float* expert_out = nullptr;      // F32 [T * k, H]
  float* route_logits = nullptr;    // F32 [T, E]
  Candidate* candidates = nullptr;  // [stripes, CandidatesOf(V)]
};

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(int threads);
  CpuDevice(const CpuDevice&) = delete;
  CpuDevice& operator=(const CpuDevice&) = delete;
  ~CpuDevice() override;

  static CpuDevice& Of(Device& device) { return static_cast<CpuDevice&>(device); }

  ThreadPool& pool() { return pool_; }
  const Scratch& scratch() const { return scratch_; }

  std::string Describe() const override;
  int64_t BytesFree() const override;
  void* Allocate(int64_t bytes) override;
  void* AllocateHost(int64_t bytes) override;
  int64_t ScratchBytes(const StepLimits& limits) const override;
  void PlanScratch(const StepLimits& limits) override;
  void Seal() override;

  void CopyToDevice(void* device_dst, const void* host_src, int64_t bytes) override;
  void CopyToHost(void* host_dst, const void* device_src, int64_t bytes) override;
  void Fill(void* device_dst, uint8_t byte, int64_t bytes) override;
  void Synchronize() override {}
  std::unique_ptr<DeviceEvent> NewEvent() override;

  bool CanCapture() const override { return false; }
  void BeginCapture() override;
  std::unique_ptr<DeviceGraph> EndCapture() override;

 private:
  ThreadPool pool_;
  Scratch scratch_;
  std::vector<void*> allocations_;
  int64_t bytes_at_start_;       // free when the device was made
  int64_t bytes_allocated_ = 0;  // since then
  bool planned_ = false;
  bool sealed_ = false;
};

}  // namespace glm::cpu
