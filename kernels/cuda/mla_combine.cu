// Adds the parts of the tiles that mla_sm90.cu and mla_decode_sm90.cu split along the cache, where
// the expansion (mla_few_tokens.cu) does not do it.

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

/// A row of the tile that is first split where run `runner` ends.
template <typename Tiling>
__device__ __forceinline__ SplitRow FindRow(const MlaParams& p, const int32_t* prefix, int run,
                                            int runner, int row) {
  const int sequences = p.counts[1];
  const int boundary = (runner + 1) * run;
  if (boundary >= prefix[sequences]) return SplitRow{};
  const int s = SequenceAt(prefix, sequences, boundary);
  const int tile = (boundary - prefix[s]) / MlaSequence<Tiling>(p, s).steps();
  SplitRow found = SplitRowOf<Tiling>(p, prefix, s, run, tile, row);
  if (found.first_runner != runner) found.row = -1;
  return found;
}

/// Adds the parts of the rows of split tiles. kByRows: a block has 4 rows of the step, where few
/// are in it. Else 4 rows of the tile that run blockIdx.x ends in: of the rows of prompts, which
/// are many, none is split.
template <typename Tiling, bool kByRows>
__global__ void __launch_bounds__(kCombineThreads)
    CombineKernel(const MlaParams p, int runners, BFloat16* latents, const MlaParts split_parts) {
  DependencyStart();
  const int32_t* prefix = split_parts.prefix;
  const int run = Tiling::RunOf(prefix[p.counts[1]], runners);
  const int within = threadIdx.x / kCombineRowThreads;
  SplitRow split;
  if constexpr (kByRows) {
    split = SplitRowOf<Tiling>(p, prefix, run, blockIdx.x * kCombineRows + within);
  } else {
    split = FindRow<Tiling>(p, prefix, run, blockIdx.x, blockIdx.y * kCombineRows + within);
  }
  if (split.row < 0) return;
  const int column = threadIdx.x % kCombineRowThreads * kCombineColumns;
  *reinterpret_cast<uint2*>(latents + split.target * kLatent + column) =
      AddParts<Tiling>(split_parts.parts, split, run, column);
}

}  // namespace

int64_t MlaPartsBytes(int sm_count) {
  return (MlaParts::PartFloats(sm_count) + kSequencesMax + 1) * static_cast<int64_t>(sizeof(float));
}

template <typename Tiling>
void CombineMlaParts(cudaStream_t stream, int sm_count, const MlaParams& p, BFloat16* latents,
                     const MlaParts& split) {
  const int runners = sm_count * Tiling::kRunners;
  const auto combine = [&](auto kernel, dim3 grid) {
    LaunchAfter(kernel, grid, kCombineThreads, 0, stream, p, runners, latents, split);
  };
  const int64_t row_blocks =
      (static_cast<int64_t>(p.tokens) * p.heads + kCombineRows - 1) / kCombineRows;
  constexpr int kTileBlocks = Tiling::kRows / kCombineRows;
  if (row_blocks <= int64_t{runners} * kTileBlocks) {
    combine(CombineKernel<Tiling, true>, dim3(static_cast<unsigned>(row_blocks)));
  } else {
    combine(CombineKernel<Tiling, false>, dim3(static_cast<unsigned>(runners), kTileBlocks));
  }
}

template void CombineMlaParts<WideTiling>(cudaStream_t, int, const MlaParams&, BFloat16*,
                                          const MlaParts&);
template void CombineMlaParts<DecodeTiling>(cudaStream_t, int, const MlaParams&, BFloat16*,
                                            const MlaParts&);

}  // namespace glm::cuda
