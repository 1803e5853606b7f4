// What a build without CUDA says of GPUs.
#include "kernels/communicator.h"
#include "kernels/device.h"

namespace glm {

std::unique_ptr<Device> CreateCudaDevice(int index, std::string* error, bool /*synchronous_ops*/) {
  *error = "GPU " + std::to_string(index) + ": this program was built without CUDA";
  return nullptr;
}

std::unique_ptr<Meeting> CreateGpuMeeting(const GpuMeetingOptions& /*options*/,
                                          std::string* error) {
  *error = "no exchange between GPUs: this program was built without CUDA";
  return nullptr;
}

std::string GpuTopology() { return "no GPUs: this program was built without CUDA\n"; }

bool NewNcclId(NcclId* /*id*/, std::string* error) {
  *error = "NCCL: this program was built without CUDA";
  return false;
}

std::unique_ptr<Communicator> CreateNcclCommunicator(Device& /*device*/, const NcclId& id,
                                                     int32_t /*rank*/, int32_t /*size*/,
                                                     int64_t /*elements_max*/, std::string* error) {
  NcclId none = id;
  NewNcclId(&none, error);
  return nullptr;
}

}  // namespace glm
