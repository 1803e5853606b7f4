// A worker without an engine: it speaks proto/worker.proto on a real port, and how fast it is, and
// what is wrong with it, follows a script that may change at any moment. For load on routers, with
// thousands of streams, and for tests of whole clusters under faults.
//
// It steps as an engine does: one token for each running request a step, in one frame a session;
// prompts are computed in the order of their arrival, cached beginnings left out. What it answers
// is a function of the ids before a token alone (script.h, ScriptedAnswer), so that a request that
// goes on elsewhere must come to the same end. It refuses what it cannot do: logprobs.
//
// Threads: any thread calls; gRPC's threads read frames; one thread steps all workers of a group.
// One lock a worker.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
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

/// Workers of one process: each has its port, its cache and its script; one thread steps them all.
class ScriptedWorkers {
 public:
  /// `count` workers; with options.port not 0, on consecutive ports from there.
  static absl::StatusOr<std::unique_ptr<ScriptedWorkers>> Start(
      const ScriptedWorkerOptions& options, int32_t count);
  /// Stops listening and breaks all sessions.
  ~ScriptedWorkers();
  ScriptedWorkers(const ScriptedWorkers&) = delete;
  ScriptedWorkers& operator=(const ScriptedWorkers&) = delete;

  int32_t count() const;
  std::string address(int32_t worker) const;  // host:port
  Script script(int32_t worker) const;
  /// REQUIRES script.Validate().
  void SetScript(int32_t worker, const Script& script);
  /// Ends all sessions of the worker with UNAVAILABLE, as a lost connection does; routers may dial
  /// again at once.
  void BreakSessions(int32_t worker);
  /// As a process that dies and comes back: sessions broken, cache empty, a new incarnation.
  void Restart(int32_t worker);
  /// Puts so many blocks of made-up prompts into the worker's prefix cache.
  void FillCache(int32_t worker, int64_t blocks);
  int64_t cached_blocks(int32_t worker) const;
  ScriptedSeen seen(int32_t worker) const;
  ScriptedSeen seen() const;  // of all together

 private:
  class Worker;
  class Stepper;
  ScriptedWorkers();

  std::unique_ptr<Stepper> stepper_;
  std::vector<std::unique_ptr<Worker>> workers_;
};

}  // namespace glm::bench
