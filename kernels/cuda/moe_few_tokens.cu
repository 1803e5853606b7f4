// An expert layer of at most 8 tokens and 32 choices: two kernels that stream weights as
// small_gemm.cu does.
//
// The grouped GEMMs (moe_gemm_sm90.cu) give a block 128 rows of an expert. One token of a rank that
// has an eighth of the 355B has 18 such tiles for 132 blocks, one of Flash has 60: most of the
// device stands still. Here a block has 8 rows of gate and the same 8 of up, which are the 16 rows
// of one mma, so that both meet in one thread; down's blocks have 16 columns of the output and walk
// all experts that are chosen, so that the weighted sum needs no kernel of its own. Column n of
// every product is token n, zeros where it has not chosen the expert.
//
// Which experts are chosen, every warp finds for itself: lane i holds choice i, and a match over
// the warp tells which lanes have the same one. It needs none of the lists that moe_route makes.
//
// h lies between the two kernels as floats. Down's blocks quantise it on the way to shared memory,
// each for itself, since a scale is of 128 columns and a block of gate+up has 8. By then they have
// asked for their first weights: what tells which, the choices, was written two kernels before.

#include "kernels/cuda/moe_few_tokens.h"

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/launch_after.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/warp.cuh"
#include "kernels/cuda/weight_slices.cuh"

namespace glm::cuda {
namespace {

constexpr int kGateRows = kRowTile / 2;  // of gate, and as many of up, that a block has
constexpr int kGroup = 128;              // columns of h that share a scale
constexpr int kDownAhead = 2;
constexpr int kChosenMax = kWarp + 1;      // experts, with the shared one
constexpr int kTileRows = 128;             // of an expert, that a block of the grouped GEMMs has
constexpr int kSharedBytesMax = 40 << 10;  // with the sums of 16 warps what needs no asking for

/// The choices of all tokens, choice `lane` in each lane of a warp.
struct Choices {
  int expert;       // -1: there is no such choice
  uint32_t same;    // choices of the same expert
  uint32_t firsts;  // the first choice of each expert, in all lanes the same

  __device__ Choices(const MoeGemmParams& p, const MoeFewTokens& few, int tokens, int lane) {
    const bool valid = lane < tokens * p.experts_per_token;
    // Not by way of L1, which may hold the last layer's where this is read before a wait.
    expert = valid ? __ldcg(few.expert_ids + lane) : -1;
    same = __match_any_sync(kAllLanes, expert);
    firsts = __ballot_sync(kAllLanes, valid && __ffs(same) - 1 == lane);
  }

  /// The first choice of the index-th expert that is chosen; past these is the shared one.
  __device__ int FirstOf(const MoeGemmParams& p, int index) const {
    uint32_t left = firsts;
    for (int i = 0; i < index; ++i) left &= left - 1;
    return left == 0 ? p.tokens * p.experts_per_token : __ffs(left) - 1;
  }
};

/// An expert and who has chosen it: bit i of `choices` is choice i. All ones, which no expert's can
/// be since a token's choices differ: all tokens, the shared expert.
struct Chosen {
  int expert;
  uint32_t choices;

  /// A whole warp, each lane with its own `first`: a choice, or what is past all of them.
  __device__ Chosen(const MoeGemmParams& p, const Choices& all, int first) {
    expert = __shfl_sync(kAllLanes, all.expert, first % kWarp);
    choices = __shfl_sync(kAllLanes, all.same, first % kWarp);
    if (first >= p.tokens * p.experts_per_token) {
      expert = p.experts;
      choices = kAllLanes;
    }
  }

  /// The row of h of token `token`; -1: it has not chosen this expert.
  __device__ int RowOf(const MoeGemmParams& p, int tokens, int token) const {
    if (token >= tokens) return -1;
    if (choices == kAllLanes) return p.tokens * p.experts_per_token + token;
    const int first = token * p.experts_per_token;
    const uint32_t own = choices >> first & ((1u << p.experts_per_token) - 1);
    return own == 0 ? -1 : first + __ffs(own) - 1;
  }
};

/// Who holds a value of a 16 x 8 product: element `slot` of lane `lane`.
struct MmaPlace {
  int slot;
  int lane;
  __device__ MmaPlace(int row, int column)
      : slot(row / 8 * 2 + column % 2), lane(row % 8 * 4 + column / 2) {}
};

/// The sum over warps, in their order, of one value of a product.
template <int kWarps>
__device__ __forceinline__ float SumOfWarps(const float (&partial)[kWarps][4][kWarp],
                                            const MmaPlace& place) {
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += partial[w][place.slot][place.lane];
  return sum;
}

/// h = silu(gate) * up, in float. Block (x, y): rows 8x .. 8x + 7 of the expert of choice y, which
/// must be its first; the block behind all choices is the shared expert's.
template <bool kFp8, int kWarps, int kUnroll>
__global__ void __launch_bounds__(kWarps* kWarp, 16 / kWarps)
    GateUpKernel(const MoeGemmParams p, const MoeFewTokens few) {
  constexpr int kStride = kWarps * kSliceBytes;
  __shared__ float partial[kWarps][4][kWarp];
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int group = lane / 4;
  const int quad = lane % 4;
  DependencyStart();
  const int tokens = p.counts[0];
  const Choices all(p, few, tokens, lane);
  const int choice = static_cast<int>(blockIdx.y);
  const bool shared = choice >= p.tokens * p.experts_per_token;
  if (!shared && (all.firsts >> choice & 1) == 0) return;
  const Chosen chosen(p, all, choice);

  const int depth_bytes = p.hidden * (kFp8 ? 1 : 2);
  const int row0 = static_cast<int>(blockIdx.x) * kGateRows;
  const uint8_t* gate_row =
      few.gate_up +
      (static_cast<int64_t>(chosen.expert) * 2 * p.width + row0 + group) * depth_bytes;
  const uint8_t* up_row = gate_row + static_cast<int64_t>(p.width) * depth_bytes;
  const bool own_token = chosen.RowOf(p, tokens, group) >= 0;
  const uint8_t* token_row = p.in + (own_token ? group : 0) * p.in_row_bytes;

  // What the end needs: one value of h a thread.
  const int row = threadIdx.x % kGateRows;
  const int token = threadIdx.x / kGateRows;
  const int h_row = token < kTokenTile ? chosen.RowOf(p, tokens, token) : -1;
  float gate_scale = 1;
  float up_scale = 1;
  if (kFp8 && h_row >= 0) {
    const float* scales =
        p.gate_up_scales + static_cast<int64_t>(chosen.expert) * 2 * p.width + row0 + row;
    const float token_scale = p.in_scales[token];
    gate_scale = scales[0] * token_scale;
    up_scale = scales[p.width] * token_scale;
  }

  float sums[4] = {};
  WeightSlices<kUnroll, kStride, false> weights;
  for (int k = warp * kSliceBytes; k < depth_bytes; k += kUnroll * kStride) {
    weights.Load(gate_row, up_row, k + quad * 16, depth_bytes);
    uint4 tokens_of[kUnroll][2];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = k + u * kStride + half * 64 + quad * 16;
        tokens_of[u][half] = LoadToken<true>(token_row + at, own_token && at < depth_bytes);
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      MultiplySlice<kFp8>(sums, weights.low[u], weights.high[u], tokens_of[u]);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) partial[warp][i][lane] = sums[i];
  __syncthreads();
  if (h_row < 0) return;
  const float gate = SumOfWarps(partial, MmaPlace(row, token)) * gate_scale;
  const float up = SumOfWarps(partial, MmaPlace(row + kGateRows, token)) * up_scale;
  static_cast<float*>(p.y)[static_cast<int64_t>(h_row) * p.width + row0 + row] =
      SiluMulOne(gate, up);
}

/// h as down multiplies it, in a block's shared memory.
template <bool kFp8>
struct HiddenRows {
  static constexpr int kElementBytes = kFp8 ? 1 : 2;
  int groups;      // of kGroup columns
  int pitch;       // bytes of a row
  float* factors;  // [pair_rows, groups]: scale of h times the expert's weight
  uint8_t* values;

  __host__ __device__ HiddenRows(const MoeGemmParams& p, uint8_t* shared)
      : groups((p.width + kGroup - 1) / kGroup),
        pitch(groups * kGroup * kElementBytes + 16),
        factors(reinterpret_cast<float*>(shared)),
        values(shared + (p.pair_rows * groups * 4 + 15) / 16 * 16) {}
  __host__ __device__ int64_t Bytes(const MoeGemmParams& p) const {
    return values - reinterpret_cast<uint8_t*>(factors) + static_cast<int64_t>(p.pair_rows) * pitch;
  }

  /// A warp takes 128 columns of a row.
  __device__ void Fill(const MoeGemmParams& p, const MoeFewTokens& few, int tokens,
                       int warps) const {
    const int lane = threadIdx.x % kWarp;
    const int routed = tokens * p.experts_per_token;
    const int rows = routed + (p.shared_experts != 0 ? tokens : 0);
    for (int unit = threadIdx.x / kWarp; unit < rows * groups; unit += warps) {
      const int group = unit % groups;
      const int valid_row = unit / groups;
      const int row =
          valid_row < routed ? valid_row : p.tokens * p.experts_per_token + valid_row - routed;
      const float weight = valid_row < routed ? few.expert_weights[row] : 1.0f;
      const int column = group * kGroup + lane * 4;
      float4 h = {0, 0, 0, 0};
      if (column < p.width) {
        h = *reinterpret_cast<const float4*>(static_cast<const float*>(p.y) +
                                             static_cast<int64_t>(row) * p.width + column);
      }
      uint8_t* target = values + row * pitch + column * kElementBytes;
      float scale = 1;
      if constexpr (kFp8) {
        scale =
            Fp8Scale(WarpMax(fmaxf(fmaxf(fabsf(h.x), fabsf(h.y)), fmaxf(fabsf(h.z), fabsf(h.w)))));
        const float inverse = 1.0f / scale;
        *reinterpret_cast<uint32_t*>(target) =
            PackFp8x4(h.x * inverse, h.y * inverse, h.z * inverse, h.w * inverse);
      } else {
        *reinterpret_cast<uint2*>(target) = uint2{PackBf16(h.x, h.y), PackBf16(h.z, h.w)};
      }
      if (lane == 0) factors[row * groups + group] = scale * weight;
    }
  }
};

/// The experts that are chosen, in a block's shared memory.
struct ChosenTable {
  int32_t experts[kChosenMax];
  int8_t rows[kChosenMax][kTokenTile];  // of h; -1: the token has not chosen it

  /// All threads of the block, which must meet before anyone reads.
  __device__ void Fill(const MoeGemmParams& p, const Choices& all, int tokens, int count) {
    const int lane = threadIdx.x % kWarp;
    for (int begin = threadIdx.x - lane; begin < count * kTokenTile; begin += blockDim.x) {
      const int index = (begin + lane) / kTokenTile;
      const int token = (begin + lane) % kTokenTile;
      const Chosen chosen(p, all, all.FirstOf(p, index));
      if (index >= count) continue;
      rows[index][token] = static_cast<int8_t>(chosen.RowOf(p, tokens, token));
      if (token == 0) experts[index] = chosen.expert;
    }
  }
};

/// Where a warp stands among the slices of k of the experts, expert after expert.
struct DownPlace {
  int index;  // of the expert
  int slice;

  __device__ DownPlace(int item, int slices) : index(item / slices), slice(item % slices) {}
  /// `by`: a number of items.
  __device__ __forceinline__ void Advance(const DownPlace& by, int slices) {
    index += by.index;
    slice += by.slice;
    if (slice >= slices) {
      slice -= slices;
      ++index;
    }
  }
};

/// A lane's part of one slice of 16 rows of down.
template <bool kFp8>
struct DownSlice {
  uint4 low[2];
  uint4 high[2];
  float row_scales[2];
  DownPlace place;

  __device__ __forceinline__ DownSlice(const MoeGemmParams& p, const MoeFewTokens& few,
                                       const ChosenTable& chosen, int count,
                                       const DownPlace& place_in, int lane)
      : place(place_in) {
    if (place.index >= count) return;
    const int row_bytes = p.width * (kFp8 ? 1 : 2);
    const int64_t row = static_cast<int64_t>(chosen.experts[place.index]) * p.hidden +
                        static_cast<int64_t>(blockIdx.x) * kRowTile + lane / 4;
    const uint8_t* low_row = few.down + row * row_bytes;
    const uint8_t* high_row = low_row + 8 * row_bytes;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = place.slice * kSliceBytes + half * 64 + lane % 4 * 16;
      low[half] = LoadWeight<true>(low_row + at, at < row_bytes);
      high[half] = LoadWeight<true>(high_row + at, at < row_bytes);
    }
    row_scales[0] = kFp8 ? p.down_scales[row] : 1.0f;
    row_scales[1] = kFp8 ? p.down_scales[row + 8] : 1.0f;
  }
};

/// out[t] = sum of weight * down . h over the experts of t. Block x: columns 16x .. 16x + 15.
template <bool kFp8, int kWarps>
__global__ void __launch_bounds__(kWarps* kWarp, kWarps == 8 ? 3 : 1)
    DownKernel(const MoeGemmParams p, const MoeFewTokens few) {
  extern __shared__ __align__(16) uint8_t shared[];
  __shared__ float partial[kWarps][4][kWarp];
  __shared__ ChosenTable chosen;
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int group = lane / 4;
  const int quad = lane % 4;
  // Nothing of this is gate+up's, which waited for whoever wrote it.
  const int tokens = __ldcg(p.counts);
  const Choices all(p, few, tokens, lane);
  const int count = __popc(all.firsts) + p.shared_experts;
  chosen.Fill(p, all, tokens, count);
  const HiddenRows<kFp8> hidden(p, shared);
  const int row_bytes = p.width * HiddenRows<kFp8>::kElementBytes;
  const int slices = (row_bytes + kSliceBytes - 1) / kSliceBytes;
  const DownPlace by(kWarps, slices);
  DownPlace next(warp, slices);
  __syncthreads();
  const auto load_next = [&] {
    const DownSlice<kFp8> slice(p, few, chosen, count, next, lane);
    next.Advance(by, slices);
    return slice;
  };
  DownSlice<kFp8> ahead[kDownAhead] = {load_next(), load_next()};
  DependencyStart();
  hidden.Fill(p, few, tokens, kWarps);
  __syncthreads();

  float sums[4] = {};
  for (bool more = true; more;) {
#pragma unroll
    for (int u = 0; u < kDownAhead; ++u) {
      const DownSlice<kFp8>& now = ahead[u];
      const DownPlace at = now.place;
      more = at.index < count;
      if (!more) break;
      const int8_t* rows = chosen.rows[at.index];
      const int own = rows[group];
      uint4 token[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int byte = at.slice * kSliceBytes + half * 64 + quad * 16;
        token[half] = uint4{0, 0, 0, 0};
        if (own >= 0 && byte < row_bytes) {
          token[half] = *reinterpret_cast<const uint4*>(hidden.values + own * hidden.pitch + byte);
        }
      }
      float fresh[4] = {};
      MultiplySlice<kFp8>(fresh, now.low, now.high, token);
      const int h_group = at.slice * kSliceBytes / HiddenRows<kFp8>::kElementBytes / kGroup;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int row = rows[quad * 2 + c];
        const float factor = row < 0 ? 0.0f : hidden.factors[row * hidden.groups + h_group];
        sums[c] += fresh[c] * (factor * now.row_scales[0]);
        sums[2 + c] += fresh[2 + c] * (factor * now.row_scales[1]);
      }
      ahead[u] = load_next();
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) partial[warp][i][lane] = sums[i];
  __syncthreads();
  const int row = threadIdx.x % kRowTile;
  const int token = threadIdx.x / kRowTile;
  if (token >= tokens) return;
  few.out[token * few.out_stride + blockIdx.x * kRowTile + row] =
      ToBFloat16(SumOfWarps(partial, MmaPlace(row, token)));
}

template <bool kFp8, int kWarps>
void RunGateUp(cudaStream_t stream, dim3 grid, const MoeGemmParams& p, const MoeFewTokens& few) {
  // How many slices a warp takes at once: no more than it has.
  const int slices = (p.hidden * (kFp8 ? 1 : 2) + kSliceBytes - 1) / kSliceBytes;
  const int of_warp = (slices + kWarps - 1) / kWarps;
  const auto kernel = of_warp <= 2       ? GateUpKernel<kFp8, kWarps, 2>
                      : of_warp % 5 == 0 ? GateUpKernel<kFp8, kWarps, 5>
                                         : GateUpKernel<kFp8, kWarps, 4>;
  LaunchAfter(kernel, grid, kWarps * kWarp, 0, stream, p, few);
}

template <bool kFp8>
void Run(cudaStream_t stream, int sm_count, const MoeGemmParams& p, const MoeFewTokens& few) {
  const dim3 grid(static_cast<unsigned>(p.width / kGateRows),
                  static_cast<unsigned>(p.tokens * p.experts_per_token + p.shared_experts));
  // Blocks that are all there at once may be large; else more small ones have more in flight.
  if (static_cast<int64_t>(grid.x) * grid.y <= 2 * sm_count) {
    RunGateUp<kFp8, 8>(stream, grid, p, few);
  } else {
    RunGateUp<kFp8, 4>(stream, grid, p, few);
  }

  const int tiles = p.hidden / kRowTile;
  const int bytes = static_cast<int>(HiddenRows<kFp8>(p, nullptr).Bytes(p));
  // Where each multiprocessor has one block, that must ask for enough.
  const auto down = [&](auto kernel, int warps) {
    LaunchAfter(kernel, dim3(static_cast<unsigned>(tiles)), warps * kWarp, bytes, stream, p, few);
  };
  if (tiles <= sm_count) {
    down(DownKernel<kFp8, 16>, 16);
  } else {
    down(DownKernel<kFp8, 8>, 8);
  }
}

}  // namespace

bool TakesMoeFewTokens(const MoeGemmParams& p, MoeScales scales, int sm_count) {
  if (scales == MoeScales::kBlock) return false;
  const bool fp8 = scales == MoeScales::kChannel;
  const int choices = p.tokens * p.experts_per_token;
  // With more tiles the grouped GEMMs are as fast or faster: wgmma takes fp8 as it is, where
  // mma.sync makes halves of it first (H200, fp8: Air, 1 token, 99 tiles, 54.8 us against 54.5; 2
  // tokens, 187 tiles, 90 against 95).
  const int tiles = (p.width + kTileRows - 1) / kTileRows * (choices + p.shared_experts);
  if (tiles > sm_count) return false;
  const int64_t shared_bytes =
      fp8 ? HiddenRows<true>(p, nullptr).Bytes(p) : HiddenRows<false>(p, nullptr).Bytes(p);
  return p.tokens <= kTokenTile && choices <= kWarp && p.experts_per_token < kWarp &&
         p.hidden % kRowTile == 0 && p.width * (fp8 ? 1 : 2) % 16 == 0 && p.width <= p.hidden &&
         shared_bytes <= kSharedBytesMax;
}

void RunMoeFewTokens(cudaStream_t stream, int sm_count, MoeScales scales,
                     const MoeGemmParams& params, const MoeFewTokens& few) {
  if (scales == MoeScales::kNone) {
    Run<false>(stream, sm_count, params, few);
  } else {
    Run<true>(stream, sm_count, params, few);
  }
}

}  // namespace glm::cuda
