// The two grouped GEMMs of an expert layer.
//
// Who calls: moe_experts.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/dtype.h"

namespace glm::cuda {

enum class MoeScales : uint8_t { kNone, kChannel, kBlock };
/// Which of the two GEMMs a launch computes.
enum class MoePhases : uint8_t { kGateUp, kDown, kBoth };

struct MoeGemmParams {
  MoePhases phases;
  const int32_t* counts;
  const int32_t* pair_order;     // [T * k]
  const int32_t* expert_starts;  // [E + 1]
  int tokens;                    // T, padded
  int experts;                   // E, routed ones
  int shared_experts;            // 0 or 1
  int experts_per_token;         // k, routed ones
  int width;                     // M
  int hidden;                    // H
  int pair_rows;  // T * (k + s): rows of h and y; those of the shared expert are last
  // Columns of y that down computes: `outputs` from `first_output` on, a multiple of 8. Its last
  // tiles may write columns behind them, with the right values. For gate+up first_output is 0.
  int first_output;
  int outputs;

  const uint8_t* in;  // [T, H]
  int64_t in_row_bytes;
  const float* in_scales;       // fp8: [T] or [T, H/128]
  const float* row_scales;      // fp8, with MoeNeedsRows() and channel scales: in_scales by place
  const float* gate_up_scales;  // fp8: [E+s, 2M] or [E+s, 2M/128, H/128]
  const float* down_scales;     // fp8: [E+s, H] or [E+s, H/128, M/128]

  uint8_t* h;  // [pair_rows, M] by place in pair_order
  int64_t h_row_bytes;
  float* h_scales;  // fp8: [M/128, pair_rows]
  void* y;          // [pair_rows, H] by pair number: float, or bf16 with MoeWideTiles()
  // Of a launch of both: MoeProgressWords() words that are zero, and are left so. How many
  // warpgroups are done with the whole launch, then for each expert how many parts of h there are.
  int32_t* progress;
};

/// What comes through the copy engine, with the rows of a box.
struct MoeGemmMaps {
  CUtensorMap gate_up;  // 128
  CUtensorMap rows;     // the tokens by place, MoeTokenBox(); unless MoeNeedsRows() as they are, 1
  CUtensorMap down;     // 128
  CUtensorMap h;        // MoeTokenBox()
};

/// h = silu(gate) * up for every pair, y = down . h for every pair, or both.
void RunMoeGemms(cudaStream_t stream, int sm_count, MoeScales scales, const MoeGemmMaps& maps,
                 const MoeGemmParams& params);
constexpr int64_t MoeProgressWords(int64_t experts) { return 1 + experts; }
/// Tokens that a tile of these GEMMs has: 16, 64 or 128.
int MoeTokenTile(const MoeGemmParams& params, MoeScales scales);
/// Rows of h or of the tokens that come as one box: a wide tile takes two, or one at the ragged end
/// of an expert.
constexpr int MoeTokenBox(int token_tile) { return token_tile < 64 ? token_tile : 64; }
/// Whether tokens must lie in the order of their places; small tiles fetch each row by itself.
constexpr bool MoeNeedsRows(int token_tile) { return token_tile > 16; }
/// Whether y is bf16: at prefill, writing and reading it as float took 40 % of the time of both
/// GEMMs.
constexpr bool MoeWideTiles(int token_tile) { return token_tile == 128; }

}  // namespace glm::cuda
