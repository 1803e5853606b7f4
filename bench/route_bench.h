// glmserve-bench route: what the router's knowledge of the workers' caches costs, in memory and in
// time.
//
// The index is filled by `workers` workers with `blocks` blocks, in chains of `depth` blocks:
//   usual      a tenth of a chain is a beginning of four, held by seven of eight workers; the rest
//              is held by one, and to some length by up to two others: conversations
//   scattered  the eighth worker too has a part of each beginning; up to three others have more
//   worst      every worker holds every chain to a length of its own
// Of each is told what it takes in memory, and how long Depths takes with a chain's names given.
// With the usual one follow: the same while `writers` threads change `mixed_rate` blocks a second
// (mixed), and ClearWorker (forget). Then:
//   update     blocks stored and removed a second, by `writers` threads
//   decision   from token ids to a worker: names, Depths, ChooseWorker; for several prompt lengths
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace glm::bench {

struct RouteBenchOptions {
  int64_t blocks = 1'000'000;
  int32_t workers = 64;
  int32_t depth = 6250;       // blocks of a long chain
  int32_t block_size = 64;    // tokens of a block
  int32_t writers = 1;        // threads
  int32_t readers = 1;        // threads of `mixed`
  int32_t batch = 64;         // blocks of one change
  double mixed_rate = 5e6;    // blocks changed a second
  int64_t update_blocks = 0;  // blocks of the index of `update`; 0: as `blocks`
  std::string only;    // usual, scattered, worst, update, decision, or a part of a name; empty: all
  double seconds = 3;  // of each measurement

  absl::Status Validate() const;
};

/// One JSON line a measurement on stdout.
absl::Status RunRouteBench(const RouteBenchOptions& options);

}  // namespace glm::bench
