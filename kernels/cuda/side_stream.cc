#include "kernels/cuda/side_stream.h"

#include "kernels/cuda/cuda_check.h"

namespace glm::cuda {

SideStream::SideStream(CudaDevice& device) : device_(device) {
  int lowest = 0;
  int highest = 0;
  CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
  CUDA_CHECK(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, highest));
  CUDA_CHECK(cudaEventCreateWithFlags(&forked_, cudaEventDisableTiming));
  CUDA_CHECK(cudaEventCreateWithFlags(&joined_, cudaEventDisableTiming));
}

SideStream::~SideStream() {
  cudaStreamSynchronize(stream_);
  cudaEventDestroy(joined_);
  cudaEventDestroy(forked_);
  cudaStreamDestroy(stream_);
}

cudaStream_t SideStream::Fork() {
  CHECK_EQ(device_.exchange_sms(), 0) << "a second exchange beside a product";
  CUDA_CHECK(cudaEventRecord(forked_, device_.stream()));
  CUDA_CHECK(cudaStreamWaitEvent(stream_, forked_, 0));
  device_.set_exchange_sms(kSms);
  return stream_;
}

void SideStream::Join() {
  CHECK_EQ(device_.exchange_sms(), kSms) << "no exchange was begun";
  CUDA_CHECK(cudaEventRecord(joined_, stream_));
  CUDA_CHECK(cudaStreamWaitEvent(device_.stream(), joined_, 0));
  device_.set_exchange_sms(0);
}

}  // namespace glm::cuda
