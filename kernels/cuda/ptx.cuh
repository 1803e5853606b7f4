// The only inline PTX: asynchronous copies, barriers, tensor core instructions of sm_80 and sm_90a.
//
// Shared memory addresses are 32-bit (SharedAddress). Fragment layouts are those of the PTX manual;
// in the comments g = lane / 4 and t = lane % 4.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace glm::cuda {

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// ---- Loads ----
// Not volatile: the compiler may move them ahead of what waits.

/// A 16-byte load of data that is read once.
__device__ __forceinline__ uint4 LoadStream(const void* pointer) {
  uint4 value;
  asm("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
      : "l"(pointer));
  return value;
}

/// The same, issued where it stands: before a wait, of data that no kernel in flight writes.
__device__ __forceinline__ uint4 LoadStreamEarly(const void* pointer) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(pointer));
  return value;
}

/// A 16-byte load of data that no kernel in flight writes.
__device__ __forceinline__ uint4 LoadConstant(const void* pointer) {
  uint4 value;
  asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
      : "l"(pointer));
  return value;
}

// ---- Words between the blocks of a kernel ----

/// Adds to a word behind which all that this thread wrote, or saw written, stands for who acquires
/// it.
__device__ __forceinline__ void AddRelease(int32_t* address, int32_t value) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}
/// The same, and acquires what stood there, which it returns.
__device__ __forceinline__ int32_t AddAcquireRelease(int32_t* address, int32_t value) {
  int32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(address), "r"(value)
               : "memory");
  return before;
}
__device__ __forceinline__ int32_t LoadAcquire(const int32_t* address) {
  int32_t value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}

// ---- cp.async (sm_80) ----

/// 16 bytes from global to shared memory; zeros when `valid` is false.
__device__ __forceinline__ void CopyAsync16(uint32_t shared_dst, const void* source, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_dst),
               "l"(source), "r"(bytes)
               : "memory");
}
/// 4 bytes from global to shared memory.
__device__ __forceinline__ void CopyAsync4(uint32_t shared_dst, const void* source) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_dst), "l"(source)
               : "memory");
}
/// This thread's arrival at a barrier, once all its copies so far are done.
__device__ __forceinline__ void CopyAsyncArrive(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void CopyAsyncCommit() { asm volatile("cp.async.commit_group;"); }
template <int kPending>
__device__ __forceinline__ void CopyAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- mma.sync (sm_80, sm_89) ----

/// d[16 x 8] += a[16 x 16] . b[16 x 8], bf16. a: rows g, g+8, g, g+8; columns 2t.. of k 0-7, 0-7,
/// 8-15, 8-15. b: column g, k 2t.. of 0-7, 8-15. d: rows g, g, g+8, g+8; columns 2t, 2t+1.
__device__ __forceinline__ void MmaBf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                        uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// d[16 x 8] += a[16 x 32] . b[32 x 8], fp8 e4m3; as MmaBf16 with 4 values of k a register.
__device__ __forceinline__ void MmaFp8(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                       uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Four 8 x 8 tiles of 16-bit values; lanes 8i .. 8i+7 give the row addresses of tile i.
__device__ __forceinline__ void LoadMatrix4(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void LoadMatrix4Transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

/// Stores four 8 x 8 tiles of 16-bit values transposed: column c of tile i goes to the 16 bytes at
/// the address that lane 8i + c gives. Registers as LoadMatrix4's.
__device__ __forceinline__ void StoreMatrix4Transposed(uint32_t address, uint32_t a, uint32_t b,
                                                       uint32_t c, uint32_t d) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
      "r"(a), "r"(b), "r"(c), "r"(d)
      : "memory");
}

// ---- mbarrier ----

__device__ __forceinline__ void BarrierInit(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
/// Makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void BarrierInitFence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void BarrierArrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/// Arrives and tells the barrier to expect `bytes` from the copy engine.
__device__ __forceinline__ void BarrierArriveExpect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
/// Waits until the phase of parity `parity` is complete.
__device__ __forceinline__ void BarrierWait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
/// A barrier among `threads` threads of the block, one of the 16 hardware ones.
__device__ __forceinline__ void NamedBarrier(int index, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(index), "r"(threads) : "memory");
}

/// Arrives at a barrier of `threads` threads without waiting for the others.
__device__ __forceinline__ void NamedBarrierArrive(int index, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(index), "r"(threads) : "memory");
}

// ---- Clusters ----

/// Arrives at the barrier of all threads of the cluster; what this thread wrote to shared memory is
/// there for the others after their ClusterWait().
__device__ __forceinline__ void ClusterArrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void ClusterWait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
/// Reads 16 bytes of block `rank` of the cluster, at what is `address` in this block.
__device__ __forceinline__ float4 ClusterLoad4(uint32_t address, int rank) {
  float4 value;
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there];\n"
      "}\n"
      : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
      : "r"(address), "r"(rank)
      : "memory");
  return value;
}

// ---- Bulk tensor copies ----

/// Fetches the box at (column, row) of a 2D tensor map into shared memory; its bytes count at
/// `barrier`.
__device__ __forceinline__ void TensorLoad2(uint32_t shared_dst, const CUtensorMap* map,
                                            uint32_t barrier, int column, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(shared_dst),
      "l"(map), "r"(barrier), "r"(column), "r"(row)
      : "memory");
}
__device__ __forceinline__ void PrefetchTensorMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
/// Orders this thread's writes to shared memory before later reads by the tensor cores or the copy
/// engine.
__device__ __forceinline__ void AsyncProxyFence() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// Orders what this thread has acquired before the copy engine's later reads of global memory.
__device__ __forceinline__ void AsyncProxyFenceGlobal() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

// ---- wgmma (sm_90a) ----

__device__ __forceinline__ void WgmmaFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// Low word of the descriptor of a K-major operand in shared memory, 128 bytes of K a row, rows 128
/// bytes apart, 128-byte swizzle; `address` is 1024-byte aligned plus the byte offset of k within
/// the row. What lies `bytes` further has a word that is WgmmaBytes(bytes) larger: one addition, of
/// which the products of a step need two each.
__device__ __forceinline__ uint32_t WgmmaDescriptor(uint32_t address) {
  constexpr uint32_t kLeading = 1 << 16;  // leading offset: unused when swizzled
  return (address & 0x3FFFFu) >> 4 | kLeading;
}
__device__ __forceinline__ constexpr uint32_t WgmmaBytes(uint32_t bytes) { return bytes >> 4; }
/// The high word of all of them: 8 rows of 128 bytes, 128-byte swizzle.
#define GLM_DESCRIPTOR(name, low) "mov.b64 " name ", {" low ", 0x40000040};\n"

#define GLM_D4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define GLM_D16(d, i) GLM_D4(d, i), GLM_D4(d, i + 4), GLM_D4(d, i + 8), GLM_D4(d, i + 12)

/// d[64 x N] = a[64 x 32 bytes of k] . b[N x 32 bytes of k]^T (+ d when `accumulate`). Thread i of
/// the warpgroup holds rows 16 * (warp) + g and + 8, columns 8j + 2t and + 1:
/// d[4j .. 4j+3] = (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1).
template <bool kFp8, int N>
struct Wgmma;

#define GLM_WGMMA(kFp8, N, TYPE, REGS, D_OUT, A, B, P)                                           \
  template <>                                                                                    \
  struct Wgmma<kFp8, N> {                                                                        \
    static __device__ __forceinline__ void Run(float (&d)[N / 2], uint32_t a, uint32_t b,        \
                                               int accumulate) {                                 \
      asm volatile(                                                                              \
          "{\n.reg .pred p;\n.reg .b64 a, b;\nsetp.ne.b32 p, " P ", 0;\n" GLM_DESCRIPTOR("a", A) \
              GLM_DESCRIPTOR("b", B) "wgmma.mma_async.sync.aligned.m64n" #N TYPE " {" REGS       \
                                     "}, a, b, p, 1, 1" GLM_TAIL_##kFp8 ";\n}\n"                 \
          : D_OUT                                                                                \
          : "r"(a), "r"(b), "r"(accumulate));                                                    \
    }                                                                                            \
  };
#define GLM_TAIL_true ""
#define GLM_TAIL_false ", 0, 0"
#define GLM_FP8 "k32.f32.e4m3.e4m3"
#define GLM_BF16 "k16.f32.bf16.bf16"
#define GLM_REGS4 "%0, %1, %2, %3"
#define GLM_REGS8 GLM_REGS4 ", %4, %5, %6, %7"
#define GLM_REGS12 GLM_REGS8 ", %8, %9, %10, %11"
#define GLM_REGS16 GLM_REGS8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define GLM_REGS32 \
  GLM_REGS16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define GLM_REGS64                                                                     \
  GLM_REGS32                                                                           \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define GLM_OUT4 GLM_D4(d, 0)
#define GLM_OUT8 GLM_D4(d, 0), GLM_D4(d, 4)
#define GLM_OUT12 GLM_D4(d, 0), GLM_D4(d, 4), GLM_D4(d, 8)
#define GLM_OUT16 GLM_D16(d, 0)
#define GLM_OUT32 GLM_D16(d, 0), GLM_D16(d, 16)
#define GLM_OUT64 GLM_D16(d, 0), GLM_D16(d, 16), GLM_D16(d, 32), GLM_D16(d, 48)

GLM_WGMMA(true, 8, GLM_FP8, GLM_REGS4, GLM_OUT4, "%4", "%5", "%6")
GLM_WGMMA(true, 16, GLM_FP8, GLM_REGS8, GLM_OUT8, "%8", "%9", "%10")
GLM_WGMMA(true, 32, GLM_FP8, GLM_REGS16, GLM_OUT16, "%16", "%17", "%18")
GLM_WGMMA(true, 64, GLM_FP8, GLM_REGS32, GLM_OUT32, "%32", "%33", "%34")
GLM_WGMMA(true, 128, GLM_FP8, GLM_REGS64, GLM_OUT64, "%64", "%65", "%66")
GLM_WGMMA(false, 8, GLM_BF16, GLM_REGS4, GLM_OUT4, "%4", "%5", "%6")
GLM_WGMMA(false, 16, GLM_BF16, GLM_REGS8, GLM_OUT8, "%8", "%9", "%10")
GLM_WGMMA(false, 24, GLM_BF16, GLM_REGS12, GLM_OUT12, "%12", "%13", "%14")
GLM_WGMMA(false, 32, GLM_BF16, GLM_REGS16, GLM_OUT16, "%16", "%17", "%18")
GLM_WGMMA(false, 64, GLM_BF16, GLM_REGS32, GLM_OUT32, "%32", "%33", "%34")
GLM_WGMMA(false, 128, GLM_BF16, GLM_REGS64, GLM_OUT64, "%64", "%65", "%66")

/// The same of an operand whose rows are k (16-bit values of 64 columns a row, rows 128 bytes
/// apart, 128-byte swizzle); the next 64 columns lie `column_bytes` further.
__device__ __forceinline__ uint32_t WgmmaDescriptorTransposed(uint32_t address,
                                                              uint32_t column_bytes) {
  return (address & 0x3FFFFu) >> 4 | column_bytes >> 4 << 16;
}

/// d[64 x 24] += a[64 x 16] . b[24 x 16]^T, bf16; a's rows are k (WgmmaDescriptorTransposed), b's
/// are not (WgmmaDescriptor).
__device__ __forceinline__ void Wgmma24Transposed(float (&d)[12], uint32_t a, uint32_t b) {
  asm volatile("{\n.reg .b64 a, b;\n" GLM_DESCRIPTOR("a", "%12")
                   GLM_DESCRIPTOR("b", "%13") "wgmma.mma_async.sync.aligned.m64n24" GLM_BF16
                                              " {" GLM_REGS12 "}, a, b, 1, 1, 1, 1, 0;\n}\n"
               : GLM_OUT12
               : "r"(a), "r"(b));
}

/// d[64 x N] += a[64 x 16] . b[16 x N], bf16; a in registers (as MmaBf16's, rows 16 * (warp) + g),
/// b through WgmmaDescriptorTransposed.
template <int N>
struct WgmmaRegisters;

#define GLM_WGMMA_REGISTERS(N, REGS, D_OUT, A, B)                                                 \
  template <>                                                                                     \
  struct WgmmaRegisters<N> {                                                                      \
    static __device__ __forceinline__ void Run(float (&d)[N / 2], const uint32_t (&a)[4],         \
                                               uint32_t b) {                                      \
      asm volatile("{\n.reg .b64 b;\n" GLM_DESCRIPTOR(                                            \
                       "b", B) "wgmma.mma_async.sync.aligned.m64n" #N GLM_BF16 " {" REGS "}, {" A \
                               "}, b, 1, 1, 1, 1;\n}\n"                                           \
                   : D_OUT                                                                        \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b));                         \
    }                                                                                             \
  };
GLM_WGMMA_REGISTERS(64, GLM_REGS32, GLM_OUT32, "%32, %33, %34, %35", "%36")
GLM_WGMMA_REGISTERS(128, GLM_REGS64, GLM_OUT64, "%64, %65, %66, %67", "%68")

// ---- Approximations: one instruction each, about 2 units in the last place ----

__device__ __forceinline__ float ApproximateExp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float ApproximateReciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ---- Registers, dependent launch ----

/// Waits until all that the kernel before has written is there. See launch_after.h.
__device__ __forceinline__ void DependencyWait() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}
/// Lets the next kernel's blocks start as soon as there is room for them.
__device__ __forceinline__ void DependencyRelease() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
__device__ __forceinline__ void DependencyStart() {
  DependencyWait();
  DependencyRelease();
}

/// A block's warpgroups share what it was launched with: what the takers take, the givers must have
/// given, or the takers wait for ever. 384 threads of 168: 40 and 232, or 24 and 240.
template <int kRegisters>
__device__ __forceinline__ void RegistersGive() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void RegistersTake() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace glm::cuda
