// One router's stream, as seen from the worker: reads frames one by one, writes frames in order
// from a bounded out-buffer.
//
// gRPC calls OnReadDone, OnWriteDone, OnCancel and OnDone on its own threads, never two of the same
// kind at once; Send may be called from any thread. The session keeps itself alive until OnDone.
#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>

#include "absl/base/thread_annotations.h"
#include "engine/request.h"
#include "proto/base/mutex.h"
#include "proto/worker.grpc.pb.h"

namespace glm::worker {

class Service;

class Session final : public grpc::ServerBidiReactor<::glmserve::worker::v1::RouterFrame,
                                                     ::glmserve::worker::v1::WorkerFrame> {
 public:
  /// Starts reading. `frames_max`: bound of the out-buffer. A router that says no Hello within
  /// `hello_timeout` is cut off.
  static std::shared_ptr<Session> Start(Service* service, grpc::CallbackServerContext* call,
                                        int32_t frames_max,
                                        std::chrono::milliseconds hello_timeout);

  /// Queues a frame. When the out-buffer is full the call is cancelled instead: a status would have
  /// to wait behind the frames that the router does not read.
  void Send(::glmserve::worker::v1::WorkerFrame frame);
  /// When the last frame was queued; now, while frames are still waiting for the router to read
  /// them: one more would tell it nothing.
  std::chrono::steady_clock::time_point last_sent();
  /// Ends the stream once; later calls do nothing.
  void End(const grpc::Status& status);

  const std::string& peer() const { return peer_; }

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  friend class Service;

  Session(Service* service, grpc::CallbackServerContext* call, int32_t frames_max);
  void AwaitHello(std::chrono::milliseconds timeout);
  void TakeFrame();
  void TakeHello();

  Service* const service_;
  grpc::CallbackServerContext* const call_;  // gRPC's; lives until OnDone
  const std::string peer_;
  const int32_t frames_max_;
  std::shared_ptr<Session> self_;  // until OnDone
  uint64_t number_ = 0;            // given by Service::Open; 0 before
  ::glmserve::worker::v1::RouterFrame incoming_;
  /// It asked for a snapshot of the cache and has not got it. Guarded by the service's lock.
  bool wants_snapshot_ = false;
  /// The prefix cache changed since it was sent a digest. Guarded by the service's lock.
  bool wants_digest_ = false;
  /// When the first of its live requests came. Guarded by the service's lock.
  std::chrono::steady_clock::time_point busy_since_{};
  /// What it was told last. Guarded by the service's lock.
  engine::StepTimes step_times_told_;
  /// Live requests: the router's number to the engine's. Guarded by the service's lock.
  std::unordered_map<uint64_t, uint64_t> requests_;
  grpc::Alarm hello_alarm_;

  Mutex mutex_;  // "session out-buffer"
  std::deque<::glmserve::worker::v1::WorkerFrame> outgoing_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  std::chrono::steady_clock::time_point last_sent_ ABSL_GUARDED_BY(mutex_){};
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool greeted_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace glm::worker
