// What communicators have in common, and that of a worker without tensor parallelism, on any
// device.
#include "kernels/communicator.h"

#include <cstdlib>

namespace glm {
namespace {

class SingleCommunicator final : public Communicator {
 public:
  int32_t rank() const override { return 0; }
  int32_t size() const override { return 1; }
  void AllReduceSum(Device& /*device*/, const Tensor& /*values*/) override {}
  void AllGatherColumns(Device& /*device*/, const Tensor& in, const Tensor& out) override {
    CHECK(in.data == out.data) << "one rank gathers in place";
  }
};

class SingleMeeting final : public Meeting {
 public:
  int32_t size() const override { return 1; }
  int64_t DeviceBytes() const override { return 0; }
  std::string Describe() const override { return "one rank"; }
  std::unique_ptr<Communicator> Join(Device& /*device*/, int32_t /*rank*/,
                                     std::string* /*error*/) override {
    return CreateSingleCommunicator();
  }
};

}  // namespace

void Communicator::BeginSum(Device& device, const Tensor& first) { AllReduceSum(device, first); }
void Communicator::EndSum(Device& device, const Tensor& others) { AllReduceSum(device, others); }

void Communicator::AllReduceAddRmsNorm(Device& device, const AddRmsNormArgs& args) {
  AllReduceSum(device, args.delta);
  device.ops().add_rms_norm(device, args);
}

std::unique_ptr<Communicator> CreateSingleCommunicator() {
  return std::make_unique<SingleCommunicator>();
}

void PrepareSharedGpu() {
  // Names of the driver's.
  setenv("CUDA_MODULE_LOADING", "EAGER", /*overwrite=*/0);
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", /*overwrite=*/0);
}

std::unique_ptr<Meeting> CreateSingleMeeting() { return std::make_unique<SingleMeeting>(); }

}  // namespace glm
