// Latent attention of decode steps over the paged cache on wgmma: latents of 512, rope keys of 64.
//
// With one token a sequence a tile has as many rows as a token has heads, 20 of GLM-4.7-Flash. As
// the 64-wide side of a product most of them would be padding and the tensor cores the limit, so
// here cells are that side and rows the other, 24 of them: scores^T = cells . queries^T, 64
// positions a step, and sums^T += cells^T . probabilities, 64 of the 512 columns a product. What is
// left to pay is reading the cells.
//
// A warpgroup is a runner: it has its own run of steps, its own place for a step's cells and its
// own sums, and shares nothing with the other of its block but the tensor cores; a producer thread
// each brings queries and cells. A step's place is given back by its nine boxes of 64 columns, four
// at a time as their last products are done, so that of two runners' 147 KB most are on their way
// at any time; a second place each would not fit. The second runner asks for its first cells after
// the first one, so that one may compute while the other's cells arrive; no difference was seen.
//
// What a step says of its sequences, and their cells, are written by kernels that have ended when
// the one before this begins. So a block starts while that one ends (launch_after.h), and asks for
// its first cells before it waits for the queries.
//
// A row's positions lie across lanes and warps: maxima go through shared memory, and probabilities
// too, rounded to bf16. Runs and parts are those of mla_tiles.cuh.

#include <algorithm>
#include <limits>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/launch_after.h"
#include "kernels/cuda/mla_params.h"
#include "kernels/cuda/mla_tiles.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/warp.cuh"

namespace glm::cuda {
namespace {

constexpr int kRows = DecodeTiling::kRows;
constexpr int kStep = DecodeTiling::kStep;
constexpr int kRunners = DecodeTiling::kRunners;
constexpr int kProducers = 128;
constexpr int kRunnerThreads = 128;
constexpr int kRunnerWarps = kRunnerThreads / kWarp;
constexpr int kThreads = kProducers + kRunners * kRunnerThreads;
constexpr int kLatentBoxes = kLatent / 64;  // of 64 columns
constexpr int kRopeBox = kLatentBoxes;
constexpr int kRope = 64;
constexpr int kBoxes = kLatentBoxes + 1;
constexpr int kQueryBoxBytes = kRows * 128;
constexpr int kCellBoxBytes = kStep * 128;
constexpr int kCellBytes = kBoxes * kCellBoxBytes;
constexpr int kQueryBytes = kBoxes * kQueryBoxBytes;
constexpr int kProbabilityBytes = kRows * kStep * 2;
constexpr int kRunnerBytes = kCellBytes + kQueryBytes + kProbabilityBytes;
constexpr int kOwnRows = kRows / 4;  // of a thread: 8j + 2t and + 1

struct RunnerState {
  uint64_t query_full;
  uint64_t query_empty;
  uint64_t cell_full[kBoxes];
  uint64_t cell_empty[kBoxes];
  float largest[kRunnerWarps][kRows];
  float sums[kRunnerWarps][kRows];
};

/// Where a runner's operands lie, as addresses in shared memory.
struct RunnerPlace {
  uint32_t cells;
  uint32_t queries;
  uint32_t probabilities;

  __device__ RunnerPlace(uint32_t base, int runner)
      : cells(base + runner * kRunnerBytes),
        queries(cells + kCellBytes),
        probabilities(queries + kQueryBytes) {}
};

/// Boxes in the order in which they come and are given back.
__device__ __forceinline__ constexpr int BoxAt(int i) { return i == 0 ? kRopeBox : i - 1; }

struct Maps {
  CUtensorMap absorbed;
  CUtensorMap queries;
  CUtensorMap cells;
};

/// Brings a step's cells, box by box as there is room.
__device__ __forceinline__ void FetchStep(const MlaParams& p, const CUtensorMap* cells,
                                          int box_rows, const MlaItem& item, int step,
                                          RunnerState& state, const RunnerPlace& place,
                                          uint32_t parity) {
  const int32_t* table = p.block_tables + item.sequence * p.block_tables_stride;
  for (int i = 0; i < kBoxes; ++i) {
    const int box = BoxAt(i);
    BarrierWait(SharedAddress(&state.cell_empty[box]), parity);
    const uint32_t full = SharedAddress(&state.cell_full[box]);
    BarrierArriveExpect(full, kCellBoxBytes);
    for (int row = 0; row < kStep; row += box_rows) {
      // Positions past the end are masked; any valid page may stand for them.
      const int position = step * kStep + row < item.length ? step * kStep + row : 0;
      const int cell = table[position / p.block_size] * p.block_size + position % p.block_size;
      TensorLoad2(place.cells + box * kCellBoxBytes + row * 128, cells, full, box * 64, cell);
    }
  }
}

__device__ __forceinline__ void FetchQueries(const MlaParams& p, const Maps& maps,
                                             const MlaItem& item, RunnerState& state,
                                             const RunnerPlace& place, uint32_t parity) {
  BarrierWait(SharedAddress(&state.query_empty), parity);
  const uint32_t full = SharedAddress(&state.query_full);
  BarrierArriveExpect(full, kQueryBytes);
  TensorLoad2(place.queries + kRopeBox * kQueryBoxBytes, &maps.queries, full, p.plain,
              item.first_row);
#pragma unroll
  for (int box = 0; box < kLatentBoxes; ++box) {
    TensorLoad2(place.queries + box * kQueryBoxBytes, &maps.absorbed, full, box * 64,
                item.first_row);
  }
}

/// Brings a runner's queries and cells. One thread. Only queries are awaited of the kernel before.
/// `asked`: the first runner's first cells are asked for; the second runner waits for that.
__device__ void Produce(const MlaParams& p, const Maps& maps, int box_rows, int runner,
                        uint64_t& asked, RunnerState& state, const RunnerPlace& place,
                        MlaItems<DecodeTiling, true>& items) {
  if (runner > 0) BarrierWait(SharedAddress(&asked), 0);
  bool first = runner == 0;
  uint32_t query_parity = 1;
  uint32_t parity = 1;
  MlaItem item;
  while (items.Next(p, item)) {
    for (int step = item.step_begin; step < item.step_end; ++step) {
      FetchStep(p, &maps.cells, box_rows, item, step, state, place, parity);
      parity ^= 1;
      if (first) BarrierArrive(SharedAddress(&asked));
      first = false;
      if (step > item.step_begin) continue;
      DependencyWait();
      FetchQueries(p, maps, item, state, place, query_parity);
      query_parity ^= 1;
    }
  }
  if (first) BarrierArrive(SharedAddress(&asked));
}

/// The running softmax of a thread's rows, over this thread's positions where it is a sum.
struct Softmax {
  float largest[kOwnRows];
  float sum[kOwnRows];
};

/// Scores of this thread: d[4j + i], position 16 warp + g + i / 2 * 8, row 8j + 2t + i % 2. They
/// become probabilities against the new maxima; factor is what older sums must be scaled by.
__device__ __forceinline__ void TakeSoftmax(float scale_log2, RunnerState& state, int runner,
                                            int warp, int lane, Softmax& softmax,
                                            float (&scores)[kRows / 2], float (&factor)[kOwnRows]) {
  float largest[kOwnRows];
#pragma unroll
  for (int c = 0; c < kOwnRows; ++c) {
    largest[c] = fmaxf(scores[c / 2 * 4 + c % 2], scores[c / 2 * 4 + 2 + c % 2]);
#pragma unroll
    for (int offset = 4; offset < kWarp; offset *= 2) {
      largest[c] = fmaxf(largest[c], __shfl_xor_sync(kAllLanes, largest[c], offset));
    }
  }
  if (lane < 4) {
#pragma unroll
    for (int c = 0; c < kOwnRows; c += 2) {
      *reinterpret_cast<float2*>(&state.largest[warp][c * 4 + lane * 2]) =
          float2{largest[c], largest[c + 1]};
    }
  }
  NamedBarrier(1 + runner, kRunnerThreads);
#pragma unroll
  for (int c = 0; c < kOwnRows; c += 2) {
#pragma unroll
    for (int w = 0; w < kRunnerWarps; ++w) {
      const float2 other =
          *reinterpret_cast<const float2*>(&state.largest[w][c * 4 + lane % 4 * 2]);
      largest[c] = fmaxf(largest[c], other.x);
      largest[c + 1] = fmaxf(largest[c + 1], other.y);
    }
  }
#pragma unroll
  for (int c = 0; c < kOwnRows; ++c) {
    const float next = fmaxf(largest[c] * scale_log2, softmax.largest[c]);
    const float shift = next == -INFINITY ? 0.0f : next;
    factor[c] = ApproximateExp2(softmax.largest[c] - shift);
    softmax.largest[c] = next;
    softmax.sum[c] *= factor[c];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float& score = scores[c / 2 * 4 + 2 * r + c % 2];
      score = ApproximateExp2(fmaf(score, scale_log2, -shift));
      softmax.sum[c] += score;
    }
  }
}

/// Probabilities, bf16, to where the second product reads them: a row's 64 positions are 128 bytes,
/// 16-byte vector v of row r at v ^ (r % 8).
__device__ __forceinline__ void StoreProbabilities(uint32_t target, int warp, int lane,
                                                   const float (&scores)[kRows / 2]) {
  uint32_t packed[kRows / 8][2];
#pragma unroll
  for (int j = 0; j < kRows / 8; ++j) {
    packed[j][0] = PackBf16(scores[4 * j], scores[4 * j + 1]);
    packed[j][1] = PackBf16(scores[4 * j + 2], scores[4 * j + 3]);
  }
  // Lane 8i + c has the address of tile i's column c: row c of eight, positions of half i % 2.
  const int row = lane % 8;
  const uint32_t address = target + row * 128 + ((2 * warp + lane / 8 % 2) ^ row) * 16;
  const int second = lane / 16;  // tiles 2 and 3 are the next eight rows
  StoreMatrix4Transposed(address + second * 8 * 128, packed[0][0], packed[0][1], packed[1][0],
                         packed[1][1]);
  StoreMatrix4Transposed(address + 16 * 128, packed[2][0], packed[2][1], packed[2][0],
                         packed[2][1]);
}
static_assert(kRows == 24);

__device__ __forceinline__ void IssueScores(RunnerState& state, const RunnerPlace& place,
                                            uint32_t parity, float (&scores)[kRows / 2]) {
  const uint32_t cell = WgmmaDescriptor(place.cells);
  const uint32_t query = WgmmaDescriptor(place.queries);
#pragma unroll
  for (int i = 0; i < kBoxes; ++i) {
    const int box = BoxAt(i);
    BarrierWait(SharedAddress(&state.cell_full[box]), parity);
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      Wgmma<false, kRows>::Run(scores, cell + WgmmaBytes(box * kCellBoxBytes + k * 32),
                               query + WgmmaBytes(box * kQueryBoxBytes + k * 32), i + k > 0);
    }
  }
  WgmmaCommit();
}

/// sums^T += cells^T . probabilities, and gives back each box as it is done.
template <typename Release>
__device__ __forceinline__ void AddValues(RunnerState& state, const RunnerPlace& place,
                                          Release release, float (&out)[kLatentBoxes][kRows / 2]) {
  const uint32_t cell = WgmmaDescriptorTransposed(place.cells, kCellBoxBytes);
  const uint32_t probability = WgmmaDescriptor(place.probabilities);
  WgmmaFence();
#pragma unroll
  for (int box = 0; box < kLatentBoxes; ++box) {
#pragma unroll
    for (int k = 0; k < kStep / 16; ++k) {
      Wgmma24Transposed(out[box], cell + WgmmaBytes(box * kCellBoxBytes + k * 16 * 128),
                        probability + WgmmaBytes(k * 32));
    }
    WgmmaCommit();
  }
  WgmmaWait<4>();
#pragma unroll
  for (int box = 0; box < kLatentBoxes - 4; ++box) release(state.cell_empty[box]);
  WgmmaWait<0>();
#pragma unroll
  for (int box = kLatentBoxes - 4; box < kLatentBoxes; ++box) release(state.cell_empty[box]);
}

/// An item's sums, to `latents` or to its part.
__device__ __forceinline__ void StoreItem(const MlaItem& item, RunnerState& state, int runner,
                                          int warp, int lane, Softmax& softmax,
                                          const float (&out)[kLatentBoxes][kRows / 2],
                                          BFloat16* latents, float* parts) {
#pragma unroll
  for (int c = 0; c < kOwnRows; ++c) {
#pragma unroll
    for (int offset = 4; offset < kWarp; offset *= 2) {
      softmax.sum[c] += __shfl_xor_sync(kAllLanes, softmax.sum[c], offset);
    }
    if (lane < 4) state.sums[warp][c / 2 * 8 + lane * 2 + c % 2] = softmax.sum[c];
  }
  NamedBarrier(1 + runner, kRunnerThreads);
  const int column = warp * 16 + lane / 4;
#pragma unroll
  for (int c = 0; c < kOwnRows; ++c) {
    const int row = c / 2 * 8 + lane % 4 * 2 + c % 2;
    if (row >= item.rows) continue;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kRunnerWarps; ++w) sum += state.sums[w][row];
    if (item.part < 0) {
      const float inverse = ApproximateReciprocal(sum);
      BFloat16* target = latents + static_cast<int64_t>(item.first_row + row) * kLatent + column;
#pragma unroll
      for (int box = 0; box < kLatentBoxes; ++box) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          target[box * 64 + r * 8] = ToBFloat16(out[box][c / 2 * 4 + 2 * r + c % 2] * inverse);
        }
      }
      continue;
    }
    float* part = parts + item.part;
#pragma unroll
    for (int box = 0; box < kLatentBoxes; ++box) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        part[row * kLatent + box * 64 + column + r * 8] = out[box][c / 2 * 4 + 2 * r + c % 2];
      }
    }
    if (column == 0) {
      part[kRows * kLatent + row] = softmax.largest[c];
      part[kRows * (kLatent + 1) + row] = sum;
    }
  }
}

/// Computes an item. A runner's threads. `parity`: of the next step.
__device__ __forceinline__ void ConsumeItem(const MlaParams& p, const MlaItem& item,
                                            RunnerState& state, const RunnerPlace& place,
                                            uint8_t* cells, int runner, uint32_t query_parity,
                                            uint32_t& parity, BFloat16* latents, float* parts) {
  const int thread = threadIdx.x % kRunnerThreads;
  const int warp = Uniform(thread / kWarp);
  const int lane = thread % kWarp;
  Softmax softmax;
  int last_seen[kOwnRows];
#pragma unroll
  for (int c = 0; c < kOwnRows; ++c) {
    const int row = c / 2 * 8 + lane % 4 * 2 + c % 2;
    last_seen[c] = row < item.rows ? p.positions[(item.first_row + row) / p.heads] : -1;
    softmax.largest[c] = -INFINITY;
    softmax.sum[c] = 0;
  }
  // Steps that end with what the first row sees, or before, need no mask.
  const int unmasked = p.positions[item.first_row / p.heads] + 1;
  float out[kLatentBoxes][kRows / 2];
#pragma unroll
  for (int box = 0; box < kLatentBoxes; ++box) {
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) out[box][i] = 0;
  }
  const auto release = [&](uint64_t& barrier) {
    if (lane == 0) BarrierArrive(SharedAddress(&barrier));
  };

  BarrierWait(SharedAddress(&state.query_full), query_parity);
  for (int step = item.step_begin; step < item.step_end; ++step) {
    float scores[kRows / 2];
    IssueScores(state, place, parity, scores);
    WgmmaWait<0>();
    release(state.cell_empty[kRopeBox]);
    if (step + 1 == item.step_end) release(state.query_empty);
    if ((step + 1) * kStep > unmasked) {
#pragma unroll
      for (int i = 0; i < kRows / 2; ++i) {
        const int position = step * kStep + warp * 16 + lane / 4 + i % 4 / 2 * 8;
        if (position > last_seen[i / 4 * 2 + i % 2]) scores[i] = -INFINITY;
      }
    }
    float factor[kOwnRows];
    TakeSoftmax(p.scale_log2, state, runner, warp, lane, softmax, scores, factor);
    StoreProbabilities(place.probabilities, warp, lane, scores);
    if ((step + 1) * kStep > item.length) {
      ZeroRowsPast(cells, kLatentBoxes, kCellBoxBytes, item.length - step * kStep, kStep, thread);
    }
    AsyncProxyFence();
    NamedBarrier(1 + runner, kRunnerThreads);
    bool scales = false;
#pragma unroll
    for (int c = 0; c < kOwnRows; ++c) scales |= factor[c] != 1.0f;
    if (__any_sync(kAllLanes, scales)) {
#pragma unroll
      for (int box = 0; box < kLatentBoxes; ++box) {
#pragma unroll
        for (int i = 0; i < kRows / 2; ++i) out[box][i] *= factor[i / 4 * 2 + i % 2];
      }
    }
    AddValues(state, place, release, out);
    parity ^= 1;
  }
  StoreItem(item, state, runner, warp, lane, softmax, out, latents, parts);
}

__global__ void __launch_bounds__(kThreads, 1)
    MlaDecodeKernel(const __grid_constant__ Maps maps, const MlaParams p, int box_rows,
                    BFloat16* latents, const MlaParts parts) {
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ RunnerState states[kRunners];
  __shared__ uint64_t asked;
  const uint32_t padding = (1024 - SharedAddress(shared) % 1024) % 1024;
  const uint32_t base = SharedAddress(shared) + padding;
  int32_t* prefix = reinterpret_cast<int32_t*>(shared + padding + kRunners * kRunnerBytes);
  if (threadIdx.x == 0) {
    PrefetchTensorMap(&maps.absorbed);
    PrefetchTensorMap(&maps.queries);
    PrefetchTensorMap(&maps.cells);
    BarrierInit(SharedAddress(&asked), 1);
    for (RunnerState& state : states) {
      BarrierInit(SharedAddress(&state.query_full), 1);
      BarrierInit(SharedAddress(&state.query_empty), kRunnerWarps);
      for (int box = 0; box < kBoxes; ++box) {
        BarrierInit(SharedAddress(&state.cell_full[box]), 1);
        BarrierInit(SharedAddress(&state.cell_empty[box]), kRunnerWarps);
      }
    }
    BarrierInitFence();
  }
  const int sequences = p.counts[1];
  constexpr MlaShare kAll = {std::numeric_limits<int>::max(), false};
  ScanTiles<DecodeTiling, true>(p, sequences, kAll, prefix, parts.prefix);

  const bool produces = threadIdx.x < kProducers;
  const int runner =
      Uniform(produces ? threadIdx.x / kWarp : (threadIdx.x - kProducers) / kRunnerThreads);
  // All blocks' first runners, then all blocks' second ones: few steps go to as many blocks.
  MlaItems<DecodeTiling, true> items(prefix, sequences, runner * gridDim.x + blockIdx.x,
                                     kRunners * gridDim.x);
  const RunnerPlace place(base, runner);
  if (produces) {
    RegistersGive<40>();
    if (runner < kRunners && threadIdx.x % kWarp == 0) {
      Produce(p, maps, box_rows, runner, asked, states[runner], place, items);
    }
  } else {
    RegistersTake<232>();
    uint8_t* cells = shared + padding + runner * kRunnerBytes;
    uint32_t parity = 0;
    uint32_t query_parity = 0;
    DependencyStart();
    MlaItem item;
    while (items.Next(p, item)) {
      ConsumeItem(p, item, states[runner], place, cells, runner, query_parity, parity, latents,
                  parts.parts);
      query_parity ^= 1;
    }
  }
}

}  // namespace

bool TakesMlaDecode(const MlaParams& p) { return p.tokens <= p.sequences && p.heads <= kRows; }

void RunMlaDecode(cudaStream_t stream, int sm_count, const MlaParams& p, BFloat16* latents,
                  void* scratch) {
  const MlaParts parts(scratch, sm_count);
  const int64_t rows = static_cast<int64_t>(p.tokens) * p.heads;
  const int64_t query_size = p.plain + p.rope;
  const int box_rows = p.block_size % kStep == 0 ? kStep : std::min(kStep / 2, p.block_size);
  const Maps maps = {
      .absorbed = MakeTensorMap(latents, DType::kBF16, rows, kLatent, kLatent, kRows),
      .queries = MakeTensorMap(p.queries, DType::kBF16, rows, query_size, query_size, kRows),
      .cells = MakeTensorMap(p.cells, DType::kBF16, p.cache_blocks * p.block_size, kLatent + kRope,
                             kLatent + kRope, box_rows)};
  const int bytes = kRunners * kRunnerBytes + 1024 + (p.sequences + 1) * 4;
  CUDA_CHECK(
      cudaFuncSetAttribute(MlaDecodeKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  LaunchAfter(MlaDecodeKernel, dim3(static_cast<unsigned>(sm_count)), kThreads, bytes, stream, maps,
              p, box_rows, latents, parts);
  if (!TakesMlaFewTokens(p)) CombineMlaParts<DecodeTiling>(stream, sm_count, p, latents, parts);
}

}  // namespace glm::cuda
