// Ranks that are threads of one process. A call publishes each rank's memory, and between two
// barriers every rank does its share of the work in place: no copies on the way, and nothing is
// allocated.
#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <mutex>

#include "kernels/communicator.h"

namespace glm {
namespace cpu {
namespace {

/// Elements that are summed at a time; the sums stay in the cache.
constexpr int64_t kSumElements = 1024;

/// Blocks until all ranks have come; may be used any number of times.
class Barrier {
 public:
  explicit Barrier(int32_t size) : size_(size) {}

  void Await() {
    std::unique_lock<std::mutex> lock(mutex_);
    const uint64_t turn = turn_;
    if (++came_ == size_) {
      came_ = 0;
      ++turn_;
      lock.unlock();
      changed_.notify_all();
      return;
    }
    changed_.wait(lock, [&] { return turn_ != turn; });
  }

 private:
  const int32_t size_;
  std::mutex mutex_;  // "Communicator barrier": guards all below
  std::condition_variable changed_;
  int32_t came_ = 0;
  uint64_t turn_ = 0;
};

/// What the ranks share. An entry of `tensors` is written by its rank before the first barrier of a
/// call, and read by the others between the two.
struct Shared {
  Shared(int32_t size, int64_t elements_max_in)
      : elements_max(elements_max_in), tensors(size), barrier(size) {}

  const int64_t elements_max;
  std::vector<Tensor> tensors;
  Barrier barrier;
};

/// Of elements begin .. end - 1, row after row.
template <typename T>
void SumElements(const std::vector<Tensor>& tensors, int64_t begin, int64_t end) {
  const int64_t columns = tensors[0].shape[1];
  float sums[kSumElements];
  int64_t count = 0;
  for (int64_t at = begin; at < end; at += count) {
    const int64_t column = at % columns;
    count = std::min({kSumElements, end - at, columns - column});
    const auto values_of = [&](const Tensor& tensor) {
      return tensor.Row<T>(at / columns) + column;
    };
    std::fill_n(sums, count, 0.0f);
    for (const Tensor& tensor : tensors) {
      const T* values = values_of(tensor);
      for (int64_t i = 0; i < count; ++i) sums[i] += ToFloat(values[i]);
    }
    for (const Tensor& tensor : tensors) {
      T* values = values_of(tensor);
      for (int64_t i = 0; i < count; ++i) values[i] = FromFloat<T>(sums[i]);
    }
  }
}

class LocalCommunicator final : public Communicator {
 public:
  LocalCommunicator(int32_t rank, std::shared_ptr<Shared> shared)
      : rank_(rank), shared_(std::move(shared)) {}

  int32_t rank() const override { return rank_; }
  int32_t size() const override { return static_cast<int32_t>(shared_->tensors.size()); }

  void AllReduceSum(Device& /*device*/, const Tensor& values) override {
    CHECK_EQ(values.rank, 2) << "all_reduce_sum.values";
    CHECK(values.dtype == DType::kF32 || values.dtype == DType::kBF16) << values.ToString();
    Meet(values);
    // This rank's share of the elements, in the memory of all.
    const int64_t elements = values.elements();
    const int64_t begin = elements * rank_ / size();
    const int64_t end = elements * (rank_ + 1) / size();
    if (values.dtype == DType::kF32) {
      SumElements<float>(shared_->tensors, begin, end);
    } else {
      SumElements<BFloat16>(shared_->tensors, begin, end);
    }
    shared_->barrier.Await();
  }

  void AllGatherColumns(Device& /*device*/, const Tensor& in, const Tensor& out) override {
    const int64_t rows = in.shape[0];
    const int64_t columns = in.shape[1];
    CheckShape(in, DType::kF32, {-1, -1}, "all_gather_columns.in");
    CheckShape(out, DType::kF32, {rows, columns * size()}, "all_gather_columns.out");
    Meet(in);
    for (int32_t rank = 0; rank < size(); ++rank) {
      const Tensor& part = shared_->tensors[rank];
      for (int64_t row = 0; row < rows; ++row) {
        float* to = out.Row<float>(row) + rank * columns;
        if (to == part.Row<float>(row)) continue;  // one rank, in place
        std::memcpy(to, part.Row<float>(row), columns * sizeof(float));
      }
    }
    shared_->barrier.Await();
  }

 private:
  /// Publishes this rank's tensor and waits for those of the others.
  void Meet(const Tensor& tensor) {
    CHECK_LE(tensor.elements(), shared_->elements_max) << "elements of " << tensor.ToString();
    shared_->tensors[rank_] = tensor;
    shared_->barrier.Await();
    for (const Tensor& other : shared_->tensors) {
      CHECK(other.dtype == tensor.dtype && other.rank == tensor.rank && other.shape == tensor.shape)
          << "rank " << rank_ << " has " << tensor.ToString() << ", another " << other.ToString();
    }
  }

  const int32_t rank_;
  const std::shared_ptr<Shared> shared_;
};

class LocalMeeting final : public Meeting {
 public:
  LocalMeeting(int32_t size, int64_t elements_max)
      : shared_(std::make_shared<Shared>(size, elements_max)) {}

  int32_t size() const override { return static_cast<int32_t>(shared_->tensors.size()); }
  int64_t DeviceBytes() const override { return 0; }
  std::string Describe() const override { return "host memory"; }
  std::unique_ptr<Communicator> Join(Device& /*device*/, int32_t rank,
                                     std::string* /*error*/) override {
    CHECK(rank >= 0 && rank < size()) << "rank " << rank << " of " << size();
    return std::make_unique<LocalCommunicator>(rank, shared_);
  }

 private:
  const std::shared_ptr<Shared> shared_;
};

}  // namespace
}  // namespace cpu

std::vector<std::unique_ptr<Communicator>> CreateLocalCommunicators(int32_t size,
                                                                    int64_t elements_max) {
  CHECK_GE(size, 1);
  const auto shared = std::make_shared<cpu::Shared>(size, elements_max);
  std::vector<std::unique_ptr<Communicator>> communicators;
  for (int32_t rank = 0; rank < size; ++rank) {
    communicators.push_back(std::make_unique<cpu::LocalCommunicator>(rank, shared));
  }
  return communicators;
}

std::unique_ptr<Meeting> CreateLocalMeeting(int32_t size, int64_t elements_max) {
  CHECK_GE(size, 1);
  return std::make_unique<cpu::LocalMeeting>(size, elements_max);
}

}  // namespace glm
