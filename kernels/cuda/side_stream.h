// A second stream of a device: what ranks exchange while the device multiplies.
//
// Its priority is higher: where blocks of both streams wait for a place, those of the exchange get
// it. That alone is no overlap. Products are persistent: our grouped GEMM starts a block an SM,
// each of which stays to the end and fills its SM's registers and shared memory, and cuBLASLt's
// kernels for Hopper do likewise. An exchange that is issued behind a product that has all SMs
// would start when the product ends. So SMs are shared out: between Fork and Join products take
// CudaDevice::product_sms(), which leaves kSms to the exchange, and the exchange has at most kSms
// blocks, one for each SM so that it keeps none of the product's blocks waiting.
//
// How many: 20 of 132. Such a block has 80 KB under way (two rows of 2560 columns on 8 ranks, or as
// much in more rows on fewer), half of the time; 20 of them keep 450 GB/s of NVLink busy at 2 us
// a round. The product meanwhile is some 18 % slower, for half of its columns. That is arithmetic;
// on two H200s it was a loss (a prompt of 8000 tokens of Flash 87 ms, 81 without), so models do it
// only where they are asked to. With more ranks, whose sums take longer, it was not measured.
//
// Who calls: communicators, on the rank thread. Can be captured: Join ends what Fork began.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/cuda_device.h"
#include "kernels/output_parts.h"

namespace glm::cuda {

class SideStream {
 public:
  /// SMs that a product leaves to an exchange beside it, and blocks that the exchange may have.
  static constexpr int kSms = 20;

  /// At the start, before the device is sealed; `device` must outlive it.
  explicit SideStream(CudaDevice& device);
  SideStream(const SideStream&) = delete;
  SideStream& operator=(const SideStream&) = delete;
  ~SideStream();

  /// The stream, on which what is issued now comes after all that the device was given, and beside
  /// what it is given until Join. REQUIRES that no Fork is open.
  cudaStream_t Fork();
  /// What the device is given from here on comes after all that was issued on the stream.
  void Join();

 private:
  CudaDevice& device_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t forked_ = nullptr;
  cudaEvent_t joined_ = nullptr;
};

/// SumInParts() for products of CUDA. In order where the host waits after each op, which is how
/// kernels are run for the first time (Device::WaitAfterOps()).
template <typename Multiply>
void SumBeside(CudaDevice& device, Communicator& ranks, const Tensor& out,
               const Multiply& multiply) {
  if (!device.waits_after_ops()) return SumInParts(device, ranks, out, multiply);
  const int64_t columns = out.shape[1];
  const int64_t first = FirstPart(columns);
  multiply(0, first);
  device.set_exchange_sms(SideStream::kSms);  // the same kernels as later
  multiply(first, columns - first);
  device.set_exchange_sms(0);
  ranks.BeginSum(device, out.Columns(0, first));
  ranks.EndSum(device, out.Columns(first, columns - first));
}

}  // namespace glm::cuda
