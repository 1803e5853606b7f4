// Quantization: what a config says about FP8 weights and caches.
//
// Who calls: the config reader; the planners ask it which kind of scales to expect. Sources: the
// compressed-tensors format ("float-quantized", strategies channel and block) and the 128 x 128
// block form of quant_method "fp8". Whether a tensor is quantised is not decided here but by the
// presence of its scales: ignore lists are read and believed by nobody.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace glm::engine {

/// How FP8 weights are scaled.
enum class WeightScaling : uint8_t {
  kNone,     // they are not FP8
  kChannel,  // one scale an output row; activations one a token
  kBlock,    // one scale a 128 x 128 block; activations one a token and 128 columns
};

struct Quantization {
  WeightScaling weights = WeightScaling::kNone;
  bool cache_scales = false;  // the checkpoint speaks of scales for an FP8 KV cache
};

/// Reads the value of quantization_config. INVALID_ARGUMENT opens with `what` and names the key,
/// its value and what is accepted.
absl::StatusOr<Quantization> ParseQuantization(const nlohmann::json& value,
                                               const std::string& what);

}  // namespace glm::engine
