// Communicators that note what they gather, and leave the work to others.
//
// Who calls: tests of what ranks exchange. Read the notes when the ranks have nothing to do.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/communicator.h"

namespace glm::test {

/// The columns that a rank gave, gather after gather.
using Gathered = std::vector<int64_t>;

class CountingCommunicator final : public Communicator {
 public:
  /// `gathered` must outlive this.
  CountingCommunicator(std::unique_ptr<Communicator> inner, Gathered* gathered)
      : inner_(std::move(inner)), gathered_(gathered) {}

  int32_t rank() const override { return inner_->rank(); }
  int32_t size() const override { return inner_->size(); }
  void AllReduceSum(Device& device, const Tensor& values) override {
    inner_->AllReduceSum(device, values);
  }
  void BeginSum(Device& device, const Tensor& first) override { inner_->BeginSum(device, first); }
  void EndSum(Device& device, const Tensor& others) override { inner_->EndSum(device, others); }
  void AllReduceAddRmsNorm(Device& device, const AddRmsNormArgs& args) override {
    inner_->AllReduceAddRmsNorm(device, args);
  }
  void AllGatherColumns(Device& device, const Tensor& in, const Tensor& out) override {
    gathered_->push_back(in.shape[1]);
    inner_->AllGatherColumns(device, in, out);
  }

 private:
  const std::unique_ptr<Communicator> inner_;
  Gathered* const gathered_;
};

/// Ranks over host memory.
class CountingMeeting final : public Meeting {
 public:
  CountingMeeting(int32_t size, int64_t elements_max)
      : inner_(CreateLocalMeeting(size, elements_max)), gathered_(size) {}

  int32_t size() const override { return inner_->size(); }
  int64_t DeviceBytes() const override { return inner_->DeviceBytes(); }
  std::string Describe() const override { return inner_->Describe(); }
  std::unique_ptr<Communicator> Join(Device& device, int32_t rank, std::string* error) override {
    return std::make_unique<CountingCommunicator>(inner_->Join(device, rank, error),
                                                  &gathered_[rank]);
  }

  /// Of all ranks, which must agree, since the last call.
  Gathered Take() {
    for (const Gathered& one : gathered_) EXPECT_EQ(one, gathered_[0]);
    Gathered taken = gathered_[0];
    for (Gathered& one : gathered_) one.clear();
    return taken;
  }

 private:
  const std::unique_ptr<Meeting> inner_;
  std::vector<Gathered> gathered_;
};

}  // namespace glm::test
