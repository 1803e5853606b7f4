// Latent attention of prompts that begin in the step, on wgmma: the expanded form, heads of 192 +
// 64 and values of 256.
//
// With as many queries as positions the expanded form takes less than half of the absorbed form's
// operations, and its keys and values are those of the step's own tokens: K_h c and V_h c of every
// token, one GEMM, lie beside the rope keys in scratch. The rest is attention_prefill_sm90.cu with
// wider heads: a tile is 128 tokens of one sequence and one head, and walks the positions in steps
// of 64. Probabilities are rounded to bf16 for the second product.

#include <algorithm>
#include <type_traits>

#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/launch_after.h"
#include "kernels/cuda/mla_params.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/warp.cuh"

namespace glm::cuda {
namespace {

constexpr int kProducers = 128;
constexpr int kConsumers = 256;
constexpr int kThreads = kProducers + kConsumers;
constexpr int kTileTokens = 128;  // queries of a tile, 64 a warpgroup
constexpr int kStep = 64;         // positions a step
constexpr int kStages = 2;
constexpr int kHeadSize = 256;
constexpr int kPlain = 192;
constexpr int kBoxes = kHeadSize / 64;
constexpr int kQueryBoxBytes = kTileTokens * 128;
constexpr int kBoxBytes = kStep * 128;
constexpr int kQueryBytes = kBoxes * kQueryBoxBytes;
constexpr int kTileBytes = kBoxes * kBoxBytes;  // keys or values of a step
constexpr int kRingBytes = kQueryBytes + 2 * kStages * kTileBytes;
constexpr int kHalf = kHeadSize / 2;  // columns of an accumulator
constexpr int kSequencesMax = 2048;

struct SharedState {
  uint64_t query_full;
  uint64_t query_empty;
  uint64_t key_full[kStages];
  uint64_t key_empty[kStages];
  uint64_t value_full[kStages];
  uint64_t value_empty[kStages];
  int32_t tile;  // that the queries are of; -1: there are no more
};

struct Tile {
  int head;
  int first;     // token of the sequence's first position
  int position;  // of the tile's first token
  int tokens;    // valid ones, at most kTileTokens
  __device__ int length() const { return position + tokens; }
  __device__ int steps() const { return (length() + kStep - 1) / kStep; }
};

/// prefix[s] = tiles of one head of the sequences before s; prefix[S] is the total.
__device__ void CountTiles(const MlaParams& p, int sequences, int rows_min, int32_t* prefix) {
  ScanSequences(sequences, prefix, [&](int s) {
    const int tokens = p.query_starts[s + 1] - p.query_starts[s];
    const bool fresh = tokens == p.kv_lengths[s] && tokens * p.heads > rows_min;
    return fresh ? (tokens + kTileTokens - 1) / kTileTokens : 0;
  });
}

/// Tiles go by groups of heads, whose keys and values stay in L2; in a group those of late tokens,
/// the longest, come first, and the heads of a tile are neighbours.
__device__ Tile TileAt(const MlaParams& p, const int32_t* prefix, int sequences, int heads_a_group,
                       int index) {
  const int of_group = prefix[sequences] * heads_a_group;
  const int first_head = index / of_group * heads_a_group;
  const int heads = min(heads_a_group, p.heads - first_head);
  const int within = index % of_group;
  const int of_head = within / heads;
  const int low = SequenceAt(prefix, sequences, of_head);
  Tile tile;
  tile.head = first_head + within % heads;
  tile.first = p.query_starts[low];
  const int count = p.query_starts[low + 1] - tile.first;
  tile.position = (prefix[low + 1] - 1 - of_head) * kTileTokens;
  tile.tokens = min(kTileTokens, count - tile.position);
  return tile;
}

__device__ __forceinline__ uint32_t KeysAt(uint32_t base, int stage) {
  return base + kQueryBytes + stage * 2 * kTileBytes;
}
__device__ __forceinline__ uint32_t ValuesAt(uint32_t base, int stage) {
  return KeysAt(base, stage) + kTileBytes;
}

struct Maps {
  CUtensorMap queries;   // [T, N * 256]
  CUtensorMap expanded;  // [T, N * (192 + 256)]: a head's keys, then its values
  CUtensorMap cells;     // [T, 512 + 64]
};

/// Blocks take tiles as they come free. counters: of tiles taken behind each block's first, and of
/// blocks that are done; the last one leaves them zero.
__device__ void Produce(const MlaParams& p, const Maps& maps, SharedState& state, uint32_t base,
                        const int32_t* prefix, int sequences, int heads_a_group,
                        int32_t* counters) {
  const int tiles = prefix[sequences] * p.heads;
  uint32_t query_parity = 1;
  int stage = 0;
  uint32_t parity = 1;
  for (int index = static_cast<int>(blockIdx.x);;
       index = static_cast<int>(gridDim.x) + atomicAdd(&counters[0], 1)) {
    BarrierWait(SharedAddress(&state.query_empty), query_parity);
    query_parity ^= 1;
    const uint32_t query_full = SharedAddress(&state.query_full);
    if (index >= tiles) {
      state.tile = -1;
      BarrierArrive(query_full);
      break;
    }
    state.tile = index;
    const Tile tile = TileAt(p, prefix, sequences, heads_a_group, index);
    BarrierArriveExpect(query_full, kQueryBytes);
#pragma unroll
    for (int box = 0; box < kBoxes; ++box) {
      TensorLoad2(base + box * kQueryBoxBytes, &maps.queries, query_full,
                  tile.head * kHeadSize + box * 64, tile.first + tile.position);
    }
    const int column = tile.head * (kPlain + kHeadSize);
    for (int step = 0; step < tile.steps(); ++step) {
      const int row = tile.first + step * kStep;
      BarrierWait(SharedAddress(&state.key_empty[stage]), parity);
      const uint32_t key_full = SharedAddress(&state.key_full[stage]);
      BarrierArriveExpect(key_full, kTileBytes);
#pragma unroll
      for (int box = 0; box < kPlain / 64; ++box) {
        TensorLoad2(KeysAt(base, stage) + box * kBoxBytes, &maps.expanded, key_full,
                    column + box * 64, row);
      }
      TensorLoad2(KeysAt(base, stage) + kPlain / 64 * kBoxBytes, &maps.cells, key_full, p.latent,
                  row);
      BarrierWait(SharedAddress(&state.value_empty[stage]), parity);
      const uint32_t value_full = SharedAddress(&state.value_full[stage]);
      BarrierArriveExpect(value_full, kTileBytes);
#pragma unroll
      for (int box = 0; box < kBoxes; ++box) {
        TensorLoad2(ValuesAt(base, stage) + box * kBoxBytes, &maps.expanded, value_full,
                    column + kPlain + box * 64, row);
      }
      if (++stage == kStages) {
        stage = 0;
        parity ^= 1;
      }
    }
  }
  if (atomicAdd(&counters[1], 1) == static_cast<int>(gridDim.x) - 1) {
    counters[0] = 0;
    counters[1] = 0;
  }
}

__device__ __forceinline__ void IssueScores(uint32_t queries, uint32_t keys,
                                            float (&scores)[kStep / 2]) {
  const uint32_t query = WgmmaDescriptor(queries);
  const uint32_t key = WgmmaDescriptor(keys);
  WgmmaFence();
#pragma unroll
  for (int k = 0; k < kHeadSize / 16; ++k) {
    Wgmma<false, kStep>::Run(scores, query + WgmmaBytes(k / 4 * kQueryBoxBytes + k % 4 * 32),
                             key + WgmmaBytes(k / 4 * kBoxBytes + k % 4 * 32), k > 0);
  }
  WgmmaCommit();
}

/// The two rows of this thread, divided by their sums.
__device__ __forceinline__ void StoreTile(const Tile& tile, const SoftmaxRows& rows, int low_row,
                                          int lane, const float (&out)[2][kHalf / 2],
                                          BFloat16* target, int64_t target_stride) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = rows.sum[r];
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    const int row = low_row + r * 8;
    if (row >= tile.tokens) continue;
    const float inverse = ApproximateReciprocal(sum);
    BFloat16* columns = target + (tile.first + tile.position + row) * target_stride +
                        tile.head * kHeadSize + lane % 4 * 2;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int j = 0; j < kHalf / 8; ++j) {
        *reinterpret_cast<uint32_t*>(columns + h * kHalf + j * 8) =
            PackBf16(out[h][4 * j + 2 * r] * inverse, out[h][4 * j + 2 * r + 1] * inverse);
      }
    }
  }
}

__device__ __forceinline__ void ConsumeTile(const MlaParams& p, const Tile& tile,
                                            SharedState& state, uint32_t base, uint8_t* base_bytes,
                                            int thread, int& stage, uint32_t& parity,
                                            BFloat16* target, int64_t target_stride) {
  const int warpgroup = Uniform(thread / 128);
  const int lane = thread % kWarp;
  const int low_row = warpgroup * 64 + thread % 128 / kWarp * 16 + lane / 4;
  SoftmaxRows rows;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = low_row + r * 8;
    rows.last_seen[r] = row < tile.tokens ? tile.position + row : -1;
  }
  // Steps that end with what the first row of this warpgroup sees, or before, need no mask.
  const int unmasked = tile.position + min(warpgroup * 64, tile.tokens - 1) + 1;
  const int steps = Uniform(tile.steps());
  const int steps_unmasked = Uniform(min(steps, unmasked / kStep) - 1);
  const uint32_t queries = base + warpgroup * 64 * 128;

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
  const auto issue_out = [&](uint32_t values) {
    const uint32_t value = WgmmaDescriptorTransposed(values, kBoxBytes);
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < kStep / 16; ++k) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        WgmmaRegisters<kHalf>::Run(out[h], probabilities[k],
                                   value + WgmmaBytes(h * 2 * kBoxBytes + k * 16 * 128));
      }
    }
    WgmmaCommit();
  };

  BarrierWait(SharedAddress(&state.key_full[stage]), parity);
  IssueScores(queries, KeysAt(base, stage), scores);
  WgmmaWait<0>();
  release(state.key_empty[stage]);
  TakeSoftmax<true>(p.scale_log2, rows, 0, lane, scores, factor);
  PackProbabilities(scores, probabilities);
  // No branch may stand between the issue of a product and its wait: ptxas would serialise them.
  const auto advance = [&](int step, auto masked) {
    const int next_stage = stage + 1 == kStages ? 0 : stage + 1;
    const uint32_t next_parity = next_stage == 0 ? parity ^ 1 : parity;
    BarrierWait(SharedAddress(&state.key_full[next_stage]), next_parity);
    BarrierWait(SharedAddress(&state.value_full[stage]), parity);
    IssueScores(queries, KeysAt(base, next_stage), scores);
    issue_out(ValuesAt(base, stage));
    WgmmaWait<1>();
    release(state.key_empty[next_stage]);
    TakeSoftmax<masked>(p.scale_log2, rows, (step + 1) * kStep, lane, scores, factor);
    const bool scales = ScalesSums(factor);
    SoftmaxBeforeWait(rows, state.key_empty[next_stage]);
    WgmmaWait<0>();
    release(state.value_empty[stage]);
    if (scales) {
      ScaleSums(factor, out[0]);
      ScaleSums(factor, out[1]);
    }
    PackProbabilities(scores, probabilities);
    stage = next_stage;
    parity = next_parity;
  };
  int step = 0;
  for (; step < steps_unmasked; ++step) advance(step, std::false_type());
  for (; step < steps - 1; ++step) advance(step, std::true_type());
  BarrierWait(SharedAddress(&state.value_full[stage]), parity);
  if (steps * kStep > tile.length()) {
    // Both warpgroups write the same zeros.
    ZeroRowsPast(base_bytes + (ValuesAt(base, stage) - base), kBoxes, kBoxBytes,
                 tile.length() - (steps - 1) * kStep, kStep, thread % 128);
    NamedBarrier(1 + warpgroup, 128);
  }
  issue_out(ValuesAt(base, stage));
  WgmmaWait<0>();
  release(state.value_empty[stage]);
  if (++stage == kStages) {
    stage = 0;
    parity ^= 1;
  }
  release(state.query_empty);
  StoreTile(tile, rows, low_row, lane, out, target, target_stride);
}

__global__ void __launch_bounds__(kThreads, 1)
    MlaPrefillKernel(const __grid_constant__ Maps maps, const MlaParams p, int rows_min,
                     int heads_a_group, int32_t* counters, BFloat16* target,
                     int64_t target_stride) {
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ SharedState state;
  const uint32_t padding = (1024 - SharedAddress(shared) % 1024) % 1024;
  const uint32_t base = SharedAddress(shared) + padding;
  uint8_t* base_bytes = shared + padding;
  int32_t* prefix = reinterpret_cast<int32_t*>(base_bytes + kRingBytes);
  if (threadIdx.x == 0) {
    PrefetchTensorMap(&maps.queries);
    PrefetchTensorMap(&maps.expanded);
    PrefetchTensorMap(&maps.cells);
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
  DependencyStart();
  const int sequences = p.counts[1];
  CountTiles(p, sequences, rows_min, prefix);

  if (threadIdx.x < kProducers) {
    RegistersGive<24>();
    if (threadIdx.x == 0) {
      Produce(p, maps, state, base, prefix, sequences, heads_a_group, counters);
    }
  } else {
    RegistersTake<240>();
    int stage = 0;
    uint32_t parity = 0;
    uint32_t query_parity = 0;
    for (;;) {
      BarrierWait(SharedAddress(&state.query_full), query_parity);
      query_parity ^= 1;
      const int index = state.tile;
      if (index < 0) break;
      const Tile tile = TileAt(p, prefix, sequences, heads_a_group, index);
      ConsumeTile(p, tile, state, base, base_bytes, threadIdx.x - kProducers, stage, parity, target,
                  target_stride);
    }
  }
}

/// cells[t] = the cache's cell of token t, a warp a token.
__global__ void __launch_bounds__(kThreads) GatherCellsKernel(const MlaParams p, uint4* cells) {
  const int token = static_cast<int>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  DependencyStart();
  if (token >= p.counts[0]) return;
  const int vectors = (p.latent + p.rope) / 8;
  const int position = p.positions[token];
  const int64_t block =
      p.block_tables[p.token_sequences[token] * p.block_tables_stride + position / p.block_size];
  const uint4* cell = static_cast<const uint4*>(p.cells) +
                      (block * p.block_size + position % p.block_size) * vectors;
  for (int i = threadIdx.x % kWarp; i < vectors; i += kWarp) {
    cells[static_cast<int64_t>(token) * vectors + i] = cell[i];
  }
}

/// So many that the keys and values of a group are about this; all that blocks read at a time then
/// comes from L2 (50 MB, of which each half of the chip has its own copy).
int64_t HeadGroups(const MlaParams& p) {
  constexpr int64_t kGroupBytes = 30 << 20;
  const int64_t bytes = static_cast<int64_t>(p.tokens) * p.heads * (kPlain + kHeadSize) * 2;
  return std::clamp<int64_t>((bytes + kGroupBytes / 2) / kGroupBytes, 1, p.heads);
}

}  // namespace

bool TakesMlaPrefill(const MlaParams& p) {
  return p.plain == kPlain && p.plain + p.rope == kHeadSize && p.value == kHeadSize &&
         p.latent % 64 == 0 && p.sequences <= kSequencesMax;
}

void GatherCells(cudaStream_t stream, const MlaParams& p, BFloat16* cells) {
  constexpr int kTokens = kThreads / kWarp;
  LaunchAfter(GatherCellsKernel, dim3(static_cast<unsigned>((p.tokens + kTokens - 1) / kTokens)),
              kThreads, 0, stream, p, reinterpret_cast<uint4*>(cells));
}

void RunMlaPrefill(cudaStream_t stream, int sm_count, const MlaParams& p, int rows_min,
                   const BFloat16* cells, const BFloat16* expanded, int32_t* counters,
                   BFloat16* out, int64_t out_stride) {
  const int64_t columns = static_cast<int64_t>(p.heads) * kHeadSize;
  const int64_t expanded_columns = static_cast<int64_t>(p.heads) * (kPlain + kHeadSize);
  const int cell = p.latent + p.rope;
  const Maps maps = {
      .queries = MakeTensorMap(p.queries, DType::kBF16, p.tokens, columns, columns, kTileTokens),
      .expanded = MakeTensorMap(expanded, DType::kBF16, p.tokens, expanded_columns,
                                expanded_columns, kStep),
      .cells = MakeTensorMap(cells, DType::kBF16, p.tokens, cell, cell, kStep)};
  const int bytes = kRingBytes + 1024 + (p.sequences + 1) * 4;
  CUDA_CHECK(
      cudaFuncSetAttribute(MlaPrefillKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  const int64_t groups = HeadGroups(p);
  const auto heads_a_group = static_cast<int>((p.heads + groups - 1) / groups);
  LaunchAfter(MlaPrefillKernel, dim3(static_cast<unsigned>(sm_count)), kThreads, bytes, stream,
              maps, p, rows_min, heads_a_group, counters, out, out_stride);
}

}  // namespace glm::cuda
