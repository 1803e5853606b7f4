// What a step costs at least: each operator the larger of its bytes over the memory's rate and its
// operations over the tensor cores', one after another; norms, sampling, launches cost nothing.
// Routed experts read in a step are those that so many tokens hit under uniform routing. Of a
// config that is one rank's of several (ModelConfig::OfRank) it is the step of that rank.
//
// Who calls: the step benchmark.
#pragma once

#include <cstdint>
#include <string>

#include "engine/model/config.h"

namespace glm::bench {

/// What a device can do at best; zeros when that is not known.
struct Peaks {
  double memory_gbps = 0;
  double bf16_tflops = 0;
  double fp8_tflops = 0;
  double link_gbps = 0;  // between GPUs, one way
};

/// By the device's name, as its maker states them.
Peaks PeaksOf(const std::string& device);

struct FloorTerms {
  Peaks peaks;
  bool fp8_weights = false;  // of the linears; embedding, router and head are BF16
  int64_t cache_bytes = 2;   // of a cached value
  bool exchange = false;     // sums over the ranks count, two a layer
};

/// Seconds of a step of `batch` sequences, one token each, `context` cached tokens each.
double DecodeFloor(const engine::ModelConfig& config, const FloorTerms& terms, int64_t batch,
                   int64_t context);
/// Seconds of a prompt of `tokens`, in one step.
double PrefillFloor(const engine::ModelConfig& config, const FloorTerms& terms, int64_t tokens);

}  // namespace glm::bench
