// Device: one place where tensors live and ops run in order. The CPU, or one GPU.
//
// Who calls: the rank thread that owns the device, and no other. All copies and ops of a device are
// ordered as issued (one stream); the host waits only in Synchronize and Event::Wait.
// Memory is planned at start: Allocate may be called until Seal(), and CHECK-fails afterwards.
// A device error (out of memory past the plan, a CUDA fault) CHECK-fails: the process dies with the
// name of the op, and the router replays its requests elsewhere.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/tensor.h"

namespace glm {

struct OpTable;

/// The largest step that a device must be ready for; decides its scratch memory.
struct StepLimits {
  int64_t tokens_max = 0;         // T of one step
  int64_t sequences_max = 0;      // S of one step
  int64_t logit_rows_max = 0;     // R of one step
  int64_t hidden = 0;             // H
  int64_t query_heads = 0;        // N on this rank
  int64_t kv_heads = 0;           // K on this rank
  int64_t head_size = 0;          // D; with latent attention the larger of nope + rope and v
  int64_t query_latent = 0;       // width of the latent that queries are made of; 0: there is none
  int64_t latent = 0;             // L + rope, a cell of a latent cache; 0: attention is not latent
  int64_t experts = 0;            // E, shared ones included; 0 without MoE
  int64_t experts_per_token = 0;  // k, shared ones included
  int64_t expert_width = 0;       // M on this rank
  int64_t dense_width = 0;        // I on this rank
  int64_t vocabulary = 0;         // V, of all ranks: each may sample from all logits
  int64_t vocabulary_slices = 1;  // ranks that have V / so many columns of the logits each
};

/// A point in a device's order.
class DeviceEvent {
 public:
  virtual ~DeviceEvent() = default;
  /// Marks the point after everything issued so far.
  virtual void Record() = 0;
  /// Blocks the host until the recorded point is reached.
  virtual void Wait() = 0;
  /// Seconds from the point of `earlier`, of the same device, to this one. REQUIRES that both were
  /// reached.
  virtual double SecondsSince(const DeviceEvent& earlier) const = 0;
};

/// A captured sequence of ops; replays with whatever its device memory then holds.
class DeviceGraph {
 public:
  virtual ~DeviceGraph() = default;
  virtual void Launch() = 0;
  /// Kernels, copies and fills of the sequence.
  virtual int64_t operations() const = 0;
};

class Device {
 public:
  virtual ~Device() = default;

  /// "CPU, 2 threads" or "NVIDIA H100 80GB HBM3 (0)".
  virtual std::string Describe() const = 0;
  /// Bytes that Allocate could still give.
  virtual int64_t BytesFree() const = 0;

  /// Uninitialised device memory, 256-byte aligned, freed with the device.
  virtual void* Allocate(int64_t bytes) = 0;
  /// Host memory that copies can read and write while the host goes on (pinned).
  virtual void* AllocateHost(int64_t bytes) = 0;
  /// The scratch bytes that the ops of one step within `limits` need at most.
  virtual int64_t ScratchBytes(const StepLimits& limits) const = 0;
  /// Allocates the scratch. Called once, before the first op.
  virtual void PlanScratch(const StepLimits& limits) = 0;
  /// Ends the start phase: from here on nothing allocates.
  virtual void Seal() = 0;

  virtual void CopyToDevice(void* device_dst, const void* host_src, int64_t bytes) = 0;
  virtual void CopyToHost(void* host_dst, const void* device_src, int64_t bytes) = 0;
  virtual void Fill(void* device_dst, uint8_t byte, int64_t bytes) = 0;
  virtual void Synchronize() = 0;
  /// Whether the host waits after each op from here on, where it does not anyway: for the first
  /// step of some sizes on ranks. Kernels that were never run may have to be loaded, for which a
  /// driver waits for the kernels that run; one that waits for another rank must not be among them.
  virtual void WaitAfterOps(bool /*wait*/) {}
  virtual std::unique_ptr<DeviceEvent> NewEvent() = 0;

  /// False on the CPU: then steps run eagerly.
  virtual bool CanCapture() const = 0;
  /// What is issued between the two is recorded, not run. REQUIRES CanCapture().
  virtual void BeginCapture() = 0;
  virtual std::unique_ptr<DeviceGraph> EndCapture() = 0;

  const OpTable& ops() const { return *ops_; }

  /// A contiguous tensor in fresh device memory.
  Tensor NewTensor(DType dtype, std::initializer_list<int64_t> shape) {
    Tensor tensor(nullptr, dtype, shape);
    tensor.data = Allocate(tensor.bytes());
    return tensor;
  }

 protected:
  explicit Device(const OpTable* ops) : ops_(ops) {}

 private:
  const OpTable* ops_;
};

/// The CPU. `threads`: size of its ParallelFor pool, the caller included; at least 1.
std::unique_ptr<Device> CreateCpuDevice(int threads);

/// GPU `index`, or null with the reason in *error: built without CUDA, no such GPU, not sm_90.
/// `synchronous_ops`: wait after each op, so that a device fault names its op; slow, for debugging.
std::unique_ptr<Device> CreateCudaDevice(int index, std::string* error,
                                         bool synchronous_ops = false);

}  // namespace glm
