// Prefill attention over the paged cache on wgmma.
//
// A tile is 128 tokens of one sequence and one query head; it walks the cache in steps of 128
// positions, up to its last token. One producer thread brings the queries and, page by page, keys
// and values through the copy engine into two stages each; two warpgroups compute 64 rows each.
// While a warpgroup's second product of a step runs, it already has the scores of the next step and
// takes their softmax, so tensor cores and exponentials overlap; the two warpgroups overlap
// besides, by turns. Tiles of late tokens are the longest and come first; the heads of one kv head
// are neighbours, so that they find its keys and values in L2. Probabilities are rounded to bf16
// for the second product.

#include <type_traits>

#include "kernels/cuda/attention_params.h"
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/warp.cuh"

namespace glm::cuda {
namespace {

constexpr int kProducers = 128;
constexpr int kConsumers = 256;
constexpr int kThreads = kProducers + kConsumers;
constexpr int kTileTokens = 128;  // queries of a tile, 64 a warpgroup
constexpr int kStep = 128;        // positions of the cache a step
constexpr int kStages = 2;
constexpr int kHalfBytes = 128 * 128;  // 128 rows of 64 columns
constexpr int kSequencesMax = 4096;

struct SharedState {
  uint64_t query_full;
  uint64_t query_empty;
  uint64_t key_full[kStages];
  uint64_t key_empty[kStages];
  uint64_t value_full[kStages];
  uint64_t value_empty[kStages];
};

struct Tile {
  int sequence;
  int head;
  int token;   // first of the step
  int tokens;  // valid ones, at most kTileTokens
  int length;  // positions that its last token sees
};

/// prefix[s] = tiles of one head of the sequences before s; prefix[S] is the total.
__device__ void CountTiles(const AttentionParams& p, int sequences, int rows_min, int32_t* prefix) {
  ScanSequences(sequences, prefix, [&](int s) {
    const int tokens = p.query_starts[s + 1] - p.query_starts[s];
    return tokens * p.heads_per_kv > rows_min ? (tokens + kTileTokens - 1) / kTileTokens : 0;
  });
}

__device__ Tile TileAt(const AttentionParams& p, const int32_t* prefix, int sequences, int index) {
  const int heads = p.kv_heads * p.heads_per_kv;
  const int of_head = index / heads;
  const int low = SequenceAt(prefix, sequences, of_head);
  const int first = p.query_starts[low];
  const int count = p.query_starts[low + 1] - first;
  const int from_last = of_head - prefix[low];
  const int tile = prefix[low + 1] - prefix[low] - 1 - from_last;
  Tile result;
  result.sequence = low;
  result.head = index % heads;
  result.token = first + tile * kTileTokens;
  result.tokens = min(kTileTokens, count - tile * kTileTokens);
  result.length = p.positions[result.token + result.tokens - 1] + 1;
  return result;
}

template <int kHeadSize>
struct Layout {
  static constexpr int kHalves = kHeadSize / 64;
  static constexpr int kQueryBytes = kHalves * kHalfBytes;
  static constexpr int kTileBytes = kHalves * kHalfBytes;  // keys or values of a step
  static constexpr int kBytes = kQueryBytes + 2 * kStages * kTileBytes;

  static __device__ uint32_t Keys(uint32_t base, int stage) {
    return base + kQueryBytes + stage * 2 * kTileBytes;
  }
  static __device__ uint32_t Values(uint32_t base, int stage) {
    return Keys(base, stage) + kTileBytes;
  }
};

/// Fetches keys or values of positions step * 128 on, page by page.
template <int kHeadSize>
__device__ __forceinline__ void FetchStep(const AttentionParams& p, const CUtensorMap* map,
                                          const Tile& tile, int step, uint32_t target,
                                          uint32_t full) {
  using L = Layout<kHeadSize>;
  BarrierArriveExpect(full, L::kTileBytes);
  const int32_t* table = p.block_tables + tile.sequence * p.block_tables_stride;
  const int pages = kStep / p.block_size;
  const int kv_head = tile.head / p.heads_per_kv;
  for (int i = 0; i < pages; ++i) {
    const int page = step * pages + i;
    // Positions past the end are masked; any valid page may stand for them.
    const int block = table[page * p.block_size < tile.length ? page : 0];
    const int row = (block * p.kv_heads + kv_head) * p.block_size;
#pragma unroll
    for (int half = 0; half < L::kHalves; ++half) {
      TensorLoad2(target + half * kHalfBytes + i * p.block_size * 128, map, full, half * 64, row);
    }
  }
}

template <int kHeadSize>
__device__ void Produce(const AttentionParams& p, const CUtensorMap* queries,
                        const CUtensorMap* keys, const CUtensorMap* values, SharedState& state,
                        uint32_t base, const int32_t* prefix, int sequences, int tiles) {
  using L = Layout<kHeadSize>;
  uint32_t query_parity = 1;
  int stage = 0;
  uint32_t parity = 1;
  for (int round = 0, index; (index = TileOfRound(round, tiles)) >= 0; ++round) {
    const Tile tile = TileAt(p, prefix, sequences, index);
    BarrierWait(SharedAddress(&state.query_empty), query_parity);
    query_parity ^= 1;
    const uint32_t query_full = SharedAddress(&state.query_full);
    BarrierArriveExpect(query_full, L::kQueryBytes);
#pragma unroll
    for (int half = 0; half < L::kHalves; ++half) {
      TensorLoad2(base + half * kHalfBytes, queries, query_full, tile.head * kHeadSize + half * 64,
                  tile.token);
    }
    const int steps = (tile.length + kStep - 1) / kStep;
    for (int step = 0; step < steps; ++step) {
      BarrierWait(SharedAddress(&state.key_empty[stage]), parity);
      FetchStep<kHeadSize>(p, keys, tile, step, L::Keys(base, stage),
                           SharedAddress(&state.key_full[stage]));
      BarrierWait(SharedAddress(&state.value_empty[stage]), parity);
      FetchStep<kHeadSize>(p, values, tile, step, L::Values(base, stage),
                           SharedAddress(&state.value_full[stage]));
      if (++stage == kStages) {
        stage = 0;
        parity ^= 1;
      }
    }
  }
}

template <int kHeadSize>
__device__ __forceinline__ void IssueScores(uint32_t queries, uint32_t keys,
                                            float (&scores)[kStep / 2]) {
  const uint32_t query = WgmmaDescriptor(queries);
  const uint32_t key = WgmmaDescriptor(keys);
  WgmmaFence();
#pragma unroll
  for (int k = 0; k < kHeadSize / 16; ++k) {
    const uint32_t further = WgmmaBytes(k / 4 * kHalfBytes + k % 4 * 32);
    Wgmma<false, kStep>::Run(scores, query + further, key + further, k > 0);
  }
  WgmmaCommit();
}

// The warpgroups issue their products by turns, so that one takes its softmax while the other has
// the tensor cores. Both take as many turns. One that begins its turn waits for the end of the
// other's; the first turn of the second one ends before all.
constexpr int kTurns = 3;  // named barriers 3 and 4; 1 and 2 are ConsumeTile's

__device__ __forceinline__ void TurnBegin(int warpgroup) {
  NamedBarrier(kTurns + warpgroup, kConsumers);
}
__device__ __forceinline__ void TurnEnd(int warpgroup) {
  NamedBarrierArrive(kTurns + 1 - warpgroup, kConsumers);
}

template <int kHeadSize>
__device__ __forceinline__ void ConsumeTile(const AttentionParams& p, const Tile& tile,
                                            SharedState& state, uint32_t base, uint8_t* base_bytes,
                                            int thread, uint32_t query_parity, int& stage,
                                            uint32_t& parity) {
  using L = Layout<kHeadSize>;
  const int warpgroup = Uniform(thread / 128);
  const int lane = thread % kWarp;
  const int low_row = warpgroup * 64 + thread % 128 / kWarp * 16 + lane / 4;
  SoftmaxRows rows;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = low_row + r * 8;
    rows.last_seen[r] = row < tile.tokens ? p.positions[tile.token + row] : -1;
  }
  // Steps that end with what the first row of this warpgroup sees, or before, need no mask.
  const int first_row = min(warpgroup * 64, tile.tokens - 1);
  const int unmasked = p.positions[tile.token + first_row] + 1;
  const int steps = Uniform((tile.length + kStep - 1) / kStep);
  const int steps_unmasked = Uniform(min(steps, unmasked / kStep) - 1);
  const uint32_t queries = base + warpgroup * 64 * 128;

  float scores[kStep / 2];
  float out[kHeadSize / 2];
  uint32_t probabilities[kStep / 16][4];
  float factor[2];
#pragma unroll
  for (int i = 0; i < kHeadSize / 2; ++i) out[i] = 0;
  const auto release = [&](uint64_t& barrier) {
    __syncwarp();
    if (lane == 0) BarrierArrive(SharedAddress(&barrier));
  };

  BarrierWait(SharedAddress(&state.query_full), query_parity);
  BarrierWait(SharedAddress(&state.key_full[stage]), parity);
  IssueScores<kHeadSize>(queries, L::Keys(base, stage), scores);
  WgmmaWait<0>();
  release(state.key_empty[stage]);
  TakeSoftmax<true>(p.scale_log2, rows, 0, lane, scores, factor);
  PackProbabilities(scores, probabilities);

  const auto issue_out = [&](uint32_t values) {
    const uint32_t value = WgmmaDescriptorTransposed(values, kHalfBytes);
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < kStep / 16; ++k) {
      WgmmaRegisters<kHeadSize>::Run(out, probabilities[k], value + WgmmaBytes(k * 16 * 128));
    }
    WgmmaCommit();
  };
  // No branch may stand between the issue of a product and its wait: ptxas would serialise them.
  const auto advance = [&](int step, auto masked) {
    const int next_stage = stage + 1 == kStages ? 0 : stage + 1;
    const uint32_t next_parity = next_stage == 0 ? parity ^ 1 : parity;
    BarrierWait(SharedAddress(&state.key_full[next_stage]), next_parity);
    BarrierWait(SharedAddress(&state.value_full[stage]), parity);
    TurnBegin(warpgroup);
    IssueScores<kHeadSize>(queries, L::Keys(base, next_stage), scores);
    issue_out(L::Values(base, stage));
    TurnEnd(warpgroup);
    WgmmaWait<1>();
    release(state.key_empty[next_stage]);
    TakeSoftmax<masked>(p.scale_log2, rows, (step + 1) * kStep, lane, scores, factor);
    const bool scales = ScalesSums(factor);
    SoftmaxBeforeWait(rows, state.key_empty[next_stage]);
    WgmmaWait<0>();
    release(state.value_empty[stage]);
    if (scales) ScaleSums(factor, out);
    PackProbabilities(scores, probabilities);
    stage = next_stage;
    parity = next_parity;
  };
  int step = 0;
  for (; step < steps_unmasked; ++step) advance(step, std::false_type());
  for (; step < steps - 1; ++step) advance(step, std::true_type());
  BarrierWait(SharedAddress(&state.value_full[stage]), parity);
  if (steps * kStep > tile.length) {
    ZeroRowsPast(base_bytes + (L::Values(base, stage) - base), L::kHalves, kHalfBytes,
                 tile.length - (steps - 1) * kStep, kStep, thread % 128);
    NamedBarrier(1 + warpgroup, 128);
  }
  issue_out(L::Values(base, stage));
  WgmmaWait<0>();
  release(state.value_empty[stage]);
  if (++stage == kStages) {
    stage = 0;
    parity ^= 1;
  }
  release(state.query_empty);

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = rows.sum[r];
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    const int row = low_row + r * 8;
    if (row >= tile.tokens) continue;
    const float inverse = ApproximateReciprocal(sum);
    BFloat16* target =
        p.out + (tile.token + row) * p.out_stride + tile.head * kHeadSize + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < kHeadSize / 8; ++j) {
      *reinterpret_cast<uint32_t*>(target + j * 8) =
          PackBf16(out[4 * j + 2 * r] * inverse, out[4 * j + 2 * r + 1] * inverse);
    }
  }
}

template <int kHeadSize>
__global__ void __launch_bounds__(kThreads, 1)
    PrefillKernel(const __grid_constant__ CUtensorMap queries,
                  const __grid_constant__ CUtensorMap keys,
                  const __grid_constant__ CUtensorMap values, const AttentionParams p,
                  int rows_min) {
  using L = Layout<kHeadSize>;
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ SharedState state;
  const uint32_t padding = (1024 - SharedAddress(shared) % 1024) % 1024;
  const uint32_t base = SharedAddress(shared) + padding;
  uint8_t* base_bytes = shared + padding;
  int32_t* prefix = reinterpret_cast<int32_t*>(base_bytes + L::kBytes);
  const int sequences = p.counts[1];
  if (threadIdx.x == 0) {
    PrefetchTensorMap(&queries);
    PrefetchTensorMap(&keys);
    PrefetchTensorMap(&values);
    BarrierInit(SharedAddress(&state.query_full), 1);
    BarrierInit(SharedAddress(&state.query_empty), kConsumers / kWarp);
    for (int s = 0; s < kStages; ++s) {
      BarrierInit(SharedAddress(&state.key_full[s]), 1);
      BarrierInit(SharedAddress(&state.key_empty[s]), kConsumers / kWarp);
      BarrierInit(SharedAddress(&state.value_full[s]), 1);
      BarrierInit(SharedAddress(&state.value_empty[s]), kConsumers / kWarp);
    }
    BarrierInitFence();
  }
  CountTiles(p, sequences, rows_min, prefix);
  const int tiles = prefix[sequences] * p.kv_heads * p.heads_per_kv;

  if (threadIdx.x < kProducers) {
    RegistersGive<40>();
    if (threadIdx.x == 0) {
      Produce<kHeadSize>(p, &queries, &keys, &values, state, base, prefix, sequences, tiles);
    }
  } else {
    RegistersTake<232>();
    const int warpgroup = (threadIdx.x - kProducers) / 128;
    if (warpgroup == 1) TurnEnd(warpgroup);
    int stage = 0;
    uint32_t parity = 0;
    uint32_t query_parity = 0;
    for (int round = 0, index; (index = TileOfRound(round, tiles)) >= 0; ++round) {
      const Tile tile = TileAt(p, prefix, sequences, index);
      ConsumeTile<kHeadSize>(p, tile, state, base, base_bytes, threadIdx.x - kProducers,
                             query_parity, stage, parity);
      query_parity ^= 1;
    }
    if (warpgroup == 0) TurnBegin(warpgroup);  // for the last end of the other's
  }
}

template <int kHeadSize>
void Launch(cudaStream_t stream, int sm_count, const AttentionParams& p, int rows_min) {
  const int columns = p.kv_heads * p.heads_per_kv * kHeadSize;
  const int64_t cache_rows = p.cache_blocks * p.kv_heads * p.block_size;
  const CUtensorMap queries =
      MakeTensorMap(p.queries, DType::kBF16, p.tokens, columns, p.queries_stride, kTileTokens);
  const CUtensorMap keys =
      MakeTensorMap(p.keys, DType::kBF16, cache_rows, kHeadSize, kHeadSize, p.block_size);
  const CUtensorMap values =
      MakeTensorMap(p.values, DType::kBF16, cache_rows, kHeadSize, kHeadSize, p.block_size);
  const int bytes = Layout<kHeadSize>::kBytes + 1024 + (p.sequences + 1) * 4;
  CUDA_CHECK(cudaFuncSetAttribute(PrefillKernel<kHeadSize>,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  PrefillKernel<kHeadSize>
      <<<sm_count, kThreads, bytes, stream>>>(queries, keys, values, p, rows_min);
}

}  // namespace

bool TakesPrefillAttention(const AttentionParams& params, int head_size) {
  return !params.fp8 && (head_size == 64 || head_size == 128) && params.block_size >= 8 &&
         params.block_size <= kStep && kStep % params.block_size == 0 &&
         params.queries_stride % 8 == 0 && params.sequences <= kSequencesMax;
}

void RunPrefillAttention(cudaStream_t stream, int sm_count, const AttentionParams& params,
                         int head_size, int rows_min) {
  if (head_size == 128) {
    Launch<128>(stream, sm_count, params, rows_min);
  } else {
    Launch<64>(stream, sm_count, params, rows_min);
  }
}

}  // namespace glm::cuda
