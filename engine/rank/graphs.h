// StepGraphs: steps of the same padded sizes are captured once and replayed.
//
// Who calls: a rank, on its thread. All that differs between two steps of the same sizes lies in
// device memory at the same places (batch.h), so a replay is one launch in place of some hundreds.
// Only steps that are like decoding are captured: few tokens, and few a sequence; what a prompt's
// chunk costs on the host hides behind its computation, and its sizes seldom come again. The first
// step of given sizes runs eagerly, so that what ops find out once is known; the second is
// captured; at the start a rank runs and captures the decode steps that will come (start_plans.h).
// A graph takes memory of the driver's own, for which the plan of the device's memory leaves room.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "engine/rank/batch.h"
#include "kernels/device.h"

namespace glm::engine {

class StepGraphs {
 public:
  // More tokens than this keep the device busy for longer than the host needs to issue the step.
  static constexpr int64_t kTokensMax = 512;
  static constexpr int64_t kTokensASequenceMax = 8;
  // Sizes remembered; steps of others run eagerly.
  static constexpr int64_t kGraphsMax = 256;
  // Of the driver's, for each operation of a graph, rounded up from what was seen on an H100.
  static constexpr int64_t kBytesAnOperation = 4 << 10;

  explicit StepGraphs(Device& device) : device_(device) {}
  StepGraphs(const StepGraphs&) = delete;
  StepGraphs& operator=(const StepGraphs&) = delete;

  /// Runs what `issue` issues, a step of `sizes`. Steps of equal sizes must issue the same ops with
  /// the same arguments.
  void Run(const StepSizes& sizes, const std::function<void()>& issue);
  /// Captures such a step now, without running it. REQUIRES that one was run; does nothing where it
  /// does not suit a graph.
  void Capture(const StepSizes& sizes, const std::function<void()>& issue);

  /// Steps that were replayed, the captured ones included.
  int64_t replayed() const { return replayed_; }
  int64_t captured() const { return captured_; }

 private:
  struct Entry {
    StepSizes sizes;
    std::unique_ptr<DeviceGraph> graph;  // null: seen once
  };

  bool Suits(const StepSizes& sizes) const;
  /// The entry of these sizes; null when it is new.
  Entry* Find(const StepSizes& sizes);
  void Capture(Entry* entry, const std::function<void()>& issue);

  Device& device_;
  std::vector<Entry> entries_;
  int64_t replayed_ = 0;
  int64_t captured_ = 0;
};

}  // namespace glm::engine
