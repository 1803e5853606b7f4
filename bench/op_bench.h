// What the benchmarks of ops share: where their operands lie, and the line that tells a time.
//
// Who calls: kernel_bench.cc, on its one thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <initializer_list>
#include <random>
#include <string>
#include <vector>

#include "bench/floor.h"
#include "bench/harness.h"
#include "bench/kernel_bench.h"
#include "kernels/ops.h"

namespace glm::bench {

/// Random numbers in device memory that all benchmarks share, and what they allocate from.
class Bench {
 public:
  Bench(Device& device, const KernelBenchOptions& options, const Peaks& peaks, int64_t arena_bytes,
        int64_t own_bytes)
      : device_(device), options_(options), peaks_(peaks), random_(1), arena_bytes_(arena_bytes) {
    bf16_ = MakeArena(DType::kBF16);
    fp8_ = MakeArena(DType::kF8E4M3);
    own_ = static_cast<char*>(device.Allocate(own_bytes));
    own_bytes_ = own_bytes;
    own_used_ = 0;
  }

  Device& device() { return device_; }
  bool Wanted(const std::string& name) const {
    return name.find(options_.only) != std::string::npos;
  }
  /// Frees what Own gave.
  void Reset() { own_used_ = 0; }

  /// Random values, a different part of the arena for each `turn`.
  Tensor Random(DType dtype, std::initializer_list<int64_t> shape, int64_t turn = 0) {
    Tensor tensor(nullptr, dtype, shape);
    const int64_t bytes = (tensor.bytes() + 255) / 256 * 256;
    CHECK_LE(bytes, arena_bytes_) << "the arena is too small for " << tensor.ToString();
    const int64_t places = arena_bytes_ / bytes;
    tensor.data =
        static_cast<char*>(dtype == DType::kF8E4M3 ? fp8_ : bf16_) + turn % places * bytes;
    return tensor;
  }
  /// Uninitialised memory of this benchmark.
  Tensor Own(DType dtype, std::initializer_list<int64_t> shape) {
    Tensor tensor(own_ + own_used_, dtype, shape);
    own_used_ += (tensor.bytes() + 255) / 256 * 256;
    CHECK_LE(own_used_, own_bytes_) << "no room for " << tensor.ToString();
    return tensor;
  }
  template <typename T>
  Tensor Filled(DType dtype, const std::vector<T>& values) {
    const Tensor tensor = Own(dtype, {static_cast<int64_t>(values.size())});
    device_.CopyToDevice(tensor.data, values.data(),
                         static_cast<int64_t>(values.size() * sizeof(T)));
    device_.Synchronize();
    return tensor;
  }
  Tensor Scales(int64_t count) {
    return Filled(DType::kF32, std::vector<float>(count, 1.0f / 400));
  }
  int64_t Below(int64_t count) { return static_cast<int64_t>(random_() % count); }

  /// `bytes` and `flops` of one call; `fp8` says which arithmetic peak holds.
  void Report(const std::string& name, double bytes, double flops, bool fp8,
              const std::function<void(int)>& issue) {
    const double limit_us =
        peaks_.memory_gbps == 0
            ? 0
            : std::max(bytes / peaks_.memory_gbps * 1e-3,
                       flops / (fp8 ? peaks_.fp8_tflops : peaks_.bf16_tflops) * 1e-6);
    const int count = std::clamp(static_cast<int>(3000 / std::max(limit_us, 1.0)), 4, 64);
    const double us =
        MedianMicroseconds(device_, peaks_.memory_gbps == 0 ? 4 : count, options_.rounds, issue);
    std::printf(
        "{\"bench\": \"kernel\", \"name\": \"%s\", \"us\": %.2f, \"gbps\": %.0f, "
        "\"tflops\": %.2f",
        name.c_str(), us, bytes / us * 1e-3, flops / us * 1e-6);
    if (limit_us > 0) {
      std::printf(", \"limit_us\": %.2f, \"share\": %.3f", limit_us, limit_us / us);
    }
    std::printf("}\n");
    std::fflush(stdout);
  }

 private:
  void* MakeArena(DType dtype) {
    const int64_t piece_bytes = std::min<int64_t>(arena_bytes_, 32 << 20);
    std::vector<uint8_t> piece(piece_bytes);
    if (dtype == DType::kF8E4M3) {
      for (uint8_t& byte : piece) {
        byte = static_cast<uint8_t>(random_());
        if ((byte & 0x7F) == 0x7F) byte = 0;  // no NaN
      }
    } else {
      auto* values = reinterpret_cast<BFloat16*>(piece.data());
      for (int64_t i = 0; i < piece_bytes / 2; ++i) {
        values[i] = ToBFloat16(static_cast<float>(random_() >> 40) * 0x1p-23f - 1.0f);
      }
    }
    char* arena = static_cast<char*>(device_.Allocate(arena_bytes_));
    for (int64_t at = 0; at < arena_bytes_; at += piece_bytes) {
      device_.CopyToDevice(arena + at, piece.data(), std::min(piece_bytes, arena_bytes_ - at));
      device_.Synchronize();
    }
    return arena;
  }

  Device& device_;
  const KernelBenchOptions& options_;
  const Peaks peaks_;
  std::mt19937_64 random_;
  const int64_t arena_bytes_;
  void* bf16_;
  void* fp8_;
  char* own_;
  int64_t own_bytes_;
  int64_t own_used_;
};

}  // namespace glm::bench
