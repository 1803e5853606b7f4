// One scripted worker: its port, its sessions with routers, and its steps (scripted_worker.h).
//
// Who calls: ScriptedWorkers, on any thread; gRPC's threads read frames. One lock, mutex_.
#pragma once

#include <grpcpp/server.h>
#include <grpcpp/support/server_callback.h>

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "bench/scripted/scripted_cache.h"
#include "bench/scripted/scripted_options.h"
#include "proto/base/block_hash.h"
#include "proto/worker.grpc.pb.h"

namespace glm::bench {

/// The ids that a worker of these options answers with.
AnswerIds AnswerIdsOf(const ScriptedWorkerOptions& options);

namespace wire = ::glmserve::worker::v1;

class ScriptedService final : public wire::Worker::CallbackService {
 public:
  using Clock = std::chrono::steady_clock;

  ScriptedService(const ScriptedWorkerOptions& options, const HashKey& key);
  ~ScriptedService() override;
  /// `wake`: told when there is something to do that StepIfDue did not say before; any thread.
  absl::Status Listen(int32_t port, std::function<void()> wake);
  std::string address() const;  // host:port

  grpc::ServerBidiReactor<wire::RouterFrame, wire::WorkerFrame>* Session(
      grpc::CallbackServerContext*) override;
  Script script() const;
  void SetScript(const Script& script);
  void BreakSessions();
  void Restart();
  void FillCache(int64_t blocks);
  int64_t cached_blocks() const;
  ScriptedSeen seen() const;
  /// Steps if that is due; when it wants to be called next.
  Clock::time_point StepIfDue(Clock::time_point now);

 private:
  struct Live;
  struct Peer;
  struct Queued {
    Peer* peer = nullptr;  // void once dropped
    std::unique_ptr<Live> live;
  };

  // All below: with mutex_ held, unless they take it.

  void DrawIncarnation();
  /// Of one token of each running request.
  Clock::duration StepTime() const;
  void Send(Peer* peer, wire::WorkerFrame frame);
  void EndPeer(Peer* peer, const grpc::Status& status);
  void FinishPeer(Peer* peer);
  void OnRead(Peer* peer, bool ok);
  void OnWrite(Peer* peer, bool ok);
  void OnCancel(Peer* peer);
  void OnPeerDone(Peer* peer);
  void Take(Peer* peer, const wire::RouterFrame& frame);
  void TakeSubmit(Peer* peer, const wire::Submit& submit);
  void Refuse(Peer* peer, const wire::Submit& submit, const absl::Status& status);
  /// Forgets a request of `peer`, which has or will have an end.
  void Drop(Peer* peer, Live* live);
  wire::WorkerFrame WelcomeFrame() const;
  void SetLoad(wire::Load* load, Peer* peer) const;
  wire::WorkerFrame StepFrame(Peer* peer) const;
  /// What changed in the cache and was not told, to all.
  void TellChanges();
  void Tell(const wire::CacheChanges& changes);
  /// What routers are told of the changes since the last call: they themselves, if nothing is
  /// wrong.
  std::vector<wire::CacheChanges> TakeTold();
  void HeartbeatAll(Clock::time_point now);
  void StepAll(Clock::time_point now);
  /// Lets a request have its part of a step.
  void Advance(Peer* peer, Live* live, double* budget, std::map<Peer*, wire::WorkerFrame>* frames);
  void LookUp(Live* live);
  /// Its prompt is computed.
  void Run(Live* live);
  void AddToken(Peer* peer, Live* live, wire::Output* output);
  void SendStep(std::map<Peer*, wire::WorkerFrame> frames);

  const ScriptedWorkerOptions options_;
  const AnswerIds answer_ids_;
  int32_t port_ = 0;
  std::function<void()> wake_;
  std::unique_ptr<grpc::Server> server_;

  mutable std::mutex mutex_;
  Script script_;
  uint64_t incarnation_ = 0;
  std::set<Peer*> peers_;
  std::deque<Queued> queue_;  // all requests, as they came
  ScriptedCache cache_;
  wire::CacheChanges late_;  // held back, to be told out of turn
  std::mt19937_64 random_{std::random_device{}()};
  ScriptedSeen seen_;
  int64_t running_ = 0;
  int64_t tokens_waiting_ = 0;
  int64_t context_tokens_ = 0;
  uint64_t step_ = 0;
  Clock::time_point next_step_{};
  Clock::time_point last_step_{};
  Clock::time_point next_heartbeat_{};
  bool cache_told_ = false;  // changes went out since the last time that all was quiet
  bool wakes_ = false;       // the stepper has to know
  bool stopping_ = false;
};

}  // namespace glm::bench
