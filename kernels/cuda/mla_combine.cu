// Adds the parts of the tiles that mla_sm90.cu and mla_decode_sm90.cu split along the cache, where
// the expansion (mla_few_tokens.cu) does not do it.

#include <algorithm>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/launch_after.h"
#include "kernels/cuda/mla_tiles.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/warp.cuh"

namespace glm::cuda {
namespace {

constexpr int kCombineRowThreads = kLatent / kCombineColumns;
constexpr int kCombineRows = 2;  // of a block, side by side
constexpr int kCombineThreads = kCombineRows * kCombineRowThreads;
constexpr int kBlocksPerSm = 4;  // of those that run side by side

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

/// A token a row of blocks, which share its heads: where few tokens are in the step.
template <typename Tiling>
__global__ void __launch_bounds__(kCombineThreads)
    CombineTokensKernel(const MlaParams p, int runners, BFloat16* latents,
                        const MlaParts split_parts) {
  DependencyStart();
  const int token = blockIdx.x;
  const int32_t* prefix = split_parts.prefix;
  const SplitToken<Tiling> place(p, prefix, runners, token);
  const int column = threadIdx.x % kCombineRowThreads * kCombineColumns;
  for (int head = blockIdx.y * kCombineRows + threadIdx.x / kCombineRowThreads; head < p.heads;
       head += gridDim.y * kCombineRows) {
    const SplitRow split = place.Row(p, prefix, head);
    if (split.row < 0) continue;
    *reinterpret_cast<uint2*>(latents + split.target * kLatent + column) =
        AddParts<Tiling>(split_parts.parts, split, place.run, column);
  }
}

/// Two rows of the tile that run blockIdx.x ends in: of the rows of prompts, which are many, none
/// is split.
template <typename Tiling>
__global__ void __launch_bounds__(kCombineThreads)
    CombineTilesKernel(const MlaParams p, int runners, BFloat16* latents,
                       const MlaParts split_parts) {
  DependencyStart();
  const int32_t* prefix = split_parts.prefix;
  const int run = Tiling::RunOf(prefix[p.counts[1]], runners);
  const SplitRow split = FindRow<Tiling>(
      p, prefix, run, blockIdx.x, blockIdx.y * kCombineRows + threadIdx.x / kCombineRowThreads);
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
  const int head_blocks = (p.heads + kCombineRows - 1) / kCombineRows;
  const int slots = kBlocksPerSm * sm_count;
  if (p.tokens <= slots) {
    const int share = std::clamp(slots / p.tokens, 1, head_blocks);
    combine(CombineTokensKernel<Tiling>,
            dim3(static_cast<unsigned>(p.tokens), static_cast<unsigned>(share)));
  } else {
    combine(CombineTilesKernel<Tiling>,
            dim3(static_cast<unsigned>(runners), Tiling::kRows / kCombineRows));
  }
}

template void CombineMlaParts<WideTiling>(cudaStream_t, int, const MlaParams&, BFloat16*,
                                          const MlaParts&);
template void CombineMlaParts<DecodeTiling>(cudaStream_t, int, const MlaParams&, BFloat16*,
                                            const MlaParts&);

}  // namespace glm::cuda
