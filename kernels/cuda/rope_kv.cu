// q/k norm, rotary embedding and the store into the paged cache, fused: one warp a (token, head).
//
// The pair (i, i + rope_size / 2) of a rotation lies in two lanes. Where a lane's values are a
// vector and the lanes of a pair differ in one bit (64 of 128 values rotated: lanes l and l ^ 8),
// they exchange by shuffle; other sizes pass the head through shared memory. Heads of v are only
// copied.

#include <type_traits>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/launch_after.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/warp.cuh"

namespace glm::cuda {
namespace {

constexpr int kHeadsPerBlock = 4;
constexpr int kHeadSizeMax = 256;

struct RopeParams {
  const int32_t* counts;
  const int32_t* positions;
  const int32_t* token_sequences;
  const int32_t* block_tables;
  int64_t block_tables_stride;
  BFloat16* qkv;
  int64_t qkv_stride;
  const BFloat16* q_norm;
  const BFloat16* k_norm;
  float epsilon;
  const float* rope;
  int64_t rope_stride;
  int rope_size;
  int query_heads;
  int kv_heads;
  int head_size;
  BFloat16* keys;
  BFloat16* values;
  uint8_t* fp8_keys;  // in place of keys and values, or null
  uint8_t* fp8_values;
  float key_scale;
  float value_scale;
  int block_size;
};

/// What a warp works on.
struct Head {
  const BFloat16* source;
  BFloat16* target;
  uint8_t* fp8_target = nullptr;  // in place of target, or null
  float scale = 1;                // of fp8_target
  const BFloat16* norm;           // null: none
  int position;
  bool copied;  // a head of v

  __device__ Head(const RopeParams& p, int token, int head) {
    BFloat16* row = p.qkv + token * p.qkv_stride + static_cast<int64_t>(head) * p.head_size;
    source = row;
    target = row;
    norm = head < p.query_heads ? p.q_norm : p.k_norm;
    position = p.positions[token];
    copied = head >= p.query_heads + p.kv_heads;
    if (head < p.query_heads) return;
    const int kv_head = (head - p.query_heads) % p.kv_heads;
    const int64_t block =
        p.block_tables[p.token_sequences[token] * p.block_tables_stride + position / p.block_size];
    const int64_t cell =
        ((block * p.kv_heads + kv_head) * p.block_size + position % p.block_size) * p.head_size;
    if (p.fp8_keys != nullptr) {
      fp8_target = (copied ? p.fp8_values : p.fp8_keys) + cell;
      scale = copied ? p.value_scale : p.key_scale;
    } else {
      target = (copied ? p.values : p.keys) + cell;
    }
  }

  /// Stores a value that act can hold.
  __device__ void Store(int i, BFloat16 value) const {
    if (fp8_target != nullptr) {
      fp8_target[i] = static_cast<uint8_t>(PackFp8(ToFloat(value) / scale, 0.0f) & 0xFF);
    } else {
      target[i] = value;
    }
  }
};

/// A lane holds kValues consecutive values of a head of 32 * kValues.
template <int kValues>
__global__ void __launch_bounds__(kHeadsPerBlock* kWarp) NormRopeVectorKernel(const RopeParams p) {
  using Vector = typename std::conditional<kValues == 4, uint2, uint32_t>::type;
  const int token = blockIdx.x;
  DependencyStart();
  if (token >= p.counts[0]) return;
  const int lane = threadIdx.x % kWarp;
  const int index = blockIdx.y * kHeadsPerBlock + threadIdx.x / kWarp;
  if (index >= p.query_heads + 2 * p.kv_heads) return;
  const Head head(p, token, index);
  union {
    Vector vector;
    uint32_t words[kValues / 2];
  } packed;
  packed.vector = reinterpret_cast<const Vector*>(head.source)[lane];
  if (!head.copied) {
    float values[kValues];
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const uint32_t word = packed.words[i / 2];
      values[i] = __uint_as_float(i % 2 == 0 ? word << 16 : word & 0xFFFF0000u);
      squares += values[i] * values[i];
    }
    if (head.norm != nullptr) {
      const float mean = WarpSum(squares) / static_cast<float>(p.head_size);
      const float inverse = 1.0f / sqrtf(mean + p.epsilon);
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        values[i] =
            RoundBf16(RoundBf16(values[i] * inverse) * ToFloat(head.norm[lane * kValues + i]));
      }
    }
    const int half = p.rope_size / 2;
    const int first = lane * kValues;
    const float* cosines = p.rope + head.position * p.rope_stride + first % half;
    const float* sines = cosines + half;
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const float partner = __shfl_xor_sync(kAllLanes, values[i], half / kValues);
      if (first < p.rope_size) {
        const float turned = first < half ? -partner : partner;
        values[i] = values[i] * cosines[i] + turned * sines[i];
      }
    }
#pragma unroll
    for (int i = 0; i < kValues / 2; ++i) {
      packed.words[i] = PackBf16(values[2 * i], values[2 * i + 1]);
    }
  }
  if (head.fp8_target == nullptr) {
    reinterpret_cast<Vector*>(head.target)[lane] = packed.vector;
    return;
  }
#pragma unroll
  for (int i = 0; i < kValues; i += 2) {
    const uint32_t word = packed.words[i / 2];
    *reinterpret_cast<uint16_t*>(head.fp8_target + lane * kValues + i) = PackFp8(
        __uint_as_float(word << 16) / head.scale, __uint_as_float(word & 0xFFFF0000u) / head.scale);
  }
}

__global__ void __launch_bounds__(kHeadsPerBlock* kWarp) NormRopeStoreKernel(const RopeParams p) {
  __shared__ float heads[kHeadsPerBlock][kHeadSizeMax];
  const int token = blockIdx.x;
  DependencyStart();
  if (token >= p.counts[0]) return;
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int head = blockIdx.y * kHeadsPerBlock + warp;
  if (head >= p.query_heads + 2 * p.kv_heads) return;

  const Head work(p, token, head);
  const BFloat16* source = work.source;
  if (work.copied) {
    for (int i = lane; i < p.head_size; i += kWarp) work.Store(i, source[i]);
    return;
  }

  float* values = heads[warp];
  const BFloat16* norm = work.norm;
  float squares = 0;
  for (int i = lane; i < p.head_size; i += kWarp) {
    const float value = ToFloat(source[i]);
    values[i] = value;
    squares += value * value;
  }
  if (norm != nullptr) {
    const float mean = WarpSum(squares) / static_cast<float>(p.head_size);
    const float inverse = 1.0f / sqrtf(mean + p.epsilon);
    for (int i = lane; i < p.head_size; i += kWarp) {
      values[i] = RoundBf16(RoundBf16(values[i] * inverse) * ToFloat(norm[i]));
    }
  }
  __syncwarp();
  const int half = p.rope_size / 2;
  const float* cosines = p.rope + work.position * p.rope_stride;
  const float* sines = cosines + half;
  for (int i = lane; i < p.head_size; i += kWarp) {
    float value = values[i];
    if (i < half) {
      value = value * cosines[i] - values[i + half] * sines[i];
    } else if (i < p.rope_size) {
      value = value * cosines[i - half] + values[i - half] * sines[i - half];
    }
    work.Store(i, ToBFloat16(value));
  }
}

}  // namespace

void NormRopeStore(Device& device, const NormRopeStoreArgs& args) {
  const OpScope op(device, "norm_rope_store");
  const int64_t tokens = args.qkv.shape[0];
  const int64_t heads = args.query_heads + 2 * args.kv_heads;
  const int64_t head_size = args.cache.keys.shape[3];
  const int64_t block_size = args.cache.keys.shape[2];
  const int64_t rope_size = args.rope.shape[1];
  CheckShape(args.qkv, DType::kBF16, {tokens, heads * head_size}, "norm_rope_store.qkv");
  const bool fp8 = args.cache.keys.dtype == DType::kF8E4M3;
  const DType cache = fp8 ? DType::kF8E4M3 : DType::kBF16;
  CheckShape(args.cache.keys, cache, {-1, args.kv_heads, -1, -1}, "cache.keys");
  CheckShape(args.cache.values, cache, {-1, args.kv_heads, block_size, head_size}, "cache.values");
  CheckShape(args.rope, DType::kF32, {-1, -1}, "norm_rope_store.rope");
  if (!args.q_norm.empty()) CheckShape(args.q_norm, DType::kBF16, {head_size}, "q_norm");
  if (!args.k_norm.empty()) CheckShape(args.k_norm, DType::kBF16, {head_size}, "k_norm");
  CHECK_LE(head_size, kHeadSizeMax);
  CHECK(rope_size % 2 == 0 && rope_size <= head_size) << "rope_size " << rope_size;
  CHECK(args.cache.keys.contiguous() && args.cache.values.contiguous());
  const RopeParams params = {
      .counts = args.batch.counts.Data<int32_t>(),
      .positions = args.batch.positions.Data<int32_t>(),
      .token_sequences = args.batch.token_sequences.Data<int32_t>(),
      .block_tables = args.batch.block_tables.Data<int32_t>(),
      .block_tables_stride = args.batch.block_tables.stride[0],
      .qkv = args.qkv.Data<BFloat16>(),
      .qkv_stride = args.qkv.stride[0],
      .q_norm = args.q_norm.Data<BFloat16>(),
      .k_norm = args.k_norm.Data<BFloat16>(),
      .epsilon = args.epsilon,
      .rope = args.rope.Data<float>(),
      .rope_stride = args.rope.stride[0],
      .rope_size = static_cast<int>(rope_size),
      .query_heads = static_cast<int>(args.query_heads),
      .kv_heads = static_cast<int>(args.kv_heads),
      .head_size = static_cast<int>(head_size),
      .keys = fp8 ? nullptr : args.cache.keys.Data<BFloat16>(),
      .values = fp8 ? nullptr : args.cache.values.Data<BFloat16>(),
      .fp8_keys = fp8 ? static_cast<uint8_t*>(args.cache.keys.data) : nullptr,
      .fp8_values = fp8 ? static_cast<uint8_t*>(args.cache.values.data) : nullptr,
      .key_scale = args.cache.key_scale,
      .value_scale = args.cache.value_scale,
      .block_size = static_cast<int>(block_size),
  };
  const dim3 grid(static_cast<unsigned>(tokens),
                  static_cast<unsigned>((heads + kHeadsPerBlock - 1) / kHeadsPerBlock));
  // A lane's vector, and the lanes by which the halves of a pair are apart: a power of two.
  const int64_t lane_values = head_size / kWarp;
  const int64_t apart = lane_values == 0 ? 0 : rope_size / 2 / lane_values;
  const bool vectors = (head_size == 64 || head_size == 128) && rope_size > 0 &&
                       rope_size / 2 % lane_values == 0 && (apart & (apart - 1)) == 0 &&
                       reinterpret_cast<uintptr_t>(args.qkv.data) % 8 == 0 &&
                       args.qkv.stride[0] % 4 == 0;
  if (vectors && head_size == 128) {
    LaunchAfter(NormRopeVectorKernel<4>, grid, kHeadsPerBlock * kWarp, 0, op.stream(), params);
  } else if (vectors) {
    LaunchAfter(NormRopeVectorKernel<2>, grid, kHeadsPerBlock * kWarp, 0, op.stream(), params);
  } else {
    LaunchAfter(NormRopeStoreKernel, grid, kHeadsPerBlock * kWarp, 0, op.stream(), params);
  }
}

}  // namespace glm::cuda
