#include "kernels/cuda/cuda_device.h"

#include <algorithm>
#include <array>
#include <atomic>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/lt_gemms.h"

namespace glm {
namespace cuda {
namespace {

constexpr OpTable kCudaOps = {
    .embed = Embed,
    .add_rms_norm = AddRmsNorm,
    .linear = Linear,
    .norm_rope_store = NormRopeStore,
    .attention = Attention,
    .mla_rope_store = MlaRopeStore,
    .mla_attention = MlaAttention,
    .silu_mul = SiluMul,
    .moe_route = MoeRoute,
    .moe_experts = MoeExperts,
    .gather_logit_rows = GatherLogitRows,
    .store_tokens = StoreTokens,
    .sample = Sample,
    .choose_candidates = ChooseCandidates,
    .begin_drafts = BeginDrafts,
    .advance_drafts = AdvanceDrafts,
};

class CudaEvent final : public DeviceEvent {
 public:
  explicit CudaEvent(const CudaDevice& device) : device_(device) {
    CUDA_CHECK(cudaEventCreate(&event_));
  }
  ~CudaEvent() override { cudaEventDestroy(event_); }
  void Record() override { CUDA_CHECK(cudaEventRecord(event_, device_.stream())); }
  void Wait() override {
    const cudaError_t status = cudaEventSynchronize(event_);
    CHECK(status == cudaSuccess) << device_.Describe() << " failed: " << cudaGetErrorString(status)
                                 << "; last op issued: " << device_.current_op();
  }
  double SecondsSince(const DeviceEvent& earlier) const override {
    float milliseconds = 0;
    CUDA_CHECK(
        cudaEventElapsedTime(&milliseconds, static_cast<const CudaEvent&>(earlier).event_, event_));
    return milliseconds * 1e-3;
  }

 private:
  const CudaDevice& device_;
  cudaEvent_t event_ = nullptr;
};

class CudaGraph final : public DeviceGraph {
 public:
  CudaGraph(const CudaDevice& device, cudaGraph_t graph) : device_(device) {
    size_t nodes = 0;
    CUDA_CHECK(cudaGraphGetNodes(graph, nullptr, &nodes));
    operations_ = static_cast<int64_t>(nodes);
    CUDA_CHECK(cudaGraphInstantiate(&executable_, graph, 0));
    CUDA_CHECK(cudaGraphDestroy(graph));
    CUDA_CHECK(cudaGraphUpload(executable_, device.stream()));
  }
  ~CudaGraph() override { cudaGraphExecDestroy(executable_); }
  void Launch() override { CUDA_CHECK(cudaGraphLaunch(executable_, device_.stream())); }
  int64_t operations() const override { return operations_; }

 private:
  const CudaDevice& device_;
  cudaGraphExec_t executable_ = nullptr;
  int64_t operations_ = 0;
};

/// How many devices this process has on GPU `index`.
std::atomic<int>& DevicesOn(int index) {
  constexpr int kGpusMax = 64;
  static std::array<std::atomic<int>, kGpusMax> counts;
  CHECK_LT(index, kGpusMax);
  return counts[index];
}

}  // namespace

CudaDevice::CudaDevice(int index, const cudaDeviceProp& properties, bool synchronous_ops)
    : Device(&kCudaOps),
      index_(index),
      name_(properties.name),
      sm_count_(properties.multiProcessorCount),
      synchronous_ops_(synchronous_ops),
      waits_after_ops_(synchronous_ops) {
  ++DevicesOn(index);
  CUDA_CHECK(cudaSetDevice(index));
  CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  counters_ = static_cast<int32_t*>(Allocate(kCounters * sizeof(int32_t)));
  Fill(counters_, 0, kCounters * sizeof(int32_t));
  gemms_ = std::make_unique<LtGemms>(Allocate(LtGemms::kWorkspaceBytes));
}

CudaDevice::~CudaDevice() {
  cudaStreamSynchronize(stream_);
  gemms_.reset();
  for (void* piece : device_pieces_) cudaFree(piece);
  for (void* piece : host_pieces_) cudaFreeHost(piece);
  cudaStreamDestroy(stream_);
  --DevicesOn(index_);
}

bool CudaDevice::alone() const { return DevicesOn(index_) == 1; }

std::string CudaDevice::Describe() const { return name_ + " (" + std::to_string(index_) + ")"; }

int64_t CudaDevice::BytesFree() const {
  size_t bytes_free = 0;
  size_t bytes_total = 0;
  CUDA_CHECK(cudaMemGetInfo(&bytes_free, &bytes_total));
  return static_cast<int64_t>(bytes_free);
}

void* CudaDevice::Allocate(int64_t bytes) {
  CHECK(!sealed_) << "device memory asked for after Seal()";
  CHECK_GE(bytes, 0);
  void* piece = nullptr;
  const cudaError_t status = cudaMalloc(&piece, static_cast<size_t>(std::max<int64_t>(bytes, 1)));
  CHECK(status == cudaSuccess) << Describe() << " has " << BytesFree() << " bytes free, " << bytes
                               << " were asked for: " << cudaGetErrorString(status);
  device_pieces_.push_back(piece);
  return piece;
}

void* CudaDevice::AllocateHost(int64_t bytes) {
  CHECK(!sealed_) << "host memory asked for after Seal()";
  void* piece = nullptr;
  CUDA_CHECK(cudaMallocHost(&piece, static_cast<size_t>(std::max<int64_t>(bytes, 1))));
  host_pieces_.push_back(piece);
  return piece;
}

int64_t CudaDevice::ScratchBytes(const StepLimits& limits) const {
  return std::max({AttentionScratchBytes(limits, sm_count_), MlaScratchBytes(limits, sm_count_),
                   MoeRouteScratchBytes(limits), MoeExpertsScratchBytes(limits)});
}

void CudaDevice::PlanScratch(const StepLimits& limits) {
  CHECK(scratch_ == nullptr) << "scratch is planned once";
  scratch_bytes_ = ScratchBytes(limits);
  scratch_ = Allocate(scratch_bytes_);
}

void CudaDevice::Seal() {
  Synchronize();
  sealed_ = true;
}

void CudaDevice::CopyToDevice(void* device_dst, const void* host_src, int64_t bytes) {
  CUDA_CHECK(cudaMemcpyAsync(device_dst, host_src, static_cast<size_t>(bytes),
                             cudaMemcpyHostToDevice, stream_));
}

void CudaDevice::CopyToHost(void* host_dst, const void* device_src, int64_t bytes) {
  CUDA_CHECK(cudaMemcpyAsync(host_dst, device_src, static_cast<size_t>(bytes),
                             cudaMemcpyDeviceToHost, stream_));
}

void CudaDevice::Fill(void* device_dst, uint8_t byte, int64_t bytes) {
  CUDA_CHECK(cudaMemsetAsync(device_dst, byte, static_cast<size_t>(bytes), stream_));
}

void CudaDevice::Synchronize() {
  const cudaError_t status = cudaStreamSynchronize(stream_);
  CHECK(status == cudaSuccess) << Describe() << " failed: " << cudaGetErrorString(status)
                               << "; last op issued: " << current_op_;
}

std::unique_ptr<DeviceEvent> CudaDevice::NewEvent() { return std::make_unique<CudaEvent>(*this); }

void CudaDevice::BeginCapture() {
  CHECK(!capturing_) << "a capture is under way";
  CUDA_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  capturing_ = true;
}

std::unique_ptr<DeviceGraph> CudaDevice::EndCapture() {
  CHECK(capturing_) << "no capture is under way";
  cudaGraph_t graph = nullptr;
  CUDA_CHECK(cudaStreamEndCapture(stream_, &graph));
  capturing_ = false;
  return std::make_unique<CudaGraph>(*this, graph);
}

void* CudaDevice::Scratch(int64_t bytes) {
  CHECK_LE(bytes, scratch_bytes_) << "scratch of op " << current_op_
                                  << " exceeds the StepLimits given to PlanScratch";
  return scratch_;
}

OpScope::OpScope(Device& device, const char* name) : device_(static_cast<CudaDevice&>(device)) {
  device_.current_op_ = name;
}

OpScope::~OpScope() {
  cudaError_t status = cudaGetLastError();
  if (status == cudaSuccess && device_.waits_after_ops_ && !device_.capturing_) {
    status = cudaStreamSynchronize(device_.stream());
  }
  CHECK(status == cudaSuccess) << "op " << device_.current_op_ << " failed on "
                               << device_.Describe() << ": " << cudaGetErrorString(status);
}

}  // namespace cuda

std::unique_ptr<Device> CreateCudaDevice(int index, std::string* error, bool synchronous_ops) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    cudaGetLastError();
    *error = std::string("no usable GPU: ") + cudaGetErrorString(status);
    return nullptr;
  }
  if (index < 0 || index >= count) {
    *error = "GPU " + std::to_string(index) + " does not exist, there are " + std::to_string(count);
    return nullptr;
  }
  cudaDeviceProp properties;
  CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
  if (properties.major != 9 || properties.minor != 0) {
    *error = std::string(properties.name) + " has compute capability " +
             std::to_string(properties.major) + "." + std::to_string(properties.minor) +
             ", the kernels are built for 9.0 (H100, H200)";
    return nullptr;
  }
  return std::make_unique<cuda::CudaDevice>(index, properties, synchronous_ops);
}

}  // namespace glm
