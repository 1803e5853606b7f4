// The engine: tokens in, tokens out. The only public face of the room.
//
// Who calls: the worker's service, from any thread. One engine thread owns all scheduling state and
// calls the sink; each rank has a thread of its own that owns its device. Submit and Cancel put a
// message in the inbox and return; the engine thread reads the inbox at the head of its next step.
#pragma once

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/options.h"
#include "engine/request.h"

namespace glm::engine {

class Engine {
 public:
  /// Called on the engine thread after each step that had something to say (events of requests, or
  /// of the prefix cache), in step order.
  /// Must not block, and must not call Stop.
  using Sink = std::function<void(StepEvents&&)>;

  /// Loads the checkpoint, plans all memory, starts the threads. INVALID_ARGUMENT for options or a
  /// checkpoint that is wrong, NOT_FOUND for a missing file, RESOURCE_EXHAUSTED for memory that
  /// does not suffice, each naming what and how much.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const EngineOptions& options, Sink sink);

  virtual ~Engine() = default;

  /// Takes a request. INVALID_ARGUMENT: names the field, value and limit (empty prompt, id outside
  /// the vocabulary, prompt + max_tokens over length_max, ...). RESOURCE_EXHAUSTED: the waiting
  /// queue is full. UNAVAILABLE: stopped. On OK the request will end exactly once in the sink.
  virtual absl::Status Submit(Request request) = 0;

  /// Ends a request with kCancelled at the next step's head; its blocks are free before that step
  /// runs, or, with two steps in flight, when the step that is already handed over is done.
  /// Unknown ids are ignored: the request may just have ended.
  virtual void Cancel(RequestId id) = 0;

  /// Asks for all that the prefix cache holds: it comes in the cache_snapshot of the next
  /// StepEvents, which the sink then gets without delay, in order with the cache's changes. Asked
  /// several times before that, it comes once. Empty where prefix caching is off; never after Stop.
  virtual void AskCacheSnapshot() = 0;

  virtual EngineStats Stats() const = 0;
  virtual const EngineShape& shape() const = 0;

  /// Cancels what runs, delivers the last events, joins the threads. Idempotent.
  virtual void Stop() = 0;
};

}  // namespace glm::engine
