// What the latent attention kernels share: the step, the latent cache, the sums.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/dtype.h"

namespace glm::cuda {

struct MlaParams {
  const int32_t* counts;
  const int32_t* positions;     // [T]
  const int32_t* query_starts;  // [S + 1]
  const int32_t* kv_lengths;    // [S]
  const int32_t* token_sequences;
  const int32_t* block_tables;  // [S, blocks_max]
  int64_t block_tables_stride;
  const BFloat16* queries;  // [T, N * (nope + rope)], contiguous
  const void* cells;        // BF16 or F8E4M3 [B, 1, P, L + rope]
  const BFloat16* kv_up;    // [N, nope + v, L]
  float cell_scale;         // of an FP8 cache
  int64_t cache_blocks;
  int block_size;
  int heads;
  int plain;  // nope
  int rope;
  int value;
  int latent;
  float scale_log2;  // of q.k, times log2(e)
  int sequences;     // S, padded
  int tokens;        // T, padded
};

/// The kernels on wgmma: the latent of GLM-4.7-Flash (512 + 64), BF16 cells, blocks of 8, 16 or a
/// multiple of 32 positions. latents, BF16 [T * N, 512], in and out: the absorbed queries become
/// the rounded sums of p c. `parts`: MlaPartsBytes(). With TakesMlaFewTokens() rows that are split
/// along the cache stay in parts, for RunMlaExpansion.
bool TakesWideMla(const MlaParams& params, DType cache_dtype);
int64_t MlaPartsBytes(int sm_count);
/// `without_fresh`: leaves out prompts that begin in the step.
void RunWideMla(cudaStream_t stream, int sm_count, const MlaParams& params, bool without_fresh,
                BFloat16* latents, void* parts);
/// Of what TakesWideMla(), steps of no more tokens than sequences (padded) and at most 24 heads.
bool TakesMlaDecode(const MlaParams& params);
void RunMlaDecode(cudaStream_t stream, int sm_count, const MlaParams& params, BFloat16* latents,
                  void* parts);
/// The products with kv_up around it, for at most 4 tokens: latents, BF16 [T * N, 512] = the
/// absorbed queries, and out, [T, N * v] = the values of what RunWideMla or RunMlaDecode left in
/// `latents` and `parts`. More tokens: GEMMs.
bool TakesMlaFewTokens(const MlaParams& params);
void RunMlaAbsorption(cudaStream_t stream, const MlaParams& params, BFloat16* latents);
void RunMlaExpansion(cudaStream_t stream, int sm_count, const MlaParams& params,
                     const BFloat16* latents, void* parts, BFloat16* out, int64_t out_stride);

/// Whether sequences of a step may have more rows than this, so that prompts are worth their own
/// launch. With hardly more tokens than sequences they are not.
inline constexpr int kMlaSplitRowsMax = 256;
inline bool HasMlaPrompts(const MlaParams& params) {
  return params.tokens > 4 * params.sequences &&
         static_cast<int64_t>(params.tokens) * params.heads > kMlaSplitRowsMax;
}

/// The expanded form, for prompts that begin in the step, of more than `rows_min` rows: heads of
/// 192 + 64 and values of 256, as GLM-4.7-Flash has them.
bool TakesMlaPrefill(const MlaParams& params);
/// cells, [T, L + rope] = those of the step's tokens, of a BF16 cache.
void GatherCells(cudaStream_t stream, const MlaParams& params, BFloat16* cells);
/// expanded, [T, N * (nope + v)]: kv_up times the latents of `cells`. out, [T, N * v]: of the
/// tokens of those prompts. counters: two words that are zero, and are left so.
void RunMlaPrefill(cudaStream_t stream, int sm_count, const MlaParams& params, int rows_min,
                   const BFloat16* cells, const BFloat16* expanded, int32_t* counters,
                   BFloat16* out, int64_t out_stride);

/// Any sizes, a block a (token, head), absorption and values included: out, BF16 [T, N * v].
void RunPlainMla(cudaStream_t stream, const MlaParams& params, DType cache_dtype, BFloat16* out,
                 int64_t out_stride);

}  // namespace glm::cuda
