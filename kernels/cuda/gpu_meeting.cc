// Which way ranks on GPUs exchange, and what lies between the GPUs of this host.
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "kernels/communicator.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/peer_communicator.h"

namespace glm {
namespace cuda {
namespace {

/// "NVLink", "PCIe" (access without atomics) or "none".
const char* LinkBetween(int from, int to) {
  int access = 0;
  CUDA_CHECK(cudaDeviceCanAccessPeer(&access, from, to));
  if (access == 0) return "none";
  int atomics = 0;
  CUDA_CHECK(cudaDeviceGetP2PAttribute(&atomics, cudaDevP2PAttrNativeAtomicSupported, from, to));
  return atomics != 0 ? "NVLink" : "PCIe";
}

/// Empty where every pair can access each other's memory; else what to say of the first that
/// cannot.
std::string MissingAccess(const std::vector<int32_t>& devices) {
  for (const int32_t from : devices) {
    for (const int32_t to : devices) {
      if (from == to || std::string(LinkBetween(from, to)) != "none") continue;
      return "GPU " + std::to_string(from) + " cannot access the memory of GPU " +
             std::to_string(to);
    }
  }
  return "";
}

class NcclMeeting final : public Meeting {
 public:
  NcclMeeting(const GpuMeetingOptions& options, const NcclId& id)
      : size_(static_cast<int32_t>(options.devices.size())),
        elements_max_(std::max(options.rows_max * options.hidden, options.gather_elements_max)),
        id_(id) {}

  int32_t size() const override { return size_; }
  int64_t DeviceBytes() const override {
    return elements_max_ * size_ * static_cast<int64_t>(sizeof(float));
  }
  std::string Describe() const override { return "NCCL"; }
  std::unique_ptr<Communicator> Join(Device& device, int32_t rank, std::string* error) override {
    return CreateNcclCommunicator(device, id_, rank, size_, elements_max_, error);
  }

 private:
  const int32_t size_;
  const int64_t elements_max_;
  const NcclId id_;
};

}  // namespace
}  // namespace cuda

std::unique_ptr<Meeting> CreateGpuMeeting(const GpuMeetingOptions& options, std::string* error) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    count = 0;
  }
  for (const int32_t device : options.devices) {
    if (device >= 0 && device < count) continue;
    *error =
        "GPU " + std::to_string(device) + " does not exist, there are " + std::to_string(count);
    return nullptr;
  }
  const std::string missing = cuda::MissingAccess(options.devices);
  if (options.exchange != GpuExchange::kNccl && missing.empty()) {
    return cuda::CreatePeerMeeting(options);
  }
  if (options.exchange == GpuExchange::kPeer) {
    *error = "gpu_exchange is \"peer\", and " + missing +
             "; accepted there: \"nccl\", or \"auto\", which is that";
    return nullptr;
  }
  if (options.exchange == GpuExchange::kAuto) {
    LOG(WARNING) << missing << ": ranks exchange over NCCL, which is slower\n" << GpuTopology();
  }
  std::vector<int32_t> devices = options.devices;
  std::sort(devices.begin(), devices.end());
  if (std::adjacent_find(devices.begin(), devices.end()) != devices.end()) {
    *error = "two ranks on one GPU cannot exchange over NCCL";
    return nullptr;
  }
  NcclId id;
  if (!NewNcclId(&id, error)) return nullptr;
  return std::make_unique<cuda::NcclMeeting>(options, id);
}

std::string GpuTopology() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return "no usable GPU\n";
  }
  std::string text;
  for (int from = 0; from < count; ++from) {
    cudaDeviceProp properties;
    CUDA_CHECK(cudaGetDeviceProperties(&properties, from));
    char place[16];
    std::snprintf(place, sizeof(place), "%02x:%02x", properties.pciBusID & 0xFF,
                  properties.pciDeviceID & 0xFF);
    text += "GPU " + std::to_string(from) + " " + properties.name + ", PCI " + place +
            ", to the others:";
    for (int to = 0; to < count; ++to) {
      text += std::string(" ") + (from == to ? "-" : cuda::LinkBetween(from, to));
    }
    text += "\n";
  }
  return text;
}

}  // namespace glm
