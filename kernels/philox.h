// Philox 4x32-10: counter-based random numbers, the same bits on host and device.
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
//
// A draw is a pure function of (seed, stream, position), so a request's random numbers depend
// neither on the batch it runs in nor on preemption, and a request replayed on another worker
// continues alike.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

namespace glm {

/// The 128 random bits at `counter` under `key`.
constexpr std::array<uint32_t, 4> Philox(std::array<uint32_t, 4> counter,
                                         std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(0xD2511F53u) * counter[0];
    const uint64_t product1 = static_cast<uint64_t>(0xCD9E8D57u) * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
               static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
               static_cast<uint32_t>(product0)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

/// What a draw is for; draws of different purposes at one position are independent.
enum class PhiloxStream : uint32_t { kSample = 0, kDraft = 1, kVerify = 2 };

/// A uniform float in (0, 1), for the token at `position` of the request with `seed`. `lane`
/// numbers the draws within one (position, stream).
constexpr float PhiloxUniform(uint64_t seed, PhiloxStream stream, uint32_t position,
                              uint32_t lane = 0) {
  const std::array<uint32_t, 4> bits =
      Philox({position, static_cast<uint32_t>(stream), lane, 0},
             {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  // 23 bits and a half step: never 0, never 1.
  return (static_cast<float>(bits[0] >> 9) + 0.5f) * (1.0f / 8388608.0f);
}

/// An exponential of mean 1 for id `id`, in [2^-33, 17]: one of as many independent draws as there
/// are ids. Small ones, which win a race, are the finest: steps of 2^-32.
inline float PhiloxExponential(uint64_t seed, PhiloxStream stream, uint32_t position,
                               uint32_t choice, uint32_t id) {
  const std::array<uint32_t, 4> bits =
      Philox({position, static_cast<uint32_t>(stream), id / 4, choice},
             {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  const float uniform = (static_cast<float>(bits[id % 4]) + 0.5f) * 2.3283064e-10f;
  // The largest bits round up to 1, whose logarithm is infinite.
  return -std::log1p(-(uniform < 0.99999994f ? uniform : 0.99999994f));
}

}  // namespace glm
