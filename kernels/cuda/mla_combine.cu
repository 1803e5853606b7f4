// Adds the parts of the tiles that WideMlaKernel (mla_sm90.cu) split along the cache, where the
// expansion (mla_few_tokens.cu) does not do it.

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/launch_after.h"
#include "kernels/cuda/mla_tiles.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/warp.cuh"

namespace glm::cuda {
namespace {

constexpr int kCombineRowThreads = kLatent / kCombineColumns;
constexpr int kCombineRows = 4;  // of a block, side by side
constexpr int kCombineThreads = kCombineRows * kCombineRowThreads;

/// kByRows: row blockIdx.x * 4 + `within` of the step's, where few rows are in it. Else a row of
/// the tile that is first split where run blockIdx.x ends: of the rows of prompts, which are many,
/// none is split.
template <bool kByRows>
__device__ __forceinline__ SplitRow FindRow(const MlaParams& p, const int32_t* prefix,
                                            int sequences, int run, int within) {
  if constexpr (kByRows) {
    return SplitRowOf(p, prefix, run, blockIdx.x * kCombineRows + within);
  } else {
    const int boundary = (blockIdx.x + 1) * run;
    if (boundary >= prefix[sequences]) return SplitRow{};
    const int s = SequenceAt(prefix, sequences, boundary);
    const int tile = (boundary - prefix[s]) / MlaSequence(p, s).steps();
    SplitRow found = SplitRowOf(p, prefix, s, run, tile, blockIdx.y * kCombineRows + within);
    if (found.first_block != static_cast<int>(blockIdx.x)) found.row = -1;
    return found;
  }
}

/// Adds the parts of the rows of split tiles.
template <bool kByRows>
__global__ void __launch_bounds__(kCombineThreads)
    CombineKernel(const MlaParams p, MlaShare share, int blocks, BFloat16* latents,
                  const float* parts) {
  __shared__ int32_t prefix[kSequencesMax + 1];
  DependencyStart();
  const int sequences = p.counts[1];
  ScanTiles<true>(p, sequences, share, prefix);
  const int run = RunOf(prefix[sequences], blocks);
  const SplitRow split =
      FindRow<kByRows>(p, prefix, sequences, run, threadIdx.x / kCombineRowThreads);
  if (split.row < 0) return;

  const int column = threadIdx.x % kCombineRowThreads * kCombineColumns;
  *reinterpret_cast<uint2*>(latents + split.target * kLatent + column) =
      AddParts(parts, split, run, column);
}

}  // namespace

void CombineMlaParts(cudaStream_t stream, int sm_count, const MlaParams& p, const MlaShare& share,
                     BFloat16* latents, const float* parts) {
  const auto combine = [&](auto kernel, dim3 grid) {
    LaunchAfter(kernel, grid, kCombineThreads, 0, stream, p, share, sm_count, latents, parts);
  };
  const int64_t row_blocks =
      (static_cast<int64_t>(p.tokens) * p.heads + kCombineRows - 1) / kCombineRows;
  constexpr int kTileBlocks = kRows / kCombineRows;
  if (row_blocks <= int64_t{sm_count} * kTileBlocks) {
    combine(CombineKernel<true>, dim3(static_cast<unsigned>(row_blocks)));
  } else {
    combine(CombineKernel<false>, dim3(static_cast<unsigned>(sm_count), kTileBlocks));
  }
}

}  // namespace glm::cuda
