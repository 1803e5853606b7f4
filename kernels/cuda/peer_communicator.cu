#include "kernels/cuda/peer_communicator.h"

#include <algorithm>
#include <array>
#include <condition_variable>
#include <mutex>
#include <set>
#include <vector>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/launch_after.h"
#include "kernels/cuda/norm_row.cuh"
#include "kernels/cuda/peer_memory.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/side_stream.h"

namespace glm::cuda {
namespace {

constexpr int kRanksMax = 8;
// What others may send a rank in one shot. Beyond that two shots, whose bytes do not grow with the
// ranks but which wait twice, are taken to be faster: at 450 GB/s this is 5 us of NVLink.
constexpr int64_t kSmallInboundBytes = 2 << 20;
constexpr int kRowThreadsMax = 768;  // 8 values each: rows of at most 6144
constexpr int kGroupsMax = 8;        // of a block that sums rows beside each other
constexpr int kGatherThreads = 256;
constexpr int kGatherPiece = 4 * kGatherThreads;  // values that a block moves at a time

/// A rank's mailbox, at addresses that are good on all GPUs.
struct Mailbox {
  uint32_t* counters;    // [2] of the rank's own: the last call's epoch, blocks that are done
  uint32_t* ready;       // [ranks] epoch: what the rank gives to the call may be read
  uint64_t* addresses;   // [ranks] where that lies
  uint32_t* left;        // [ranks] epoch: the rank has read all it wanted
  uint32_t* row_epochs;  // [rows_max] epoch: the row holds the sum
  uint4* small;          // [2, ranks, small_vectors]
};

template <int kRanks>
struct Peers {
  int rank;
  int64_t small_vectors;
  Mailbox boxes[kRanks];

  __device__ const Mailbox& own() const { return boxes[rank]; }
};

struct SumParams {
  BFloat16* values;       // [rows, columns], this rank's part, then the sum
  int64_t stride;         // of rows, the same on all ranks
  const int32_t* counts;  // null: all rows are valid
  int rows;
  int columns;
  int row_threads;  // of a row; in two shots a block may be several of these
  NormParams norm;  // of the fused form
};

__device__ __forceinline__ int ValidRows(const SumParams& s) {
  return s.counts == nullptr ? s.rows : min(s.rows, s.counts[0]);
}

/// The number of this call. Read by every block before it counts itself done.
template <int kRanks>
__device__ __forceinline__ uint32_t EpochOf(const Peers<kRanks>& p) {
  return p.own().counters[0] + 1;
}

/// True in the block that is done last, once for the call.
template <int kRanks>
__device__ __forceinline__ bool IsLastBlock(const Peers<kRanks>& p) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(&p.own().counters[1], 1) == gridDim.x - 1;
  }
  __syncthreads();
  return last;
}

/// The last block ends the call.
template <int kRanks>
__device__ __forceinline__ void CountCall(const Peers<kRanks>& p, uint32_t epoch) {
  if (threadIdx.x != 0) return;
  p.own().counters[1] = 0;
  p.own().counters[0] = epoch;
}

/// 8 values of a row as they lie in memory; zeros past its end.
__device__ __forceinline__ uint4 LoadWords(const BFloat16* row, int column, int columns) {
  return column < columns ? *reinterpret_cast<const uint4*>(row + column) : uint4{0, 0, 0, 0};
}

/// sum += the 8 values of `part`.
__device__ __forceinline__ void AddPart(const uint4& part, float (&sum)[kVector]) {
  const uint32_t words[4] = {part.x, part.y, part.z, part.w};
#pragma unroll
  for (int i = 0; i < kVector / 2; ++i) {
    sum[2 * i] += __uint_as_float(words[i] << 16);
    sum[2 * i + 1] += __uint_as_float(words[i] & 0xFFFF0000u);
  }
}

/// Rounds a sum in place, and returns it packed.
__device__ __forceinline__ uint4 RoundSum(float (&sum)[kVector]) {
  Bf16x8 packed;
#pragma unroll
  for (int i = 0; i < kVector / 2; ++i) {
    packed.SetPair(i, float2{sum[2 * i], sum[2 * i + 1]});
    const float2 rounded = packed.Pair(i);
    sum[2 * i] = rounded.x;
    sum[2 * i + 1] = rounded.y;
  }
  return {packed.words[0], packed.words[1], packed.words[2], packed.words[3]};
}

/// What the fused form does with a row once its sum is there. Weight and residual were loaded while
/// the others were awaited.
__device__ __forceinline__ void FinishRow(const NormParams& norm, int64_t row, int column,
                                          const uint4& weight_words, const uint4& residual_words,
                                          const float (&sum)[kVector], float* shared) {
  float weights[kVector] = {};
  float residual[kVector] = {};
  AddPart(weight_words, weights);
  AddPart(residual_words, residual);
  AddToResidual<true>(norm, row, column, sum, residual);
  NormRow<true>(norm, row, column, weights, residual, shared);
}

template <int kRanks, bool kNorm>
__global__ void __launch_bounds__(kRowThreadsMax)
    SumInOneShotKernel(const __grid_constant__ Peers<kRanks> p, const SumParams s) {
  __shared__ float shared[kWarp];
  const int column = static_cast<int>(threadIdx.x) * kVector;
  const bool active = column < s.columns;
  const int vectors = s.columns / kVector;
  uint4 weight = {};
  if constexpr (kNorm) weight = LoadWords(s.norm.weight, column, s.columns);
  DependencyWait();
  // The first row is asked for together with the count of rows.
  uint4 part = LoadWords(s.values + static_cast<int64_t>(blockIdx.x) * s.stride, column, s.columns);
  const uint32_t epoch = EpochOf(p);
  const int valid = ValidRows(s);
  const int64_t half = (epoch % 2) * kRanks;
  for (int row = static_cast<int>(blockIdx.x); row < valid; row += static_cast<int>(gridDim.x)) {
    BFloat16* values = s.values + row * s.stride + column;
    const int64_t place = static_cast<int64_t>(row) * 2 * vectors + threadIdx.x;
    float sum[kVector] = {};
    uint4 residual = {};
    if (active) {
      // To the rank itself too: then all parts come the same way.
      if (row != static_cast<int>(blockIdx.x)) part = *reinterpret_cast<const uint4*>(values);
#pragma unroll
      for (int i = 0; i < kRanks; ++i) {
        const Mailbox& box = p.boxes[(p.rank + i) % kRanks];
        uint4* to = box.small + (half + p.rank) * p.small_vectors + place;
        StoreHalves(to, {part.x, epoch, part.y, epoch});
        StoreHalves(to + vectors, {part.z, epoch, part.w, epoch});
      }
      if constexpr (kNorm) {
        residual = LoadWords(s.norm.residual + row * s.norm.residual_stride, column, s.columns);
      }
      // As many at a time as registers hold.
      constexpr int kTogether = kRanks < 4 ? kRanks : 4;
      const uint4* from = p.own().small + half * p.small_vectors + place;
#pragma unroll
      for (int first = 0; first < kRanks; first += kTogether) {
        uint4 parts[kTogether];
        PollUntil([&] {
          bool all = true;
#pragma unroll
          for (int i = 0; i < kTogether; ++i) {
            const uint4* part_from = from + (first + i) * p.small_vectors;
            const uint4 low = LoadHalves(part_from);
            const uint4 high = LoadHalves(part_from + vectors);
            all = all && low.y == epoch && low.w == epoch && high.y == epoch && high.w == epoch;
            parts[i] = {low.x, low.z, high.x, high.z};
          }
          return all;
        });
#pragma unroll
        for (int i = 0; i < kTogether; ++i) AddPart(parts[i], sum);
      }
      *reinterpret_cast<uint4*>(values) = RoundSum(sum);
    }
    if constexpr (kNorm) FinishRow(s.norm, row, column, weight, residual, sum, shared);
  }
  DependencyRelease();
  if (IsLastBlock(p)) CountCall(p, epoch);
}

/// Tells all ranks where this one's tensor lies, once a call.
template <int kRanks>
__device__ __forceinline__ void Announce(const Peers<kRanks>& p, uint32_t epoch,
                                         const void* tensor) {
  if (blockIdx.x != 0 || threadIdx.x >= kRanks) return;
  const Mailbox& box = p.boxes[threadIdx.x];
  *reinterpret_cast<volatile uint64_t*>(&box.addresses[p.rank]) =
      reinterpret_cast<uint64_t>(tensor);
  __threadfence_system();
  StoreRelease(&box.ready[p.rank], epoch);
}

/// Awaits the tensors of all ranks: their addresses, in shared memory. All threads call it.
template <int kRanks>
__device__ __forceinline__ void AwaitTensors(const Peers<kRanks>& p, uint32_t epoch,
                                             uint64_t* addresses) {
  if (threadIdx.x < kRanks) {
    const Mailbox& box = p.own();
    PollUntil([&] { return LoadAcquire(&box.ready[threadIdx.x]) == epoch; });
    addresses[threadIdx.x] = *reinterpret_cast<volatile uint64_t*>(&box.addresses[threadIdx.x]);
  }
  __syncthreads();
}

/// Sums the rows of this rank, where they lie on all ranks. Groups of s.row_threads threads take
/// rows apart from each other, and several at a time: what one group loads is on its way while
/// another waits for its stores to be seen.
template <int kRanks>
__device__ __forceinline__ void SumOwnRows(const Peers<kRanks>& p, const SumParams& s,
                                           uint32_t epoch, int valid, uint64_t* addresses) {
  constexpr int kTogether = 8 / kRanks;  // rows whose parts a thread's registers hold
  const int groups = static_cast<int>(blockDim.x) / s.row_threads;
  const int group = static_cast<int>(threadIdx.x) / s.row_threads;
  const int thread = static_cast<int>(threadIdx.x) % s.row_threads;
  const int column = thread * kVector;
  // Of its own rows the rank's n-th is row n * kRanks + rank.
  const int own = (valid - p.rank + kRanks - 1) / kRanks;
  const int apart = static_cast<int>(gridDim.x) * groups;
  const int first = static_cast<int>(blockIdx.x) * groups;
  // A block without such a row need not wait, and must not: the others may be at a later call.
  if (first >= own) return;
  AwaitTensors(p, epoch, addresses);
  for (int begin = first + group; begin < own; begin += apart * kTogether) {
    const auto row_of = [&](int i) { return (begin + i * apart) * kRanks + p.rank; };
    const auto offset_of = [&](int i) {
      return (row_of(i) * s.stride + column) * static_cast<int64_t>(sizeof(BFloat16));
    };
    if (column < s.columns) {
      uint4 parts[kTogether][kRanks];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        if (row_of(i) >= valid) continue;
#pragma unroll
        for (int rank = 0; rank < kRanks; ++rank) {
          parts[i][rank] =
              LoadShared16(reinterpret_cast<const void*>(addresses[rank] + offset_of(i)));
        }
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        if (row_of(i) >= valid) continue;
        float sum[kVector] = {};
#pragma unroll
        for (int rank = 0; rank < kRanks; ++rank) {
          AddPart(parts[i][rank], sum);
        }
        const uint4 packed = RoundSum(sum);
#pragma unroll
        for (int r = 0; r < kRanks; ++r) {
          const int rank = (p.rank + r) % kRanks;
          StoreHalves(reinterpret_cast<uint4*>(addresses[rank] + offset_of(i)), packed);
        }
      }
    }
    NamedBarrier(1 + group, s.row_threads);
    if (thread < kRanks) {
      __threadfence_system();
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        if (row_of(i) < valid) StoreRelease(&p.boxes[thread].row_epochs[row_of(i)], epoch);
      }
    }
  }
}

// Every row is awaited, so that the kernel's end says that the tensor holds the sums and nobody
// reads or writes it any more. Without the norm each thread awaits rows of its own.
template <int kRanks, bool kNorm>
__global__ void __launch_bounds__(kRowThreadsMax)
    SumInTwoShotsKernel(const __grid_constant__ Peers<kRanks> p, const SumParams s) {
  __shared__ float shared[kWarp];
  __shared__ uint64_t addresses[kRanks];
  const int column = static_cast<int>(threadIdx.x) * kVector;
  uint4 weight = {};
  if constexpr (kNorm) weight = LoadWords(s.norm.weight, column, s.columns);
  DependencyWait();
  const uint32_t epoch = EpochOf(p);
  const int valid = ValidRows(s);
  const auto await_row = [&](int row) {
    PollUntil([&] { return LoadAcquire(&p.own().row_epochs[row]) == epoch; });
  };
  Announce(p, epoch, s.values);
  SumOwnRows(p, s, epoch, valid, addresses);
  if constexpr (kNorm) {
    for (int row = static_cast<int>(blockIdx.x); row < valid; row += static_cast<int>(gridDim.x)) {
      const uint4 residual =
          LoadWords(s.norm.residual + row * s.norm.residual_stride, column, s.columns);
      if (threadIdx.x == 0) await_row(row);
      __syncthreads();
      float sum[kVector] = {};
      if (column < s.columns) AddPart(LoadShared16(s.values + row * s.stride + column), sum);
      FinishRow(s.norm, row, column, weight, residual, sum, shared);
    }
  } else {
    const int threads = static_cast<int>(gridDim.x * blockDim.x);
    for (int row = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); row < valid;
         row += threads) {
      await_row(row);
    }
  }
  DependencyRelease();
  if (IsLastBlock(p)) CountCall(p, epoch);
}

struct GatherParams {
  const float* in;  // [rows, columns]
  int64_t in_stride;
  int rows;
  int columns;
  float* out;  // [rows, ranks * columns]
  int64_t out_stride;
  bool vectors;  // all parts of rows can be read and written 16 bytes at a time
};

template <int kRanks>
__global__ void __launch_bounds__(kGatherThreads)
    GatherColumnsKernel(const __grid_constant__ Peers<kRanks> p, const GatherParams g) {
  __shared__ uint64_t addresses[kRanks];
  DependencyWait();
  const uint32_t epoch = EpochOf(p);
  Announce(p, epoch, g.in);
  AwaitTensors(p, epoch, addresses);
  // A block takes pieces of one rank's part of a row.
  const int pieces = (g.columns + kGatherPiece - 1) / kGatherPiece;
  const int count = g.rows * kRanks * pieces;
  for (int i = static_cast<int>(blockIdx.x); i < count; i += static_cast<int>(gridDim.x)) {
    const int piece = i % pieces;
    const int rank = i / pieces % kRanks;
    const int64_t row = i / pieces / kRanks;
    const float* from = reinterpret_cast<const float*>(addresses[rank]) + row * g.in_stride;
    float* to = g.out + row * g.out_stride + static_cast<int64_t>(rank) * g.columns;
    const int begin = piece * kGatherPiece;
    if (g.vectors) {
      const int column = begin + static_cast<int>(threadIdx.x) * 4;
      if (column < g.columns) {
        *reinterpret_cast<uint4*>(to + column) = LoadShared16(from + column);
      }
    } else {
      const int end = min(g.columns, begin + kGatherPiece);
      for (int c = begin + static_cast<int>(threadIdx.x); c < end; c += kGatherThreads) {
        to[c] = LoadShared4(from + c);
      }
    }
  }
  DependencyRelease();
  if (!IsLastBlock(p)) return;
  if (threadIdx.x < kRanks) {
    StoreRelease(&p.boxes[threadIdx.x].left[p.rank], epoch);
    PollUntil([&] { return LoadAcquire(&p.own().left[threadIdx.x]) == epoch; });
  }
  __syncthreads();
  CountCall(p, epoch);
}

/// Blocks until all ranks have come; used once.
class Gathering {
 public:
  explicit Gathering(size_t ranks) : ranks_(ranks) {}
  void Await() {
    std::unique_lock<std::mutex> lock(mutex_);
    ++came_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return came_ == ranks_; });
  }

 private:
  const size_t ranks_;
  std::mutex mutex_;  // "Peer meeting"
  std::condition_variable changed_;
  size_t came_ = 0;
};

int64_t SmallVectors(const GpuMeetingOptions& options) {
  const auto others = std::max<int64_t>(1, static_cast<int64_t>(options.devices.size()) - 1);
  return kSmallInboundBytes / others / static_cast<int64_t>(sizeof(uint4));
}

Mailbox LayOutMailbox(const GpuMeetingOptions& options, ScratchLayout& layout) {
  const auto ranks = static_cast<int64_t>(options.devices.size());
  Mailbox box;
  box.counters = layout.Take<uint32_t>(2);
  box.ready = layout.Take<uint32_t>(ranks);
  box.addresses = layout.Take<uint64_t>(ranks);
  box.left = layout.Take<uint32_t>(ranks);
  box.row_epochs = layout.Take<uint32_t>(options.rows_max);
  box.small = layout.Take<uint4>(2 * ranks * SmallVectors(options));
  return box;
}

template <int kRanks>
class PeerCommunicator final : public Communicator {
 public:
  PeerCommunicator(CudaDevice& device, const GpuMeetingOptions& options, int32_t rank,
                   const std::vector<Mailbox>& boxes)
      : device_(device), rows_max_(options.rows_max), side_(device) {
    peers_.rank = rank;
    peers_.small_vectors = SmallVectors(options);
    std::copy(boxes.begin(), boxes.end(), peers_.boxes);
    // Ranks that share a GPU must leave room for each other's kernels while they wait.
    const auto sharing = std::count(options.devices.begin(), options.devices.end(),
                                    options.devices[static_cast<size_t>(rank)]);
    blocks_max_ = device.sm_count() / 2 / static_cast<int>(sharing);
  }

  int32_t rank() const override { return peers_.rank; }
  int32_t size() const override { return kRanks; }

  void AllReduceSum(Device& device, const Tensor& values) override {
    const OpScope op(device, "all_reduce_sum");
    Sum<false>(op, values, {});
  }

  // Both follow work of the other stream, of which a kernel that starts early would know nothing.
  void BeginSum(Device& device, const Tensor& first) override {
    const OpScope op(device, "begin_sum");
    const cudaStream_t side = side_.Fork();
    Issue<false>(op, first, {}, [&](auto kernel, int threads, const SumParams& params) {
      const dim3 grid = Grid(std::min(params.rows, SideStream::kSms));
      kernel<<<grid, threads, 0, side>>>(peers_, params);
    });
  }

  void EndSum(Device& device, const Tensor& others) override {
    const OpScope op(device, "end_sum");
    side_.Join();
    Issue<false>(op, others, {}, [&](auto kernel, int threads, const SumParams& params) {
      kernel<<<Grid(params.rows), threads, 0, op.stream()>>>(peers_, params);
    });
  }

  void AllReduceAddRmsNorm(Device& device, const AddRmsNormArgs& args) override {
    const OpScope op(device, "all_reduce_add_rms_norm");
    bool aligned = false;
    const NormParams norm = MakeNormParams(args, &aligned);
    CHECK(aligned && !args.residual.empty()) << "all_reduce_add_rms_norm";
    CHECK(args.out.data == nullptr || args.out.data != args.delta.data)
        << "all_reduce_add_rms_norm.out is the delta";
    // A block's rows come one after the other here: of many, a norm of its own is faster.
    if (args.delta.shape[0] <= 2 * blocks_max_) return Sum<true>(op, args.delta, norm);
    Sum<false>(op, args.delta, {});
    AddRmsNorm(device, args);
  }

  void AllGatherColumns(Device& device, const Tensor& in, const Tensor& out) override {
    const OpScope op(device, "all_gather_columns");
    const int64_t rows = in.shape[0];
    const int64_t columns = in.shape[1];
    CheckShape(in, DType::kF32, {-1, -1}, "all_gather_columns.in");
    CheckShape(out, DType::kF32, {rows, columns * kRanks}, "all_gather_columns.out");
    CheckDevice(op);
    const GatherParams params = {
        .in = in.Data<float>(),
        .in_stride = in.stride[0],
        .rows = static_cast<int>(rows),
        .columns = static_cast<int>(columns),
        .out = out.Data<float>(),
        .out_stride = out.stride[0],
        .vectors = columns % 4 == 0 && WholeVectors(in) && WholeVectors(out)};
    const int64_t wanted = rows * kRanks * ((columns + kGatherPiece - 1) / kGatherPiece);
    LaunchAfter(GatherColumnsKernel<kRanks>, Grid(wanted), kGatherThreads, 0, op.stream(), peers_,
                params);
  }

 private:
  void CheckDevice(const OpScope& op) const {
    CHECK_EQ(&op.device(), &device_) << "a communicator belongs to one device";
  }
  dim3 Grid(int64_t blocks) const {
    return dim3(static_cast<unsigned>(std::clamp<int64_t>(blocks, 1, blocks_max_)));
  }

  static bool WholeVectors(const Tensor& tensor) {
    return reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0 && tensor.stride[0] % 4 == 0;
  }

  template <bool kNorm>
  void Sum(const OpScope& op, const Tensor& values, const NormParams& norm) {
    Issue<kNorm>(op, values, norm, [&](auto kernel, int threads, const SumParams& params) {
      LaunchAfter(kernel, Grid(params.rows), threads, 0, op.stream(), peers_, params);
    });
  }

  /// Calls launch(kernel, threads, params) with what sums `values`.
  template <bool kNorm, typename Launch>
  void Issue(const OpScope& op, const Tensor& values, const NormParams& norm,
             const Launch& launch) {
    CheckDevice(op);
    CheckShape(values, DType::kBF16, {-1, -1}, "all_reduce.values");
    CHECK(VectorRows(values)) << "all_reduce.values";
    const int64_t rows = values.shape[0];
    CHECK_LE(rows, rows_max_) << "rows of " << values.ToString();
    const SumParams params = {.values = values.Data<BFloat16>(),
                              .stride = values.stride[0],
                              .counts = kNorm ? norm.counts : nullptr,
                              .rows = static_cast<int>(rows),
                              .columns = static_cast<int>(values.shape[1]),
                              .row_threads = NormThreads(values.shape[1]),
                              .norm = norm};
    CHECK_LE(params.row_threads, kRowThreadsMax)
        << "all_reduce: hidden of at most " << kRowThreadsMax * 8;
    const bool small = rows * 2 * (values.shape[1] / kVector) <= peers_.small_vectors;
    if (small) return launch(SumInOneShotKernel<kRanks, kNorm>, params.row_threads, params);
    const int groups = kNorm ? 1 : std::min(kGroupsMax, kRowThreadsMax / params.row_threads);
    launch(SumInTwoShotsKernel<kRanks, kNorm>, groups * params.row_threads, params);
  }

  CudaDevice& device_;
  const int64_t rows_max_;
  SideStream side_;
  Peers<kRanks> peers_;
  int blocks_max_ = 0;
};

class PeerMeeting final : public Meeting {
 public:
  explicit PeerMeeting(const GpuMeetingOptions& options)
      : options_(options), boxes_(options.devices.size()), gathering_(options.devices.size()) {}

  int32_t size() const override { return static_cast<int32_t>(boxes_.size()); }
  int64_t DeviceBytes() const override { return PeerMailboxBytes(options_); }
  std::string Describe() const override { return "peer memory"; }

  std::unique_ptr<Communicator> Join(Device& device, int32_t rank,
                                     std::string* /*error*/) override {
    CHECK(rank >= 0 && rank < size()) << "rank " << rank << " of " << size();
    auto& own = static_cast<CudaDevice&>(device);
    OpenPeers(rank);
    const int64_t bytes = DeviceBytes();
    void* memory = own.Allocate(bytes);
    own.Fill(memory, 0, bytes);
    own.Synchronize();
    ScratchLayout layout(memory);
    boxes_[static_cast<size_t>(rank)] = LayOutMailbox(options_, layout);
    gathering_.Await();
    switch (size()) {
      case 2:
        return std::make_unique<PeerCommunicator<2>>(own, options_, rank, boxes_);
      case 4:
        return std::make_unique<PeerCommunicator<4>>(own, options_, rank, boxes_);
      case 8:
        return std::make_unique<PeerCommunicator<8>>(own, options_, rank, boxes_);
      default:
        LOG(FATAL) << size() << " ranks; accepted: 2, 4, 8";
        return nullptr;
    }
  }

 private:
  /// Lets this rank's GPU access the memory of the others.
  void OpenPeers(int32_t rank) const {
    const int32_t own = options_.devices[static_cast<size_t>(rank)];
    const std::set<int32_t> devices(options_.devices.begin(), options_.devices.end());
    for (const int32_t device : devices) {
      if (device == own) continue;
      const cudaError_t status = cudaDeviceEnablePeerAccess(device, 0);
      if (status == cudaErrorPeerAccessAlreadyEnabled) {
        cudaGetLastError();
        continue;
      }
      CHECK(status == cudaSuccess) << "access of GPU " << own << " to the memory of GPU " << device
                                   << ": " << cudaGetErrorString(status);
    }
  }

  const GpuMeetingOptions options_;
  std::vector<Mailbox> boxes_;  // each written by its rank before the gathering
  Gathering gathering_;
};

}  // namespace

int64_t PeerMailboxBytes(const GpuMeetingOptions& options) {
  ScratchLayout layout(nullptr);
  LayOutMailbox(options, layout);
  return layout.bytes();
}

std::unique_ptr<Meeting> CreatePeerMeeting(const GpuMeetingOptions& options) {
  const size_t ranks = options.devices.size();
  CHECK(ranks == 2 || ranks == 4 || ranks == kRanksMax) << ranks << " ranks";
  CHECK_EQ(options.hidden % kVector, 0) << "hidden";
  return std::make_unique<PeerMeeting>(options);
}

}  // namespace glm::cuda
