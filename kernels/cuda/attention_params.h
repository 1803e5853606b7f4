// What the attention kernels share: the step, the queries, the cache, the output.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/dtype.h"

namespace glm::cuda {

struct AttentionParams {
  const int32_t* counts;
  const int32_t* positions;     // [T]
  const int32_t* query_starts;  // [S + 1]
  const int32_t* kv_lengths;    // [S]
  const int32_t* block_tables;  // [S, blocks_max]
  int64_t block_tables_stride;
  const BFloat16* queries;  // [T, N * D]
  int64_t queries_stride;
  const void* keys;    // BF16 or F8E4M3 [B, K, P, D]
  const void* values;  // as keys
  bool fp8;            // keys and values are
  int64_t cache_blocks;
  int block_size;
  int kv_heads;
  int heads_per_kv;
  float scale_log2;   // of q.k, times log2(e) and the scale of FP8 keys
  float value_scale;  // of FP8 values; else 1
  BFloat16* out;      // [T, N * D]
  int64_t out_stride;
  int sequences;  // S, padded
  int tokens;     // T, padded
};

/// Sequences whose step has more than this many (token, head of one kv head) rows are prefill's.
inline constexpr int kDecodeRowsMax = 64;

/// Sequences of more than `rows_min` rows. True when the shapes suit: a BF16 cache, head size 64 or
/// 128, blocks of 8 to 128 positions.
bool TakesPrefillAttention(const AttentionParams& params, int head_size);
void RunPrefillAttention(cudaStream_t stream, int sm_count, const AttentionParams& params,
                         int head_size, int rows_min);

/// Any step, each sequence's rows 16 at a time; sequences of more than `rows_max` rows are left
/// out. `scratch`: DecodeScratchBytes(); `counters`: DecodeBlocks() zeroed words, left zero.
void RunDecodeAttention(cudaStream_t stream, int sm_count, const AttentionParams& params,
                        int head_size, int rows_max, void* scratch, int32_t* counters);
int DecodeBlocks(int sm_count);
int64_t DecodeScratchBytes(int sm_count, int64_t head_size);

}  // namespace glm::cuda
