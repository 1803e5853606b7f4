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
#include "kernels/tensor.h"

namespace glm {

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int32_t rank() const = 0;
  virtual int32_t size() const = 0;

  /// values = sum over ranks, in rank order, float, rounded once. The same bits on every rank.
  /// act or F32 [T, H], contiguous rows.
  virtual void AllReduceSum(Device& device, const Tensor& values) = 0;

  /// out[r, rank * n + j] = that rank's in[r, j]. in F32 [R, n], out F32 [R, size * n]. With one
  /// rank `in` may be `out`.
  virtual void AllGatherColumns(Device& device, const Tensor& in, const Tensor& out) = 0;
};

/// The one rank of a worker without tensor parallelism, on any device: both calls leave everything
/// as it is. AllGatherColumns REQUIRES that `in` is `out`.
std::unique_ptr<Communicator> CreateSingleCommunicator();

/// Ranks that are threads of this process, over host memory. `elements_max`: the largest tensor.
std::vector<std::unique_ptr<Communicator>> CreateLocalCommunicators(int32_t size,
                                                                    int64_t elements_max);

/// By what the ranks of one meeting over NCCL know each other: made once, and given to each.
struct NcclId {
  char bytes[128] = {};
};

/// False with the reason in *error: built without CUDA, or no libnccl.so.2 on this host.
bool NewNcclId(NcclId* id, std::string* error);

/// Rank `rank` of `size`, on the thread that owns `device`, a GPU of its own that is not sealed
/// yet. Blocks until all ranks have called. `elements_max`: the largest tensor, of which the device
/// then holds `size` copies. Null with the reason in *error.
///
/// The library is looked for where the program runs (as the linker does), so that hosts with one
/// GPU need none. Calls can be captured. What ranks sum is gathered and then added in rank order,
/// since NCCL's own sums round on the way and know no order. A failure of NCCL ends the process,
/// and so does, in the end, a rank that never comes: who started the ranks must see to that.
std::unique_ptr<Communicator> CreateNcclCommunicator(Device& device, const NcclId& id, int32_t rank,
                                                     int32_t size, int64_t elements_max,
                                                     std::string* error);

}  // namespace glm
