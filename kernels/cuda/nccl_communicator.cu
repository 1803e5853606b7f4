// Ranks that have a GPU each, over NCCL: gathers, and sums in rank order.
//
// NCCL is loaded when the first rank asks for it; its interface is declared here, so that it is
// needed neither to build nor to run on one GPU.

#include <dlfcn.h>

#include <string>

#include "kernels/communicator.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/side_stream.h"
#include "kernels/cuda/warp.cuh"

namespace glm {
namespace cuda {
namespace {

// Of nccl.h, version 2: names are NCCL's own, without their prefix.
using NcclResult = int;
using NcclComm = void*;
constexpr NcclResult kNcclSuccess = 0;
constexpr int kNcclUint8 = 1;

struct NcclLibrary {
  NcclResult (*get_unique_id)(NcclId*) = nullptr;
  NcclResult (*comm_init_rank)(NcclComm*, int size, NcclId, int rank) = nullptr;
  NcclResult (*comm_destroy)(NcclComm) = nullptr;
  NcclResult (*all_gather)(const void* in, void* out, size_t count, int type, NcclComm,
                           cudaStream_t) = nullptr;
  const char* (*get_error_string)(NcclResult) = nullptr;
  std::string error;  // not empty: it cannot be used

  NcclLibrary() {
    void* handle = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      const char* reason = dlerror();
      error = std::string("NCCL: ") + (reason == nullptr ? "libnccl.so.2 does not load" : reason);
      return;
    }
    Find(handle, "ncclGetUniqueId", &get_unique_id);
    Find(handle, "ncclCommInitRank", &comm_init_rank);
    Find(handle, "ncclCommDestroy", &comm_destroy);
    Find(handle, "ncclAllGather", &all_gather);
    Find(handle, "ncclGetErrorString", &get_error_string);
  }

  template <typename Function>
  void Find(void* handle, const char* name, Function* function) {
    *function = reinterpret_cast<Function>(dlsym(handle, name));
    if (*function == nullptr) error = std::string("NCCL: libnccl.so.2 has no ") + name;
  }

  void Check(NcclResult result, const char* what) const {
    CHECK_EQ(result, kNcclSuccess) << "NCCL, " << what << ": " << get_error_string(result);
  }
};

/// Loaded by the first call, and never unloaded.
const NcclLibrary& Nccl() {
  static const NcclLibrary* const library = new NcclLibrary;
  return *library;
}

constexpr int kThreads = 256;

unsigned BlocksFor(int64_t count) {
  return static_cast<unsigned>((count + kThreads - 1) / kThreads);
}

__device__ __forceinline__ void StoreRounded(float* to, float value) { *to = value; }
__device__ __forceinline__ void StoreRounded(BFloat16* to, float value) { *to = ToBFloat16(value); }

/// Element i of out, row after row, = sum over ranks of parts[rank * count + i], in rank order.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    SumRanksKernel(const T* parts, int ranks, int64_t count, T* out, int64_t columns,
                   int64_t stride) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  float sum = 0;
  for (int rank = 0; rank < ranks; ++rank) sum += ToFloat(parts[rank * count + i]);
  StoreRounded(out + i / columns * stride + i % columns, sum);
}

/// out[r, rank * n + j] = parts[rank][r, j].
__global__ void __launch_bounds__(kThreads)
    PlaceColumnsKernel(const float* parts, int ranks, int64_t rows, int64_t columns, float* out,
                       int64_t out_stride) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= ranks * rows * columns) return;
  const int64_t rank = i / (rows * columns);
  const int64_t row = i / columns % rows;
  out[row * out_stride + rank * columns + i % columns] = parts[i];
}

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(CudaDevice& device, const NcclId& id, int32_t rank, int32_t size,
                   int64_t elements_max)
      : device_(device),
        rank_(rank),
        size_(size),
        elements_max_(elements_max),
        side_(device),
        parts_(device.Allocate(elements_max * size * static_cast<int64_t>(sizeof(float)))) {
    Nccl().Check(Nccl().comm_init_rank(&communicator_, size, id, rank), "meeting of the ranks");
  }
  ~NcclCommunicator() override { Nccl().comm_destroy(communicator_); }

  int32_t rank() const override { return rank_; }
  int32_t size() const override { return size_; }

  void AllReduceSum(Device& device, const Tensor& values) override {
    const OpScope op(device, "all_reduce_sum");
    Sum(op, values, op.stream());
  }

  void BeginSum(Device& device, const Tensor& first) override {
    const OpScope op(device, "begin_sum");
    Sum(op, first, side_.Fork());
  }

  void EndSum(Device& device, const Tensor& others) override {
    const OpScope op(device, "end_sum");
    side_.Join();
    Sum(op, others, op.stream());
  }

  void AllGatherColumns(Device& device, const Tensor& in, const Tensor& out) override {
    const OpScope op(device, "all_gather_columns");
    const int64_t rows = in.shape[0];
    const int64_t columns = in.shape[1];
    CheckShape(in, DType::kF32, {-1, -1}, "all_gather_columns.in");
    CheckShape(out, DType::kF32, {rows, columns * size_}, "all_gather_columns.out");
    CHECK(in.contiguous()) << "all_gather_columns.in";
    Gather(op, in, op.stream());
    PlaceColumnsKernel<<<BlocksFor(in.elements() * size_), kThreads, 0, op.stream()>>>(
        static_cast<const float*>(parts_), size_, rows, columns, out.Data<float>(), out.stride[0]);
  }

 private:
  void Sum(const OpScope& op, const Tensor& values, cudaStream_t stream) {
    CHECK_EQ(values.rank, 2) << "all_reduce_sum.values";
    Gather(op, values, stream);
    const int64_t count = values.elements();
    if (values.dtype == DType::kF32) {
      SumRanksKernel<<<BlocksFor(count), kThreads, 0, stream>>>(static_cast<const float*>(parts_),
                                                                size_, count, values.Data<float>(),
                                                                values.shape[1], values.stride[0]);
    } else {
      CHECK(values.dtype == DType::kBF16) << values.ToString();
      SumRanksKernel<<<BlocksFor(count), kThreads, 0, stream>>>(
          static_cast<const BFloat16*>(parts_), size_, count, values.Data<BFloat16>(),
          values.shape[1], values.stride[0]);
    }
  }

  /// parts_ = the tensors of all ranks, behind each other.
  void Gather(const OpScope& op, const Tensor& tensor, cudaStream_t stream) {
    CHECK_EQ(&op.device(), &device_) << "a communicator belongs to one device";
    CHECK_LE(tensor.elements(), elements_max_) << "elements of " << tensor.ToString();
    const void* from = tensor.data;
    const auto bytes = static_cast<size_t>(tensor.bytes());
    if (!tensor.contiguous()) {
      // NCCL takes what is in one piece: this rank's place in parts_, from where it gathers.
      char* const own = static_cast<char*>(parts_) + bytes * static_cast<size_t>(rank_);
      const auto rows = static_cast<size_t>(tensor.shape[0]);
      CUDA_CHECK(cudaMemcpy2DAsync(own, bytes / rows, from,
                                   static_cast<size_t>(tensor.stride[0] * ByteSize(tensor.dtype)),
                                   bytes / rows, rows, cudaMemcpyDeviceToDevice, stream));
      from = own;
    }
    Nccl().Check(Nccl().all_gather(from, parts_, bytes, kNcclUint8, communicator_, stream),
                 "gather");
  }

  CudaDevice& device_;
  const int32_t rank_;
  const int32_t size_;
  const int64_t elements_max_;
  SideStream side_;
  void* const parts_;  // room for elements_max floats of every rank
  NcclComm communicator_ = nullptr;
};

}  // namespace
}  // namespace cuda

bool NewNcclId(NcclId* id, std::string* error) {
  const cuda::NcclLibrary& nccl = cuda::Nccl();
  *error = nccl.error;
  if (!error->empty()) return false;
  nccl.Check(nccl.get_unique_id(id), "a new id");
  return true;
}

std::unique_ptr<Communicator> CreateNcclCommunicator(Device& device, const NcclId& id, int32_t rank,
                                                     int32_t size, int64_t elements_max,
                                                     std::string* error) {
  CHECK(rank >= 0 && rank < size) << "rank " << rank << " of " << size;
  *error = cuda::Nccl().error;
  if (!error->empty()) return nullptr;
  return std::make_unique<cuda::NcclCommunicator>(static_cast<cuda::CudaDevice&>(device), id, rank,
                                                  size, elements_max);
}

}  // namespace glm
