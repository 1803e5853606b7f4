// The worker's gRPC face: sessions of routers, frames to Engine::Submit and Cancel, events to
// frames.
//
// Threads: gRPC's own threads bring frames (OnReadDone); the engine thread brings StepEvents
// (Deliver); a thread of the service's own, "heartbeat", wakes when a session with live requests
// was sent nothing for a while, and tells it how the step under way is; and once more when all is
// quiet after changes of the prefix cache, with the cache's digest. Two locks, always taken in
// this order: Service::mutex_ over the table of live requests, then a session's out-buffer. Nothing
// waits for a slow router: a session whose out-buffer overflows is closed.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <thread>
#include <unordered_map>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "engine/engine.h"
#include "proto/base/mutex.h"
#include "proto/bearer_token.h"
#include "proto/worker.grpc.pb.h"
#include "worker/metrics.h"
#include "worker/options.h"

namespace glm::worker {

inline constexpr uint32_t kProtocolVersion = 1;

class Session;

class Service : public ::glmserve::worker::v1::Worker::CallbackService {
 public:
  /// Starts the heartbeat thread. `metrics` must outlive the service, and so must `tokens`, of
  /// which a router must show one; null: none is asked for.
  Service(const WorkerOptions& options, WorkerMetrics* metrics, const TokenFile* tokens = nullptr);
  ~Service() override;

  /// Sessions are refused with UNAVAILABLE before this. `engine` must outlive the service's use.
  void Attach(engine::Engine* engine);

  /// The engine's sink. Engine thread.
  void Deliver(engine::StepEvents&& events);

  /// From now on: every frame says draining, submits and sessions are refused with UNAVAILABLE.
  void StartDraining();

  /// Ends every session with UNAVAILABLE: the last step of a drain. No heartbeat comes after it.
  void CloseAll();

  /// Waits until no request is live, at most `timeout`. True when none is.
  bool AwaitIdle(std::chrono::milliseconds timeout);

  grpc::ServerBidiReactor<::glmserve::worker::v1::RouterFrame, ::glmserve::worker::v1::WorkerFrame>*
  Session(grpc::CallbackServerContext* context) override;

 private:
  friend class glm::worker::Session;
  using Clock = std::chrono::steady_clock;

  /// One request that the engine has and that has not ended.
  struct LiveRequest {
    std::shared_ptr<glm::worker::Session> session;
    uint64_t request_id = 0;  // the router's
    Clock::time_point submitted;
    Clock::time_point last_token;
    bool has_token = false;
  };

  /// Registers a session after its Hello. RESOURCE_EXHAUSTED past sessions_max or
  /// peer_sessions_max.
  absl::Status Open(const std::shared_ptr<glm::worker::Session>& session);
  /// Cancels all of the session's requests. The session gets no more frames.
  void Close(uint64_t session_number);
  void Submit(const std::shared_ptr<glm::worker::Session>& session,
              const ::glmserve::worker::v1::Submit& submit);
  void Cancel(uint64_t session_number, uint64_t request_id);
  /// The session gets the next snapshot of the prefix cache, in order with its changes.
  void AskCacheSnapshot(uint64_t session_number);
  void SendSnapshot(const engine::CacheSnapshot& snapshot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Status CheckRoom(const glm::worker::Session& session) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Register(const std::shared_ptr<glm::worker::Session>& session, uint64_t request_id,
                        engine::RequestId* engine_id);
  void Forget(engine::RequestId engine_id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Observe(const engine::RequestEvent& event, LiveRequest& live)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  ::glmserve::worker::v1::Welcome MakeWelcome() const;
  /// Writes `load` for this session: with the step times if they are news to it.
  void TellLoad(const engine::EngineLoad& load, glm::worker::Session* session,
                ::glmserve::worker::v1::Load* wire) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  void NoteCache(const engine::StepEvents& events) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // The heartbeat thread.
  void Beat();
  /// Sends the heartbeats that are due; when the next one may be.
  Clock::time_point SendHeartbeats(Clock::time_point now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const WorkerOptions options_;
  WorkerMetrics* const metrics_;
  const TokenFile* const tokens_;
  const uint64_t incarnation_;

  mutable Mutex mutex_;  // "live requests"
  /// Set once, by Attach, before the first session opens; constant from then on.
  engine::Engine* engine_ = nullptr;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t next_session_number_ ABSL_GUARDED_BY(mutex_) = 1;
  engine::RequestId next_engine_id_ ABSL_GUARDED_BY(mutex_) = 1;
  /// Sessions by number, the order in which they came.
  std::map<uint64_t, std::shared_ptr<glm::worker::Session>> sessions_ ABSL_GUARDED_BY(mutex_);
  std::unordered_map<engine::RequestId, LiveRequest> live_ ABSL_GUARDED_BY(mutex_);
  Condition idle_;  // no request is live
  // Of the prefix cache, by the last StepEvents: the number of its next change, and its digest.
  uint64_t cache_sequence_next_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t cache_digest_ ABSL_GUARDED_BY(mutex_) = 0;
  /// Calls without a good token so far: the log names the first, then ever fewer.
  std::atomic<uint64_t> unauthenticated_{0};

  Condition beat_changed_;  // a first request is live, or the end has come
  bool beating_ ABSL_GUARDED_BY(mutex_) = true;
  std::thread heart_;  // last: it uses all of the above
};

}  // namespace glm::worker
