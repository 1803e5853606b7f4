// CreateCudaDevice of a build without CUDA.
#include "kernels/device.h"

namespace glm {

std::unique_ptr<Device> CreateCudaDevice(int index, std::string* error, bool /*synchronous_ops*/) {
  *error = "GPU " + std::to_string(index) + ": this program was built without CUDA";
  return nullptr;
}

}  // namespace glm
