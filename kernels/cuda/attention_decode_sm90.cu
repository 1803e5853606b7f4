// Decode attention over the paged cache, split along the cache on the device.
//
// Work is cut into units of 64 cache positions of one (sequence, 16 rows, kv head); a row is one
// query head of one token, so the heads that share a kv head are computed together and the cache is
// read once. The units of the whole step, laid end to end, are dealt to the blocks in equal runs:
// the host knows no length, and one long sequence spreads over all multiprocessors. A run that
// covers only a part of an item leaves (max, sum, weighted values) in scratch, and the parts are
// added in the order of the cache. With many items for the blocks, an item has two or three parts,
// and its last block to arrive, found by a ticket, adds them: no second launch. With few items the
// parts of each are many (one sequence of 8192: 128), and a second kernel adds them, a block a row;
// on an H100 the ticket's one block took 280 us for those 128.
//
// Inside a block each of 4 warps streams its own 16 of the 64 positions through its own ring of
// shared memory (cp.async, no block barrier) and keeps its own running maximum; warps are merged
// once an item. Tensor cores compute both products. Probabilities are split into two bf16 terms:
// the second product is then as good as float, and costs nothing where reading the cache is the
// limit. FP8 keys and values are made BF16, exactly, in shared memory; their scales multiply scores
// and output.

#include <algorithm>

#include "kernels/cuda/attention_chunk.cuh"
#include "kernels/cuda/attention_params.h"
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/launch_after.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/warp.cuh"

namespace glm::cuda {
namespace {

/// Rows of sequence `s`, their units of the cache, and how many units all its items have.
struct SequenceWork {
  int first_token;
  int rows;
  int units;

  __device__ SequenceWork(const AttentionParams& p, int s, int rows_max) {
    first_token = p.query_starts[s];
    rows = (p.query_starts[s + 1] - first_token) * p.heads_per_kv;
    units = (p.kv_lengths[s] + kUnit - 1) / kUnit;
    if (rows > rows_max) rows = 0;
  }
  __device__ int row_tiles() const { return (rows + kRows - 1) / kRows; }
  __device__ int items(int kv_heads) const { return row_tiles() * kv_heads; }
};

/// Units of a block. At least two: shorter parts cost more to add than they save.
__device__ __forceinline__ int RunOf(int total, int blocks) {
  return max(2, (total + blocks - 1) / blocks);
}

/// prefix[s] = units of all sequences before s; the last entry is the total.
__device__ void ScanWork(const AttentionParams& p, int sequences, int rows_max, int32_t* prefix) {
  __shared__ int32_t warp_totals[kWarps];
  int32_t total = 0;
  for (int begin = 0; begin < sequences; begin += kThreads) {
    const int s = begin + static_cast<int>(threadIdx.x);
    int32_t own = 0;
    if (s < sequences) {
      const SequenceWork work(p, s, rows_max);
      own = work.items(p.kv_heads) * work.units;
    }
    const int lane = threadIdx.x % kWarp;
    int32_t inclusive = own;
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const int32_t other = __shfl_up_sync(kAllLanes, inclusive, offset);
      if (lane >= offset) inclusive += other;
    }
    if (lane == kWarp - 1) warp_totals[threadIdx.x / kWarp] = inclusive;
    __syncthreads();
    int32_t before = total + inclusive - own;
    for (int w = 0; w < kWarps; ++w) {
      if (w < static_cast<int>(threadIdx.x) / kWarp) before += warp_totals[w];
      total += warp_totals[w];
    }
    if (s < sequences) prefix[s] = before;
    __syncthreads();
  }
  if (threadIdx.x == 0) prefix[sequences] = total;
  __syncthreads();
}

/// Where rows of an item go.
struct ItemRows {
  int first_row;  // of the sequence
  int rows;       // of the sequence
  int first_token;
  int kv_head;

  __device__ int64_t Token(const AttentionParams& p, int row) const {
    return first_token + (first_row + row) / p.heads_per_kv;
  }
  __device__ int Head(const AttentionParams& p, int row) const {
    return kv_head * p.heads_per_kv + (first_row + row) % p.heads_per_kv;
  }
  __device__ bool Valid(int row) const { return first_row + row < rows; }
};

template <int kHeadSize>
__device__ void StoreRow(const AttentionParams& p, const ItemRows& item, int row, int column,
                         float value) {
  if (!item.Valid(row)) return;
  p.out[item.Token(p, row) * p.out_stride + item.Head(p, row) * kHeadSize + column] =
      ToBFloat16(value * p.value_scale);
}

/// Where the parts of an item are.
struct ItemParts {
  int start;  // unit of the step at which the item starts
  int count;
  int first_block;
  int run;  // units of a block

  __device__ ItemParts(int start_in, int units, int run_in)
      : start(start_in),
        count((start_in + units - 1) / run_in - start_in / run_in + 1),
        first_block(start_in / run_in),
        run(run_in) {}
  /// A block has two places: for the item that it starts inside of, and for one that it does not
  /// end.
  __device__ static int Place(int block, int start, int run) {
    return 2 * block + (start >= block * run ? 1 : 0);
  }
  template <int kHeadSize>
  __device__ const float* Part(const float* parts, int j) const {
    return parts +
           static_cast<int64_t>(Place(first_block + j, start, run)) * PartFloats<kHeadSize>();
  }
};

/// Adds the parts of an item in order and stores its rows. A block of the decode kernel.
template <int kHeadSize>
__device__ void CombineParts(const AttentionParams& p, const ItemRows& item, const ItemParts& where,
                             const float* parts) {
  for (int i = threadIdx.x; i < kRows * kHeadSize; i += kThreads) {
    const int row = i / kHeadSize;
    float largest = -INFINITY;
    float sum = 0;
    float value = 0;
    for (int j = 0; j < where.count; ++j) {
      const float* part = where.Part<kHeadSize>(parts, j);
      const float top = __ldcg(part + kRows * kHeadSize + row);
      const float part_sum = __ldcg(part + kRows * kHeadSize + kRows + row);
      const float part_value = __ldcg(part + i);
      const float next = fmaxf(largest, top);
      const float shift = next == -INFINITY ? 0.0f : next;
      const float old_factor = exp2f(largest - shift);
      const float factor = exp2f(top - shift);
      sum = sum * old_factor + part_sum * factor;
      value = value * old_factor + part_value * factor;
      largest = next;
    }
    StoreRow<kHeadSize>(p, item, row, i % kHeadSize, value / sum);
  }
}

constexpr int kCombineThreads = 512;

/// Units and items of all sequences before each, and of all. One warp counts, the block waits.
__device__ void ScanFew(const AttentionParams& p, int sequences, int rows_max, int32_t* unit_prefix,
                        int32_t* item_prefix) {
  if (threadIdx.x < kWarp) {
    const int lane = threadIdx.x;
    int units_before = 0;
    int items_before = 0;
    for (int begin = 0; begin < sequences; begin += kWarp) {
      const int s = begin + lane;
      int items = 0;
      int units = 0;
      if (s < sequences) {
        const SequenceWork work(p, s, rows_max);
        items = work.items(p.kv_heads);
        units = items * work.units;
      }
      const int own_items = items;
      const int own_units = units;
#pragma unroll
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const int other_items = __shfl_up_sync(kAllLanes, items, offset);
        const int other_units = __shfl_up_sync(kAllLanes, units, offset);
        if (lane >= offset) {
          items += other_items;
          units += other_units;
        }
      }
      if (s < sequences) {
        item_prefix[s] = items_before + items - own_items;
        unit_prefix[s] = units_before + units - own_units;
      }
      items_before += __shfl_sync(kAllLanes, items, kWarp - 1);
      units_before += __shfl_sync(kAllLanes, units, kWarp - 1);
    }
    if (lane == 0) {
      item_prefix[sequences] = items_before;
      unit_prefix[sequences] = units_before;
    }
  }
  __syncthreads();
}

/// One block a (item, row): groups of threads take the parts in turn.
template <int kHeadSize>
__global__ void __launch_bounds__(kCombineThreads)
    CombineKernel(const AttentionParams p, int rows_max, int decode_blocks, const float* parts) {
  constexpr int kGroups = kCombineThreads / kHeadSize;
  __shared__ int32_t unit_prefix[kCombineSequencesMax + 1];
  __shared__ int32_t item_prefix[kCombineSequencesMax + 1];
  __shared__ float group_values[kGroups][kHeadSize];
  __shared__ float factors[kPartsMax];
  __shared__ float warp_results[kWarp];
  DependencyStart();
  const int sequences = p.counts[1];
  ScanFew(p, sequences, rows_max, unit_prefix, item_prefix);
  const int run = RunOf(unit_prefix[sequences], decode_blocks);
  int index = blockIdx.x;
  if (index >= item_prefix[sequences]) return;
  const int s = SequenceAt(item_prefix, sequences, index);
  index -= item_prefix[s];
  const SequenceWork work(p, s, rows_max);
  const ItemParts where(unit_prefix[s] + index * work.units, work.units, run);
  const int row = blockIdx.y;
  ItemRows item;
  item.first_row = index % work.row_tiles() * kRows;
  item.rows = work.rows;
  item.first_token = work.first_token;
  item.kv_head = index / work.row_tiles();
  if (where.count == 1 || !item.Valid(row)) return;

  float largest = -INFINITY;
  for (int j = threadIdx.x; j < where.count; j += kCombineThreads) {
    factors[j] = where.Part<kHeadSize>(parts, j)[kRows * kHeadSize + row];
    largest = fmaxf(largest, factors[j]);
  }
  largest = WarpMax(largest);
  if (threadIdx.x % kWarp == 0) warp_results[threadIdx.x / kWarp] = largest;
  __syncthreads();
  for (int w = 0; w < kCombineThreads / kWarp; ++w) largest = fmaxf(largest, warp_results[w]);
  float sum = 0;
  for (int j = threadIdx.x; j < where.count; j += kCombineThreads) {
    factors[j] = exp2f(factors[j] - largest);
    sum += factors[j] * where.Part<kHeadSize>(parts, j)[kRows * kHeadSize + kRows + row];
  }
  __syncthreads();
  sum = BlockSum(sum, warp_results);

  const int column = threadIdx.x % kHeadSize;
  const int group = threadIdx.x / kHeadSize;
  float value = 0;
#pragma unroll 16
  for (int j = group; j < where.count; j += kGroups) {
    value += factors[j] * where.Part<kHeadSize>(parts, j)[row * kHeadSize + column];
  }
  group_values[group][column] = value;
  __syncthreads();
  if (group != 0) return;
  value = 0;
  for (int g = 0; g < kGroups; ++g) value += group_values[g][column];
  StoreRow<kHeadSize>(p, item, row, column, value / sum);
}

template <int kHeadSize, bool kWhole, bool kFp8>
__global__ void __launch_bounds__(kThreads, kHeadSize > 128 ? 1 : kBlocksPerSm)
    DecodeKernel(const AttentionParams p, int rows_max, float* parts, int32_t* tickets) {
  using S = Shape<kHeadSize, kFp8>;
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ int last_to_arrive;
  int32_t* prefix = reinterpret_cast<int32_t*>(shared + S::kSharedBytes);
  DependencyStart();
  const int sequences = p.counts[1];
  ScanWork(p, sequences, rows_max, prefix);
  const int total = prefix[sequences];
  const int run = RunOf(total, static_cast<int>(gridDim.x));
  int at = static_cast<int>(blockIdx.x) * run;
  const int end = min(total, at + run);
  if (at >= end) return;

  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const uint32_t ring = SharedAddress(shared) + warp * S::kWarpBytes;
  uint8_t* ring_bytes = shared + warp * S::kWarpBytes;
  float* merge = reinterpret_cast<float*>(shared);
  int s = 0;
  for (int step = 1 << 30; step > 0; step /= 2) {  // the last s with prefix[s] <= at
    if (s + step < sequences && prefix[s + step] <= at) s += step;
  }

  while (at < end) {
    while (prefix[s + 1] <= at) ++s;
    const SequenceWork work(p, s, rows_max);
    const int index = (at - prefix[s]) / work.units;
    const int start = prefix[s] + index * work.units;
    const int unit_begin = at - start;
    const int unit_end = min(work.units, end - start);
    ItemRows item;
    // Row tiles of one kv head are neighbours, so that they read its cache at the same time.
    item.first_row = index % work.row_tiles() * kRows;
    item.rows = work.rows;
    item.first_token = work.first_token;
    item.kv_head = index / work.row_tiles();
    const int length = p.kv_lengths[s];
    const int32_t* table = p.block_tables + s * p.block_tables_stride;

    uint32_t query[kHeadSize / 16][4];
    int last_seen[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = lane / 4 + r * 8;
      const bool valid = item.Valid(row);
      const int64_t token = valid ? item.Token(p, row) : item.first_token;
      last_seen[r] = valid ? p.positions[token] : -1;
      const BFloat16* source = p.queries + token * p.queries_stride +
                               (valid ? item.Head(p, row) : 0) * kHeadSize + lane % 4 * 2;
#pragma unroll
      for (int k = 0; k < kHeadSize / 16; ++k) {
        query[k][r] = *reinterpret_cast<const uint32_t*>(source + k * 16);
        query[k][r + 2] = *reinterpret_cast<const uint32_t*>(source + k * 16 + 8);
      }
    }

    Softmax<kHeadSize> state;
    const int units = unit_end - unit_begin;
    const auto first_position = [&](int u) { return (unit_begin + u) * kUnit + warp * kChunk; };
#pragma unroll
    for (int u = 0; u < S::kStages - 1; ++u) {
      if (u < units) {
        LoadChunk<kHeadSize, kWhole, kFp8>(p, ring + u * 2 * S::kLoadBytes, table,
                                           BlockOf(p, table, first_position(u), length),
                                           item.kv_head, first_position(u), length, lane);
      }
      CopyAsyncCommit();
    }
    // Looked up a unit before it is needed.
    int block = BlockOf(p, table, first_position(S::kStages - 1), length);
    int stage = 0;
    for (int u = 0; u < units; ++u) {
      CopyAsyncWait<S::kStages - 2>();
      __syncwarp();
      const int ahead = u + S::kStages - 1;
      if (ahead < units) {
        const int slot = stage == 0 ? S::kStages - 1 : stage - 1;
        LoadChunk<kHeadSize, kWhole, kFp8>(p, ring + slot * 2 * S::kLoadBytes, table, block,
                                           item.kv_head, first_position(ahead), length, lane);
      }
      CopyAsyncCommit();
      block = BlockOf(p, table, first_position(ahead + 1), length);
      if (first_position(u) < length) {
        uint32_t tile = stage * 2 * S::kLoadBytes;
        if constexpr (kFp8) {
          WidenChunk<kHeadSize>(ring_bytes + tile, ring_bytes + S::kStages * 2 * S::kLoadBytes,
                                lane);
          tile = S::kStages * 2 * S::kLoadBytes;
          __syncwarp();
        }
        AddChunk<kHeadSize>(p, state, query, ring + tile, first_position(u), last_seen, lane);
      }
      stage = stage + 1 == S::kStages ? 0 : stage + 1;
    }
    CopyAsyncWait<0>();
    __syncthreads();

    // Merge the warps: [warp][row][column] sums, then [warp][row] maxima and sums.
    float* tops = merge + kWarps * kRows * kHeadSize;
    float* sums = tops + kWarps * kRows;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float sum = state.sum[r];
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
      const int row = lane / 4 + r * 8;
      if (lane % 4 == 0) {
        tops[warp * kRows + row] = state.largest[r];
        sums[warp * kRows + row] = sum;
      }
#pragma unroll
      for (int n = 0; n < kHeadSize / 8; ++n) {
        float2* target = reinterpret_cast<float2*>(merge + (warp * kRows + row) * kHeadSize +
                                                   n * 8 + lane % 4 * 2);
        *target = float2{state.out[n][2 * r], state.out[n][2 * r + 1]};
      }
    }
    __syncthreads();
    const ItemParts where(start, work.units, run);
    float* part = parts + static_cast<int64_t>(ItemParts::Place(blockIdx.x, start, run)) *
                              PartFloats<kHeadSize>();
    for (int i = threadIdx.x; i < kRows * kHeadSize; i += kThreads) {
      const int row = i / kHeadSize;
      float largest = -INFINITY;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) largest = fmaxf(largest, tops[w * kRows + row]);
      float sum = 0;
      float value = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float top = tops[w * kRows + row];
        const float factor = top == -INFINITY ? 0.0f : exp2f(top - largest);
        sum += factor * sums[w * kRows + row];
        value += factor * merge[w * kRows * kHeadSize + i];
      }
      if (where.count == 1) {
        StoreRow<kHeadSize>(p, item, row, i % kHeadSize, value / sum);
      } else {
        part[i] = value;
        if (i % kHeadSize == 0) {
          part[kRows * kHeadSize + row] = largest;
          part[kRows * kHeadSize + kRows + row] = sum;
        }
      }
    }
    if (where.count > 1 && tickets != nullptr) {
      __threadfence();
      __syncthreads();
      if (threadIdx.x == 0) {
        last_to_arrive = atomicAdd(tickets + where.first_block, 1) == where.count - 1;
        if (last_to_arrive) tickets[where.first_block] = 0;
      }
      __syncthreads();
      if (last_to_arrive) {
        __threadfence();
        CombineParts<kHeadSize>(p, item, where, parts);
      }
    }
    __syncthreads();
    at = start + unit_end;
  }
}

template <int kHeadSize>
void Launch(cudaStream_t stream, int blocks, const AttentionParams& params, int rows_max,
            float* parts, int32_t* tickets) {
  const int shared_bytes =
      params.fp8 ? Shape<kHeadSize, true>::kSharedBytes : Shape<kHeadSize, false>::kSharedBytes;
  const int bytes = shared_bytes + (params.sequences + 1) * 4;
  const bool whole = params.block_size % kChunk == 0;
  const auto kernel = params.fp8 ? whole ? DecodeKernel<kHeadSize, true, true>
                                         : DecodeKernel<kHeadSize, false, true>
                      : whole ? DecodeKernel<kHeadSize, true, false>
                                 : DecodeKernel<kHeadSize, false, false>;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  const int64_t rows = static_cast<int64_t>(params.tokens) * params.heads_per_kv;
  const int64_t items = std::min<int64_t>(params.sequences + rows / kRows, rows) * params.kv_heads;
  const bool few = params.sequences <= kCombineSequencesMax && 2 * items < blocks;
  LaunchAfter(kernel, dim3(blocks), kThreads, bytes, stream, params, rows_max, parts,
              few ? nullptr : tickets);
  if (few) {
    LaunchAfter(CombineKernel<kHeadSize>, dim3(static_cast<unsigned>(items), kRows),
                kCombineThreads, 0, stream, params, rows_max, blocks, parts);
  }
}

}  // namespace

int DecodeBlocks(int sm_count) { return kBlocksPerSm * sm_count; }

int64_t DecodeScratchBytes(int sm_count, int64_t head_size) {
  return static_cast<int64_t>(2) * DecodeBlocks(sm_count) * kRows * (head_size + 2) * 4;
}

void RunDecodeAttention(cudaStream_t stream, int sm_count, const AttentionParams& params,
                        int head_size, int rows_max, void* scratch, int32_t* counters) {
  CHECK_LE(params.sequences, kSequencesMax) << "attention: sequences of a step";
  const int blocks = DecodeBlocks(sm_count);
  CHECK_LE(blocks, kPartsMax);
  float* parts = static_cast<float*>(scratch);
  switch (head_size) {
    case 16:
      return Launch<16>(stream, blocks, params, rows_max, parts, counters);
    case 32:
      return Launch<32>(stream, blocks, params, rows_max, parts, counters);
    case 64:
      return Launch<64>(stream, blocks, params, rows_max, parts, counters);
    case 128:
      return Launch<128>(stream, blocks, params, rows_max, parts, counters);
    default:
      CHECK(false) << "attention: head size " << head_size << " is none of 16, 32, 64, 128";
  }
}

}  // namespace glm::cuda
