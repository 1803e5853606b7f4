// Sums and gathers over the ranks of one worker.
//
// Every rank of a tensor-parallel worker has its own Communicator, used on the thread that owns its
// Device and in that device's order. All ranks must make the same calls in the same order with the
// same shapes: a call blocks (on the CPU) or the device waits (on a GPU) until all have come.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "kernels/ops.h"
#include "kernels/tensor.h"

namespace glm {

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int32_t rank() const = 0;
  virtual int32_t size() const = 0;

  /// values = sum over ranks, in rank order, float, rounded once. The same bits on every rank.
  /// act or F32 [T, H]; may be a view of columns, of rows that are as far apart on all ranks.
  virtual void AllReduceSum(Device& device, const Tensor& values) = 0;

  /// AllReduceSum of a tensor in two calls: of its first columns, then of the others. What the
  /// device is given between the two runs beside the first sum where the backend can do that, and
  /// must not touch `first`; after EndSum all of it is there. No other call may come between them.
  /// These two take one sum after the other.
  virtual void BeginSum(Device& device, const Tensor& first);
  virtual void EndSum(Device& device, const Tensor& others);

  /// AllReduceSum of args.delta, then the op add_rms_norm of it; one kernel where the backend has
  /// one. The delta holds the sum afterwards; rows of padding are unspecified, as the op has it.
  virtual void AllReduceAddRmsNorm(Device& device, const AddRmsNormArgs& args);

  /// out[r, rank * n + j] = that rank's in[r, j], bit by bit: it need not be a float. in F32 [R,
  /// n], out F32 [R, size * n]. With one rank `in` may be `out`.
  virtual void AllGatherColumns(Device& device, const Tensor& in, const Tensor& out) = 0;
};

/// The one rank of a worker without tensor parallelism, on any device: both calls leave everything
/// as it is. AllGatherColumns REQUIRES that `in` is `out`.
std::unique_ptr<Communicator> CreateSingleCommunicator();

/// Where the ranks of one worker, threads of one process, get their communicators.
class Meeting {
 public:
  virtual ~Meeting() = default;

  virtual int32_t size() const = 0;
  /// What Join takes of a rank's device.
  virtual int64_t DeviceBytes() const = 0;
  /// How the ranks exchange: "peer memory", "NCCL", "host memory".
  virtual std::string Describe() const = 0;
  /// The communicator of rank `rank`, once, on the thread that owns `device`, which is not sealed
  /// yet. Blocks until all ranks have called: they must all come. The communicator uses the
  /// meeting, which must outlive it. Null with the reason in *error.
  virtual std::unique_ptr<Communicator> Join(Device& device, int32_t rank, std::string* error) = 0;
};

/// Of one rank, which gets what CreateSingleCommunicator gives.
std::unique_ptr<Meeting> CreateSingleMeeting();

/// Ranks that are threads of this process, over host memory. `elements_max`: the largest tensor.
std::vector<std::unique_ptr<Communicator>> CreateLocalCommunicators(int32_t size,
                                                                    int64_t elements_max);
std::unique_ptr<Meeting> CreateLocalMeeting(int32_t size, int64_t elements_max);

/// How ranks on GPUs exchange. kAuto: through each other's memory where every pair of GPUs can
/// access it, else over NCCL.
enum class GpuExchange { kAuto, kPeer, kNccl };

struct GpuMeetingOptions {
  std::vector<int32_t> devices;  // GPU of each rank; one may stand there twice (not over NCCL)
  GpuExchange exchange = GpuExchange::kAuto;
  int64_t rows_max = 0;             // T of a step: rows that are summed
  int64_t hidden = 0;               // their width, a multiple of 8
  int64_t gather_elements_max = 0;  // of the largest tensor a rank gives to a gather
};

/// Null with the reason in *error: no such GPU, no peer access where it is asked for, no NCCL.
/// Logs which way it takes. Sums of both ways have the same bits: those of Communicator's contract.
std::unique_ptr<Meeting> CreateGpuMeeting(const GpuMeetingOptions& options, std::string* error);

/// Before the first other call here where ranks will share a GPU: their kernels wait for each
/// other, and must not wait for the loading of code or stand in one queue (a rank has two streams;
/// there are queues for 16 ranks then). Sets variables of this process's environment that the
/// driver reads.
void PrepareSharedGpu();

/// How the GPUs of this host reach each other, a line a GPU: for logs and benchmarks. Says so where
/// there are none.
std::string GpuTopology();

/// By what the ranks of one meeting over NCCL know each other: made once, and given to each.
struct NcclId {
  char bytes[128] = {};
};

/// False with the reason in *error: built without CUDA, or no libnccl.so.2 on this host.
bool NewNcclId(NcclId* id, std::string* error);

/// Rank `rank` of `size`, on the thread that owns `device`, a GPU of its own that is not sealed
/// yet; ranks may be processes. Blocks until all ranks have called. `elements_max`: the largest
/// tensor, of which the device then holds `size` copies. Null with the reason in *error.
///
/// The library is looked for where the program runs (as the linker does), so that hosts with one
/// GPU need none. Calls can be captured. What ranks sum is gathered and then added in rank order,
/// since NCCL's own sums round on the way and know no order. A failure of NCCL ends the process,
/// and so does, in the end, a rank that never comes: who started the ranks must see to that.
std::unique_ptr<Communicator> CreateNcclCommunicator(Device& device, const NcclId& id, int32_t rank,
                                                     int32_t size, int64_t elements_max,
                                                     std::string* error);

}  // namespace glm
