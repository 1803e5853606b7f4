// Workers over a virtual network: they speak proto/worker.proto, their tokens are a function of all
// that a request says, they keep a prefix cache that evicts, and they die, hang, slow down, refuse
// and lose their tongue when told.
//
// One thread: everything happens in events of a VirtualTime.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "proto/base/block_hash.h"
#include "proto/worker.pb.h"
#include "router/fleet/worker_stream.h"
#include "tests/router/virtual/virtual_time.h"

namespace glm::router {

class VirtualWorker;

/// What of a request decides its tokens.
struct AnswerKey {
  std::vector<int32_t> prompt_ids;
  uint64_t seed = 0;
  uint32_t choice = 0;
};

/// The first `count` tokens of the answer; none is one of a worker's eos ids.
std::vector<int32_t> VirtualAnswer(const AnswerKey& key, int32_t count, int32_t vocabulary);

/// One stream. The router's end is a WorkerStream, the worker's end is called by name. Both
/// directions are in order and late; what is under way when the link breaks is lost.
class VirtualLink : public std::enable_shared_from_this<VirtualLink> {
 public:
  VirtualLink(VirtualTime* time, VirtualWorker* worker, StreamReader* reader)
      : time_(time), worker_(worker), reader_(reader) {}

  // The router's end.
  void Start();
  void Write(const ::glmserve::worker::v1::RouterFrame* frame);
  void Cancel();

  // The worker's end.
  void Send(::glmserve::worker::v1::WorkerFrame frame);
  /// The router hears of it after what was sent.
  void End(const absl::Status& status);

  /// While true nothing arrives in either direction; later all does, in order.
  void SetHeld(bool held);

 private:
  using Delivery = absl::AnyInvocable<void()>;

  /// Frames of one direction on their way.
  struct Lane {
    std::deque<Delivery> waiting;
    VirtualTime::Time last;
  };
  void Carry(Lane* lane, Delivery delivery);
  void Arrive(Lane* lane);
  void Close(const absl::Status& status);

  VirtualTime* const time_;
  VirtualWorker* const worker_;
  StreamReader* reader_;
  Lane down_;
  Lane up_;
  bool held_ = false;
  uint64_t holds_ = 0;
  bool closed_ = false;  // the router's end is about to hear its last call, or has
};

struct VirtualWorkerOptions {
  std::string model_name = "tiny";
  int32_t vocabulary = 1000;
  int32_t length_max = 4096;
  int32_t block_size = 4;
  int64_t kv_blocks = 200;  // of the prefix cache too
  int32_t sequences_max = 8;
  int32_t waiting_max = 16;  // more are refused
  int32_t step_us = 2000;    // of one step
  int32_t prompt_tokens_per_step = 32;
};

/// Bugs that a test plants to see them caught.
struct PlantedBugs {
  bool loses_cache_changes = false;  // and says neither a gap nor another digest
};

class VirtualWorker {
 public:
  VirtualWorker(VirtualTime* time, std::string address, VirtualWorkerOptions options,
                PlantedBugs bugs);

  const std::string& address() const { return address_; }
  bool healthy() const {
    return alive_ && !hung_ && !stuck_ && !held_ && !draining_ && slow_ == 1 && refusal_.ok();
  }
  bool alive() const { return alive_; }

  // Faults.
  void Kill();
  void Start();               // with nothing of what it had, under a new incarnation
  void SetHung(bool hung);    // the process stands still; its connections stay
  void SetStuck(bool stuck);  // only its steps stand still
  void SetHeld(bool held);    // nothing passes on its network
  void SetSlow(int32_t factor) { slow_ = factor; }
  void Refuse(absl::Status status) { refusal_ = std::move(status); }
  void Drain();  // then Kill ends it
  void BreakLinks();
  /// The next cache changes are left out, sent twice or out of turn.
  void GarbleNextChanges() { garble_ = true; }

  // What a checker asks.
  std::string Picture() const;
  bool idle() const { return requests_.empty(); }
  int64_t submits() const { return submits_; }
  uint64_t incarnation() const { return life_; }
  /// How many blocks of the beginning of `chain` it holds.
  int32_t Held(const std::vector<BlockKey>& chain) const;
  /// The same, of the blocks that it has ever held in this incarnation.
  int32_t EverHeld(const std::vector<BlockKey>& chain) const;
  /// Puts the names of all that it holds into `names`.
  void AddHeld(std::set<std::pair<uint64_t, uint64_t>>* names) const {
    for (const auto& [name, block] : cache_) names->insert(name);
  }

 private:
  friend class VirtualLink;
  using Frame = ::glmserve::worker::v1::WorkerFrame;

  struct Request {
    std::shared_ptr<VirtualLink> link;
    ::glmserve::worker::v1::Submit submit;
    uint64_t state = 0;       // of the answer's tokens
    int64_t prompt_left = 0;  // to compute
    int32_t cached_tokens = 0;
    int32_t answered = 0;         // tokens of this attempt
    std::vector<BlockKey> chain;  // of the full blocks so far
    std::vector<int32_t> ids;
    bool running = false;
  };
  struct CachedBlock {
    BlockKey parent;
    int32_t children = 0;
    uint64_t used = 0;
  };

  // The network's calls.
  bool Reachable() const { return alive_ && !held_; }
  void OnConnected(const std::shared_ptr<VirtualLink>& link);
  void OnRouterFrame(const std::shared_ptr<VirtualLink>& link,
                     const ::glmserve::worker::v1::RouterFrame& frame);
  void OnRouterGone(const std::shared_ptr<VirtualLink>& link);

  void Take(const std::shared_ptr<VirtualLink>& link,
            const ::glmserve::worker::v1::RouterFrame& frame);
  void Submit(const std::shared_ptr<VirtualLink>& link,
              const ::glmserve::worker::v1::Submit& submit);
  void RefuseOne(const std::shared_ptr<VirtualLink>& link, uint64_t id, const absl::Status& status);
  void ScheduleStep();
  void Step();
  void StepOne(Request* request, ::glmserve::worker::v1::Step* step, bool* ended);
  void Beat();
  void SayLoad();
  void Hold(const BlockKey& block, const BlockKey& parent);
  void Evict();
  void FillLoad(::glmserve::worker::v1::Load* load) const;
  void FillChanges(::glmserve::worker::v1::CacheChanges* cache) const;
  void SendSnapshot(const std::shared_ptr<VirtualLink>& link);
  Frame StepFrame();

  VirtualTime* const time_;
  const std::string address_;
  const VirtualWorkerOptions options_;
  const PlantedBugs bugs_;

  bool alive_ = true;
  bool hung_ = false;
  bool stuck_ = false;
  bool held_ = false;
  bool draining_ = false;
  bool garble_ = false;
  int32_t slow_ = 1;
  absl::Status refusal_;
  uint64_t life_ = 1;        // incarnation; events of an earlier one do nothing
  uint64_t plans_made_ = 0;  // a step whose plan is not the last one does nothing
  uint64_t step_number_ = 0;
  int64_t submits_ = 0;
  bool stepping_ = false;
  VirtualTime::Time step_began_;
  VirtualTime::Time sent_last_;
  bool digest_owed_ = false;
  bool beating_ = false;

  std::set<std::shared_ptr<VirtualLink>> links_;
  std::set<std::shared_ptr<VirtualLink>> greeted_;  // those that have said Hello
  std::vector<std::weak_ptr<VirtualLink>> links_made_;
  std::vector<absl::AnyInvocable<void()>> inbox_;  // while it hangs
  std::deque<std::unique_ptr<Request>> requests_;

  std::map<std::pair<uint64_t, uint64_t>, CachedBlock> cache_;
  std::set<std::pair<uint64_t, uint64_t>> ever_held_;
  std::set<std::pair<uint64_t, uint64_t>> secret_;  // held, and by a planted bug not told
  uint64_t uses_ = 0;
  Digest digest_;
  uint64_t sequence_ = 0;  // of the last change
  std::vector<std::pair<bool, BlockKey>> changes_;
};

/// The workers by address, and what carries streams to them.
class VirtualNetwork {
 public:
  explicit VirtualNetwork(VirtualTime* time) : time_(time) {}
  void Add(VirtualWorker* worker) { workers_[worker->address()] = worker; }
  VirtualWorker* at(const std::string& address) const { return workers_.at(address); }
  DialWorker dialer();

 private:
  VirtualTime* const time_;
  std::map<std::string, VirtualWorker*> workers_;
};

}  // namespace glm::router
