// A model on several ranks, each with a stepper of its own, run step by step: on the CPU, or on
// GPUs.
//
// Who calls: the tests of tensor parallelism.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "engine/model/config.h"
#include "kernels/communicator.h"
#include "proto/base/log.h"
#include "tests/engine/stepper.h"

namespace glm::test {

class RankSteppers {
 public:
  /// `options` of each rank, but for who is its communicator and which its GPU: each has one of its
  /// own where there are enough, else all share the first (then PrepareSharedGpu() must have come
  /// before).
  RankSteppers(const std::string& folder, DType dtype, int32_t ranks,
               const StepperOptions& options = {.threads = 1})
      : steppers_(ranks) {
    const auto config = ModelConfig::Read(folder);
    EXPECT_TRUE(config.ok()) << config.status();
    std::vector<int32_t> gpus(ranks, 0);
    std::string error;
    if (options.cuda) {
      const bool gpu_each = CreateCudaDevice(ranks - 1, &error) != nullptr;
      if (gpu_each) std::iota(gpus.begin(), gpus.end(), 0);
      meeting_ = CreateGpuMeeting({.devices = gpus,
                                   .rows_max = kTokensMax,
                                   .hidden = config->hidden_size,
                                   .gather_elements_max = kTokensMax * config->vocabulary / ranks},
                                  &error);
    } else {
      meeting_ = CreateLocalMeeting(
          ranks, kTokensMax * std::max<int64_t>(config->hidden_size, config->vocabulary));
    }
    CHECK(meeting_ != nullptr) << error;
    OnEveryRank([&](int32_t rank) {
      StepperOptions own = options;
      own.gpu = gpus[rank];
      own.join = [&, rank](Device& device) {
        std::string reason;
        auto communicator = meeting_->Join(device, rank, &reason);
        CHECK(communicator != nullptr) << reason;
        return communicator;
      };
      steppers_[rank] = std::make_unique<Stepper>(folder, dtype, own);
    });
  }

  /// Logits of every token, which all ranks must have to the bit.
  Rows Step(const std::vector<Chunk>& chunks) {
    return RowsOf([&](Stepper& stepper) { return stepper.Step(chunks); });
  }
  Rows Draft(const Ids& next_ids) {
    return RowsOf([&](Stepper& stepper) { return stepper.Draft(next_ids); });
  }
  int64_t weight_bytes(int32_t rank) { return steppers_[rank]->model().weight_bytes(); }

 private:
  void OnEveryRank(const std::function<void(int32_t)>& body) {
    std::vector<std::thread> threads;
    for (int32_t rank = 0; rank < static_cast<int32_t>(steppers_.size()); ++rank) {
      threads.emplace_back([&, rank] { body(rank); });
    }
    for (std::thread& thread : threads) thread.join();
  }

  Rows RowsOf(const std::function<Rows(Stepper&)>& body) {
    std::vector<Rows> rows(steppers_.size());
    OnEveryRank([&](int32_t rank) { rows[rank] = body(*steppers_[rank]); });
    for (size_t i = 1; i < rows.size(); ++i) EXPECT_TRUE(rows[i] == rows[0]) << "rank " << i;
    return rows[0];
  }

  std::unique_ptr<Meeting> meeting_;
  std::vector<std::unique_ptr<Stepper>> steppers_;
};

}  // namespace glm::test
