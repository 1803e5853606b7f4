// TimedDevice: another device, whose ops are timed one by one where that is wanted.
//
// Who calls: the step benchmark, on the thread that owns the device. All calls go on to the inner
// device, ops too, so that a step runs on it as it would run alone.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/communicator.h"
#include "kernels/device.h"
#include "kernels/ops.h"

namespace glm::bench {

class TimedDevice final : public Device {
 public:
  struct OpTime {
    int64_t calls = 0;
    double seconds = 0;
  };

  explicit TimedDevice(std::unique_ptr<Device> inner);

  std::string Describe() const override { return inner_->Describe(); }
  int64_t BytesFree() const override { return inner_->BytesFree(); }
  void* Allocate(int64_t bytes) override { return inner_->Allocate(bytes); }
  void* AllocateHost(int64_t bytes) override { return inner_->AllocateHost(bytes); }
  int64_t ScratchBytes(const StepLimits& limits) const override {
    return inner_->ScratchBytes(limits);
  }
  void PlanScratch(const StepLimits& limits) override { inner_->PlanScratch(limits); }
  void Seal() override { inner_->Seal(); }
  void CopyToDevice(void* to, const void* from, int64_t bytes) override {
    inner_->CopyToDevice(to, from, bytes);
  }
  void CopyToHost(void* to, const void* from, int64_t bytes) override {
    inner_->CopyToHost(to, from, bytes);
  }
  void Fill(void* to, uint8_t byte, int64_t bytes) override { inner_->Fill(to, byte, bytes); }
  void Synchronize() override { inner_->Synchronize(); }
  std::unique_ptr<DeviceEvent> NewEvent() override { return inner_->NewEvent(); }
  bool CanCapture() const override { return inner_->CanCapture(); }
  void BeginCapture() override { inner_->BeginCapture(); }
  std::unique_ptr<DeviceGraph> EndCapture() override { return inner_->EndCapture(); }

  /// From here on ops are timed, until TakeTimes, which waits for them. A linear's name has its
  /// sizes.
  void StartTiming() { timing_ = true; }
  std::map<std::string, OpTime> TakeTimes();

  /// Issues an op of the inner device.
  template <typename Issue>
  void Time(std::string name, const Issue& issue) {
    if (!timing_) return issue(*inner_);
    Timing timing{std::move(name), inner_->NewEvent(), inner_->NewEvent()};
    timing.begin->Record();
    issue(*inner_);
    timing.end->Record();
    timings_.push_back(std::move(timing));
  }

 private:
  struct Timing {
    std::string name;
    std::unique_ptr<DeviceEvent> begin;
    std::unique_ptr<DeviceEvent> end;
  };

  OpTable MakeTable() const;

  const std::unique_ptr<Device> inner_;
  const OpTable table_;
  bool timing_ = false;
  std::vector<Timing> timings_;
};

/// A communicator of a TimedDevice's inner device, timed as ops are.
class TimedCommunicator final : public Communicator {
 public:
  explicit TimedCommunicator(std::unique_ptr<Communicator> inner) : inner_(std::move(inner)) {}

  int32_t rank() const override { return inner_->rank(); }
  int32_t size() const override { return inner_->size(); }
  void AllReduceSum(Device& device, const Tensor& values) override {
    static_cast<TimedDevice&>(device).Time(
        "all_reduce_sum", [&](Device& real) { inner_->AllReduceSum(real, values); });
  }
  // Called by ops of the inner device, whose time they are part of.
  void BeginSum(Device& device, const Tensor& first) override { inner_->BeginSum(device, first); }
  void EndSum(Device& device, const Tensor& others) override { inner_->EndSum(device, others); }
  void AllReduceAddRmsNorm(Device& device, const AddRmsNormArgs& args) override {
    static_cast<TimedDevice&>(device).Time(
        "all_reduce_add_rms_norm", [&](Device& real) { inner_->AllReduceAddRmsNorm(real, args); });
  }
  void AllGatherColumns(Device& device, const Tensor& in, const Tensor& out) override {
    static_cast<TimedDevice&>(device).Time(
        "all_gather_columns", [&](Device& real) { inner_->AllGatherColumns(real, in, out); });
  }

 private:
  const std::unique_ptr<Communicator> inner_;
};

}  // namespace glm::bench
