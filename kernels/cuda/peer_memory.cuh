// Words that one GPU writes into another's memory, and how they are waited for.
#pragma once

#include <cstdint>
#include <cstdio>

namespace glm::cuda {

/// A rank that does not come for so long never will: the kernel traps, and the process with it.
inline constexpr uint64_t kPeerWaitNs = 20'000'000'000;

__device__ __forceinline__ uint64_t GlobalNs() {
  uint64_t ns;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
  return ns;
}

/// Polls until `ready()`.
template <typename Ready>
__device__ __forceinline__ void PollUntil(const Ready& ready) {
  uint64_t begin = 0;
  for (uint32_t polls = 1; !ready(); ++polls) {
    if (polls % 4096 != 0) continue;
    if (begin == 0) {
      begin = GlobalNs();
    } else if (GlobalNs() - begin > kPeerWaitNs) {
      printf("glmserve: a rank waits for another since 20 s, block %d\n", blockIdx.x);
      asm volatile("trap;");
    }
  }
}

/// 16 bytes, each half of which is written, and read, as a whole.
__device__ __forceinline__ void StoreHalves(uint4* address, uint4 value) {
  asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(value.x),
               "r"(value.y), "r"(value.z), "r"(value.w)
               : "memory");
}
__device__ __forceinline__ uint4 LoadHalves(const uint4* address) {
  uint4 value;
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(address)
               : "memory");
  return value;
}

/// A word behind which all that this thread wrote, or saw written, stands for who acquires it.
__device__ __forceinline__ void StoreRelease(uint32_t* address, uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}
__device__ __forceinline__ uint32_t LoadAcquire(const uint32_t* address) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}

/// Of memory that other GPUs write meanwhile.
__device__ __forceinline__ uint4 LoadShared16(const void* address) {
  uint4 value;
  asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(address)
               : "memory");
  return value;
}
__device__ __forceinline__ float LoadShared4(const float* address) {
  float value;
  asm volatile("ld.relaxed.sys.global.f32 %0, [%1];" : "=f"(value) : "l"(address) : "memory");
  return value;
}

}  // namespace glm::cuda
