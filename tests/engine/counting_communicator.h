// A communicator that notes what it gathers, and leaves the work to another.
//
// Who calls: tests of what ranks exchange. Read it when the rank's thread has nothing to do.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/communicator.h"

namespace glm::test {

class CountingCommunicator final : public Communicator {
 public:
  /// `inner` must outlive this.
  explicit CountingCommunicator(Communicator* inner) : inner_(inner) {}

  int32_t rank() const override { return inner_->rank(); }
  int32_t size() const override { return inner_->size(); }
  void AllReduceSum(Device& device, const Tensor& values) override {
    inner_->AllReduceSum(device, values);
  }
  void AllGatherColumns(Device& device, const Tensor& in, const Tensor& out) override {
    gathered_.push_back(in.shape[1]);
    inner_->AllGatherColumns(device, in, out);
  }

  /// The columns of a rank, gather after gather.
  const std::vector<int64_t>& gathered() const { return gathered_; }
  void Clear() { gathered_.clear(); }

 private:
  Communicator* const inner_;
  std::vector<int64_t> gathered_;
};

}  // namespace glm::test
