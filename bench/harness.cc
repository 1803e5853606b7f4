#include "bench/harness.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <vector>

namespace glm::bench {

double MedianMicroseconds(Device& device, int count, int rounds,
                          const std::function<void(int)>& issue) {
  const auto issue_all = [&] {
    for (int i = 0; i < count; ++i) issue(i);
  };
  // Before a capture, so that what an op finds out once is known.
  issue_all();
  device.Synchronize();
  std::unique_ptr<DeviceGraph> graph;
  if (device.CanCapture()) {
    device.BeginCapture();
    issue_all();
    graph = device.EndCapture();
    graph->Launch();
    device.Synchronize();
  }
  std::vector<double> microseconds;
  for (int round = 0; round < rounds; ++round) {
    const auto start = std::chrono::steady_clock::now();
    if (graph != nullptr) {
      graph->Launch();
    } else {
      issue_all();
    }
    device.Synchronize();
    const std::chrono::duration<double, std::micro> passed =
        std::chrono::steady_clock::now() - start;
    microseconds.push_back(passed.count() / count);
  }
  std::nth_element(microseconds.begin(), microseconds.begin() + rounds / 2, microseconds.end());
  return microseconds[rounds / 2];
}

}  // namespace glm::bench
