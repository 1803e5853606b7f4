// glmserve-bench router: what a real router process costs, in front of scripted workers that cost
// next to nothing.
//
// The router is a process of its own; clients and workers share this one, so the router's processor
// time and memory can be told apart from theirs. Rates are given by second of the router's
// processor time ("per core"): on a small machine clients and workers take most of it.
//   chat     short chats, not streamed: `chat_tokens` in, 1 out, answered by the worker at once.
//            First as many as go through, then a quarter of that rate at even times: latency
//            from the time at which a request was due
//   streams  `streams` open streams at `stream_tokens_per_s` each: events, gaps between them
//   memory   resident bytes of the router for each open stream
//   idle     `idle_workers` workers without requests: processor time and memory
// chat and streams run once for each of `policies`, one right after the other.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace glm::bench {

struct RouterBenchOptions {
  std::string router;  // the program; empty: glmserve-router beside this one
  std::string model;   // folder of the tokenizer and the chat template
  std::string only;    // chat, streams, memory, idle, or a part of a name; empty: all
  std::vector<std::string> policies = {"least-load", "prefix"};
  int32_t loop_threads = 1;  // of the router
  int32_t workers = 4;
  double seconds = 10;  // of each measurement
  int32_t chat_tokens = 200;
  int32_t chat_connections = 32;
  std::vector<int32_t> streams = {500, 1000, 2000};
  double stream_tokens_per_s = 50;
  int32_t memory_streams = 4000;
  int32_t idle_workers = 1000;

  absl::Status Validate() const;
};

/// One JSON line a measurement on stdout.
absl::Status RunRouterBench(const RouterBenchOptions& options);

}  // namespace glm::bench
