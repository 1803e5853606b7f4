// Loader: from names in a checkpoint to weights in device memory.
//
// Three steps, so that a wrong checkpoint is refused before memory is taken or a byte is copied:
// the model's parts write a WeightPlan, the plan is checked against the checkpoint, then memory is
// allocated and filled. A slot may take a part of the rows or columns of a checkpoint tensor: of
// the mapped files, a rank reads its own slices only.
//
// Who calls: Glm::Load, on the thread that owns the device. Reading, converting and quantising is
// done by threads that live as long as the call; they fill a bounded number of buffers, which the
// calling thread copies to the device.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "engine/model/safetensors.h"
#include "engine/model/weight_plan.h"
#include "kernels/device.h"

namespace glm::engine {

/// Threads that fill weights, unless told otherwise.
inline constexpr int32_t kLoadThreads = 4;

/// OK when every slot's tensor is there with its shape and a type that can be converted, and every
/// tensor of the checkpoint is used or set aside. NOT_FOUND or INVALID_ARGUMENT names the tensor.
absl::Status CheckPlan(const WeightPlan& plan, const Checkpoint& checkpoint);

/// Checks, allocates every weight of the plan and fills it: F32 and BF16 are converted into each
/// other where the weight's type asks for it (rounded to nearest even); a kQuantized slot becomes
/// FP8 with scale = max|x| / 448 of the row's part on this rank (1 when that is 0) and values
/// x / scale rounded. INVALID_ARGUMENT names a tensor with a scale or a quantised value that is no
/// finite number. Logs a line of progress every two seconds, and one at the end.
absl::Status LoadWeights(Device& device, const Checkpoint& checkpoint, const WeightPlan& plan,
                         int32_t threads = kLoadThreads);

/// The same without a checkpoint: random weights of a scale that keeps activations near 1. A value
/// depends on seed, tensor name and place alone, not on threads or ranks.
absl::Status LoadRandomWeights(Device& device, uint64_t seed, const WeightPlan& plan,
                               int32_t threads = kLoadThreads);

}  // namespace glm::engine
