// Times ops of a Device: repeated, over inputs that rotate past the caches, in a captured graph
// where the device has graphs.
//
// Who calls: the benchmarks, on the thread that owns the device.
#pragma once

#include <cstdint>
#include <functional>

#include "kernels/device.h"

namespace glm::bench {

/// Median microseconds of one call of `issue(i)`, i = 0, 1, ... . One measurement runs `count`
/// calls back to back; `rounds` measurements follow one that is thrown away. Callers rotate inputs
/// by i.
double MedianMicroseconds(Device& device, int count, int rounds,
                          const std::function<void(int)>& issue);

}  // namespace glm::bench
