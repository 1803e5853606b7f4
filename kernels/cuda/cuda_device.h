// Device over one GPU: one stream, its memory, its scratch, its graphs.
//
// Who calls: the rank thread through Device, and the ops of this folder through OpScope. Memory
// comes from cudaMalloc, a piece a call, and is freed with the device. Scratch is one piece that
// every op lays out anew: ops run in order, so none needs it past its own kernels.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <memory>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "kernels/ops.h"

namespace glm::cuda {

class LtGemms;

class CudaDevice final : public Device {
 public:
  /// `synchronous_ops`: wait after each op (not while capturing), so that a fault names its op.
  CudaDevice(int index, const cudaDeviceProp& properties, bool synchronous_ops);
  ~CudaDevice() override;

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
  void Synchronize() override;
  void WaitAfterOps(bool wait) override { waits_after_ops_ = wait || synchronous_ops_; }
  std::unique_ptr<DeviceEvent> NewEvent() override;
  bool CanCapture() const override { return true; }
  void BeginCapture() override;
  std::unique_ptr<DeviceGraph> EndCapture() override;

  cudaStream_t stream() const { return stream_; }
  int sm_count() const { return sm_count_; }
  /// SMs that a product may fill: those that no exchange beside it has (side_stream.h).
  int product_sms() const { return sm_count_ - exchange_sms_; }
  int exchange_sms() const { return exchange_sms_; }
  void set_exchange_sms(int sms) { exchange_sms_ = sms; }
  /// Whether no other rank of this process uses the GPU. Where one does, blocks of a kernel must
  /// not wait for each other: those that wait may have the room of those that are waited for.
  bool alone() const;
  LtGemms& gemms() { return *gemms_; }
  bool waits_after_ops() const { return waits_after_ops_; }

  /// The scratch piece, which must hold `bytes`; valid for the current op only.
  void* Scratch(int64_t bytes);
  /// kCounters words that are zero when an op starts; an op that uses them leaves them zero.
  int32_t* counters() { return counters_; }
  static constexpr int64_t kCounters = 1 << 18;

  /// The op being issued, or the one issued last.
  const char* current_op() const { return current_op_; }

 private:
  friend class OpScope;

  const int index_;
  const std::string name_;
  const int sm_count_;
  const bool synchronous_ops_;
  bool waits_after_ops_;
  int exchange_sms_ = 0;
  bool sealed_ = false;
  bool capturing_ = false;
  const char* current_op_ = "none";
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<LtGemms> gemms_;
  void* scratch_ = nullptr;
  int64_t scratch_bytes_ = 0;
  int32_t* counters_ = nullptr;
  std::vector<void*> device_pieces_;
  std::vector<void*> host_pieces_;
};

/// First line of every op: names the op for error messages, and at its end checks that the launches
/// were accepted.
class OpScope {
 public:
  OpScope(Device& device, const char* name);
  OpScope(const OpScope&) = delete;
  OpScope& operator=(const OpScope&) = delete;
  ~OpScope();

  CudaDevice& device() const { return device_; }
  cudaStream_t stream() const { return device_.stream(); }

 private:
  CudaDevice& device_;
};

/// Hands out consecutive 256-byte aligned parts of a piece of memory. With a null base it only
/// counts, so that one function both sizes and lays out an op's scratch.
class ScratchLayout {
 public:
  explicit ScratchLayout(void* base) : base_(static_cast<char*>(base)) {}
  template <typename T>
  T* Take(int64_t count) {
    char* part = base_ == nullptr ? nullptr : base_ + bytes_;
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return reinterpret_cast<T*>(part);
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

}  // namespace glm::cuda
