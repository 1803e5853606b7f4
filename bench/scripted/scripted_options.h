// What a scripted worker is, and what it has seen: scripted_worker.h says what it does.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bench/scripted/script.h"

namespace glm::bench {

struct ScriptedWorkerOptions {
  std::string host = "127.0.0.1";
  int32_t port = 0;  // 0: one that is free
  std::string model_name = "scripted";
  int32_t vocabulary = 1000;
  int32_t length_max = 131'072;
  int32_t block_size = 64;
  int64_t kv_blocks_total = 8192;  // also of the prefix cache
  int32_t sequences_max = 256;
  std::vector<int32_t> eos_ids;  // never answered
  int32_t answer_ids_begin = 3;  // answers are of ids in [begin, end)
  int32_t answer_ids_end = 0;    // 0: the vocabulary
  bool prefix_caching = true;
  std::string prefix_hash_key;  // 32 hex digits; empty: the public key
  Script script;
};

/// What a worker has seen and done since its start.
struct ScriptedSeen {
  int64_t sessions = 0;  // open now
  int64_t submits = 0;
  int64_t cancels = 0;
  int64_t live = 0;           // requests submitted and not ended
  int64_t tokens = 0;         // sent
  int64_t prompt_tokens = 0;  // of prompts, cached ones included
  int64_t cached_tokens = 0;  // of those
  int64_t snapshots = 0;
  int64_t snapshot_bytes = 0;  // of the frames of all of them
  int64_t overflows = 0;       // sessions ended since their router did not read
};

}  // namespace glm::bench
