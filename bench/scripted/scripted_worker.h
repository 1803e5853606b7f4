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
#include "bench/scripted/scripted_options.h"

namespace glm::bench {

class ScriptedService;

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
  class Stepper;
  ScriptedWorkers();

  std::unique_ptr<Stepper> stepper_;
  std::vector<std::unique_ptr<ScriptedService>> workers_;
};

}  // namespace glm::bench
