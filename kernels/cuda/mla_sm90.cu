// Latent attention over the paged cache on wgmma: latents of 512, rope keys of 64. For drafts and
// chunks of prompts; steps of one token a sequence have mla_decode_sm90.cu.
//
// The queries are absorbed, so a cell is key and value of every head: a row is one head of one
// token, rows lie behind each other as the heads of a token do, and a tile is 64 of them. One
// producer thread brings a tile's queries, then the cells in steps of 32 positions, page by page,
// through a ring of four stages. Two warpgroups compute the scores of all 64 rows each (twice the
// work of one product, but no exchange and no barrier between them), and half of the 512 columns
// of the sums each. As in prefill attention, a warpgroup takes the softmax of the next step while
// its second product runs. Probabilities are rounded to bf16 for that product.
//
// Tiles of sequences with few rows are split along the cache: their steps, laid
// end to end, are dealt to the blocks in equal runs, as in attention_decode_sm90.cu, and a second
// kernel adds the parts of each split tile in order. Tiles of prompts are dealt whole, the longest
// first.

#include <algorithm>
#include <limits>
#include <type_traits>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/launch_after.h"
#include "kernels/cuda/mla_params.h"
#include "kernels/cuda/mla_tiles.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/warp.cuh"

namespace glm::cuda {
namespace {

constexpr int kProducers = 128;
constexpr int kConsumers = 256;
constexpr int kThreads = kProducers + kConsumers;
constexpr int kStages = 4;
constexpr int kRows = WideTiling::kRows;
constexpr int kStep = WideTiling::kStep;
constexpr int kRope = 64;
constexpr int kBoxes = (kLatent + kRope) / 64;  // of 64 columns
constexpr int kQueryBoxBytes = kRows * 128;
constexpr int kCellBoxBytes = kStep * 128;
constexpr int kQueryBytes = kBoxes * kQueryBoxBytes;
constexpr int kCellBytes = kBoxes * kCellBoxBytes;
constexpr int kRingBytes = kQueryBytes + kStages * kCellBytes;

struct SharedState {
  uint64_t query_full;
  uint64_t query_empty;
  uint64_t cell_full[kStages];
  uint64_t cell_empty[kStages];
};

__device__ __forceinline__ uint32_t StageAt(uint32_t base, int stage) {
  return base + kQueryBytes + stage * kCellBytes;
}

__device__ __forceinline__ void FetchStep(const MlaParams& p, const CUtensorMap* cells,
                                          const MlaItem& item, int step, uint32_t target,
                                          uint32_t full) {
  BarrierArriveExpect(full, kCellBytes);
  const int32_t* table = p.block_tables + item.sequence * p.block_tables_stride;
  const int box_rows = min(kStep, p.block_size);
  for (int row = 0; row < kStep; row += box_rows) {
    // Positions past the end are masked; any valid page may stand for them.
    const int position = step * kStep + row < item.length ? step * kStep + row : 0;
    const int cell = table[position / p.block_size] * p.block_size + position % p.block_size;
#pragma unroll
    for (int box = 0; box < kBoxes; ++box) {
      TensorLoad2(target + box * kCellBoxBytes + row * 128, cells, full, box * 64, cell);
    }
  }
}

template <bool kSplit>
__device__ void Produce(const MlaParams& p, const CUtensorMap* absorbed, const CUtensorMap* queries,
                        const CUtensorMap* cells, SharedState& state, uint32_t base,
                        const int32_t* prefix, int sequences) {
  uint32_t query_parity = 1;
  int stage = 0;
  uint32_t parity = 1;
  MlaItems<WideTiling, kSplit> items(prefix, sequences, blockIdx.x, gridDim.x);
  MlaItem item;
  while (items.Next(p, item)) {
    BarrierWait(SharedAddress(&state.query_empty), query_parity);
    query_parity ^= 1;
    const uint32_t query_full = SharedAddress(&state.query_full);
    BarrierArriveExpect(query_full, kQueryBytes);
#pragma unroll
    for (int box = 0; box < kLatent / 64; ++box) {
      TensorLoad2(base + box * kQueryBoxBytes, absorbed, query_full, box * 64, item.first_row);
    }
    TensorLoad2(base + kLatent / 64 * kQueryBoxBytes, queries, query_full, p.plain, item.first_row);
    for (int step = item.step_begin; step < item.step_end; ++step) {
      BarrierWait(SharedAddress(&state.cell_empty[stage]), parity);
      FetchStep(p, cells, item, step, StageAt(base, stage), SharedAddress(&state.cell_full[stage]));
      if (++stage == kStages) {
        stage = 0;
        parity ^= 1;
      }
    }
  }
}

__device__ __forceinline__ void IssueScores(uint32_t queries, uint32_t cells,
                                            float (&scores)[kStep / 2]) {
  const uint32_t query = WgmmaDescriptor(queries);
  const uint32_t cell = WgmmaDescriptor(cells);
  WgmmaFence();
#pragma unroll
  for (int k = 0; k < (kLatent + kRope) / 16; ++k) {
    Wgmma<false, kStep>::Run(scores, query + WgmmaBytes(k / 4 * kQueryBoxBytes + k % 4 * 32),
                             cell + WgmmaBytes(k / 4 * kCellBoxBytes + k % 4 * 32), k > 0);
  }
  WgmmaCommit();
}

/// Zeros this warpgroup's columns of the positions from `first_zero` on: a masked probability of 0
/// times NaN is NaN. That the other may read them for its scores meanwhile does no harm: those are
/// masked.
__device__ __forceinline__ void ZeroPast(uint8_t* stage, int warpgroup, int first_zero,
                                         int thread) {
  constexpr int kVectors = kLatent / 2 / 8;
  for (int i = first_zero * kVectors + thread; i < kStep * kVectors; i += 128) {
    const int row = i / kVectors;
    const int vector = i % kVectors;
    uint8_t* box = stage + (warpgroup * 4 + vector / 8) * kCellBoxBytes;
    *reinterpret_cast<uint4*>(box + row * 128 + vector % 8 * 16) = uint4{0, 0, 0, 0};
  }
  AsyncProxyFence();
}

/// Columns of a warpgroup's sums, in two accumulators.
constexpr int kHalf = kLatent / 4;

/// A warpgroup's half of an item's sums, to `latents` or to its part.
__device__ __forceinline__ void StoreItem(const MlaItem& item, const SoftmaxRows& rows,
                                          int warpgroup, int thread,
                                          const float (&out)[2][kHalf / 2], BFloat16* latents,
                                          float* parts) {
  const int lane = thread % kWarp;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = rows.sum[r];
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    const int row = thread / kWarp * 16 + lane / 4 + r * 8;
    if (row >= item.rows) continue;
    const int first_column = warpgroup * 2 * kHalf + lane % 4 * 2;
    if (item.part < 0) {
      const float inverse = ApproximateReciprocal(sum);
      BFloat16* target = latents + static_cast<int64_t>(item.first_row + row) * kLatent;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int j = 0; j < kHalf / 8; ++j) {
          *reinterpret_cast<uint32_t*>(target + first_column + h * kHalf + j * 8) =
              PackBf16(out[h][4 * j + 2 * r] * inverse, out[h][4 * j + 2 * r + 1] * inverse);
        }
      }
      continue;
    }
    float* part = parts + item.part;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int j = 0; j < kHalf / 8; ++j) {
        *reinterpret_cast<float2*>(part + row * kLatent + first_column + h * kHalf + j * 8) =
            float2{out[h][4 * j + 2 * r], out[h][4 * j + 2 * r + 1]};
      }
    }
    if (warpgroup == 0 && lane % 4 == 0) {
      part[kRows * kLatent + row] = rows.largest[r];
      part[kRows * (kLatent + 1) + row] = sum;
    }
  }
}

__device__ __forceinline__ void ConsumeItem(const MlaParams& p, const MlaItem& item,
                                            SharedState& state, uint32_t base, uint8_t* base_bytes,
                                            int consumer, uint32_t query_parity, int& stage,
                                            uint32_t& parity, BFloat16* latents, float* parts) {
  const int warpgroup = Uniform(consumer / 128);
  const int thread = consumer % 128;
  const int lane = thread % kWarp;
  SoftmaxRows rows;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = thread / kWarp * 16 + lane / 4 + r * 8;
    rows.last_seen[r] = row < item.rows ? p.positions[(item.first_row + row) / p.heads] : -1;
  }
  // Steps that end with what the first row sees, or before, need no mask.
  const int unmasked = p.positions[item.first_row / p.heads] + 1;

  float scores[kStep / 2];
  float out[2][kHalf / 2];
  uint32_t probabilities[kStep / 16][4];
  float factor[2];
#pragma unroll
  for (int i = 0; i < kHalf / 2; ++i) {
    out[0][i] = 0;
    out[1][i] = 0;
  }
  const auto release = [&](uint64_t& barrier) {
    __syncwarp();
    if (lane == 0) BarrierArrive(SharedAddress(&barrier));
  };
  const auto issue_out = [&](uint32_t cells) {
    const uint32_t columns =
        WgmmaDescriptorTransposed(cells + warpgroup * 4 * kCellBoxBytes, kCellBoxBytes);
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < kStep / 16; ++k) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        WgmmaRegisters<kHalf>::Run(out[h], probabilities[k],
                                   columns + WgmmaBytes(h * 2 * kCellBoxBytes + k * 16 * 128));
      }
    }
    WgmmaCommit();
  };

  BarrierWait(SharedAddress(&state.query_full), query_parity);
  BarrierWait(SharedAddress(&state.cell_full[stage]), parity);
  IssueScores(base, StageAt(base, stage), scores);
  WgmmaWait<0>();
  TakeSoftmax<true>(p.scale_log2, rows, item.step_begin * kStep, lane, scores, factor);
  PackProbabilities(scores, probabilities);
  // No branch may stand between the issue of a product and its wait: ptxas would serialise them.
  const auto advance = [&](int step, auto masked) {
    const int next_stage = stage + 1 == kStages ? 0 : stage + 1;
    const uint32_t next_parity = next_stage == 0 ? parity ^ 1 : parity;
    BarrierWait(SharedAddress(&state.cell_full[next_stage]), next_parity);
    IssueScores(base, StageAt(base, next_stage), scores);
    issue_out(StageAt(base, stage));
    WgmmaWait<1>();
    TakeSoftmax<masked>(p.scale_log2, rows, step * kStep, lane, scores, factor);
    const bool scales = ScalesSums(factor);
    SoftmaxBeforeWait(rows, state.cell_empty[stage]);
    WgmmaWait<0>();
    release(state.cell_empty[stage]);
    if (scales) {
      ScaleSums(factor, out[0]);
      ScaleSums(factor, out[1]);
    }
    PackProbabilities(scores, probabilities);
    stage = next_stage;
    parity = next_parity;
  };
  int step = Uniform(item.step_begin + 1);
  const int step_end = Uniform(item.step_end);
  const int unmasked_end = Uniform(min(step_end, unmasked / kStep));
  for (; step < unmasked_end; ++step) advance(step, std::false_type());
  for (; step < step_end; ++step) advance(step, std::true_type());
  if (item.step_end * kStep > item.length) {
    ZeroPast(base_bytes + (StageAt(base, stage) - base), warpgroup,
             item.length - (item.step_end - 1) * kStep, thread);
    NamedBarrier(1 + warpgroup, 128);
  }
  issue_out(StageAt(base, stage));
  WgmmaWait<0>();
  release(state.cell_empty[stage]);
  if (++stage == kStages) {
    stage = 0;
    parity ^= 1;
  }
  release(state.query_empty);
  StoreItem(item, rows, warpgroup, thread, out, latents, parts);
}

template <bool kSplit>
__global__ void __launch_bounds__(kThreads, 1)
    WideMlaKernel(const __grid_constant__ CUtensorMap absorbed,
                  const __grid_constant__ CUtensorMap queries,
                  const __grid_constant__ CUtensorMap cells, const MlaParams p, MlaShare share,
                  BFloat16* latents, const MlaParts parts) {
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ SharedState state;
  const uint32_t padding = (1024 - SharedAddress(shared) % 1024) % 1024;
  const uint32_t base = SharedAddress(shared) + padding;
  uint8_t* base_bytes = shared + padding;
  int32_t* prefix = reinterpret_cast<int32_t*>(base_bytes + kRingBytes);
  if (threadIdx.x == 0) {
    PrefetchTensorMap(&absorbed);
    PrefetchTensorMap(&queries);
    PrefetchTensorMap(&cells);
    BarrierInit(SharedAddress(&state.query_full), 1);
    BarrierInit(SharedAddress(&state.query_empty), kConsumers / kWarp);
    for (int s = 0; s < kStages; ++s) {
      BarrierInit(SharedAddress(&state.cell_full[s]), 1);
      BarrierInit(SharedAddress(&state.cell_empty[s]), kConsumers / kWarp);
    }
    BarrierInitFence();
  }
  DependencyStart();
  const int sequences = p.counts[1];
  ScanTiles<WideTiling, kSplit>(p, sequences, share, prefix, kSplit ? parts.prefix : nullptr);

  if (threadIdx.x < kProducers) {
    RegistersGive<40>();
    if (threadIdx.x == 0) {
      Produce<kSplit>(p, &absorbed, &queries, &cells, state, base, prefix, sequences);
    }
  } else {
    RegistersTake<232>();
    int stage = 0;
    uint32_t parity = 0;
    uint32_t query_parity = 0;
    MlaItems<WideTiling, kSplit> items(prefix, sequences, blockIdx.x, gridDim.x);
    MlaItem item;
    while (items.Next(p, item)) {
      ConsumeItem(p, item, state, base, base_bytes, threadIdx.x - kProducers, query_parity, stage,
                  parity, latents, parts.parts);
      query_parity ^= 1;
    }
  }
}

}  // namespace

bool TakesWideMla(const MlaParams& p, DType cache_dtype) {
  const bool pages = p.block_size % kStep == 0 || (p.block_size >= 8 && kStep % p.block_size == 0);
  return cache_dtype == DType::kBF16 && p.latent == kLatent && p.rope == kRope && pages &&
         p.plain % 8 == 0 && p.sequences <= kSequencesMax;
}

void RunWideMla(cudaStream_t stream, int sm_count, const MlaParams& p, bool without_fresh,
                BFloat16* latents, void* scratch) {
  const MlaParts parts(scratch, sm_count);
  const int64_t rows = static_cast<int64_t>(p.tokens) * p.heads;
  const int64_t query_size = p.plain + p.rope;
  const CUtensorMap absorbed = MakeTensorMap(latents, DType::kBF16, rows, kLatent, kLatent, kRows);
  const CUtensorMap queries =
      MakeTensorMap(p.queries, DType::kBF16, rows, query_size, query_size, kRows);
  const CUtensorMap cells =
      MakeTensorMap(p.cells, DType::kBF16, p.cache_blocks * p.block_size, kLatent + kRope,
                    kLatent + kRope, std::min(kStep, p.block_size));
  const int bytes = kRingBytes + 1024 + (p.sequences + 1) * 4;
  const bool prompts = HasMlaPrompts(p);
  const MlaShare share = {prompts ? kMlaSplitRowsMax : std::numeric_limits<int>::max(),
                          without_fresh};
  const auto launch = [&](auto kernel) {
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    LaunchAfter(kernel, dim3(static_cast<unsigned>(sm_count)), kThreads, bytes, stream, absorbed,
                queries, cells, p, share, latents, parts);
  };
  launch(WideMlaKernel<true>);
  if (!TakesMlaFewTokens(p)) CombineMlaParts<WideTiling>(stream, sm_count, p, latents, parts);
  if (prompts) launch(WideMlaKernel<false>);
}

}  // namespace glm::cuda
