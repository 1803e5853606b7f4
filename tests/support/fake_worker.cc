#include "tests/support/fake_worker.h"

#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/support/server_callback.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"
#include "proto/rpc_status.h"
#include "proto/worker.grpc.pb.h"

namespace glm {
namespace {

namespace wire = ::glmserve::worker::v1;

constexpr std::chrono::seconds kWaitMax{30};
constexpr size_t kFramesQueuedMax = 4;  // a worker that steps by itself waits for its readers

int32_t NextToken(const FakeWorkerOptions& options, const std::vector<int32_t>& ids) {
  if (options.next_token) return options.next_token(ids);
  uint32_t sum = 17;
  for (const int32_t id : ids) sum = sum * 31 + static_cast<uint32_t>(id) + 7;
  return 3 + static_cast<int32_t>((sum >> 8) % static_cast<uint32_t>(options.vocabulary - 3));
}

}  // namespace

std::vector<int32_t> FakeAnswer(const FakeWorkerOptions& options, std::vector<int32_t> prompt_ids,
                                int32_t count) {
  const size_t prompt_tokens = prompt_ids.size();
  for (int32_t i = 0; i < count; ++i) prompt_ids.push_back(NextToken(options, prompt_ids));
  prompt_ids.erase(prompt_ids.begin(), prompt_ids.begin() + static_cast<int64_t>(prompt_tokens));
  return prompt_ids;
}

wire::TokenLogprobs FakeLogprobs(int32_t id, int32_t alternatives) {
  wire::TokenLogprobs logprobs;
  logprobs.set_id(static_cast<uint32_t>(id));
  logprobs.set_logprob(-0.25f - static_cast<float>(id % 4));
  logprobs.set_rank(static_cast<uint32_t>(id % 4 + 1));
  for (int32_t i = 0; i < alternatives; ++i) {
    logprobs.add_top_ids(static_cast<uint32_t>(id - id % 4 + i));
    logprobs.add_top_logprobs(-0.25f - static_cast<float>(i));
  }
  return logprobs;
}

class FakeWorker::Service final : public wire::Worker::CallbackService {
 public:
  explicit Service(FakeWorkerOptions options) : options_(std::move(options)) {
    automatic_ = options_.automatic;
    grpc::ServerBuilder builder;
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 500);
    builder.AddListeningPort(absl::StrCat("127.0.0.1:", options_.port),
                             grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    CHECK(server_ != nullptr) << "cannot listen on port " << options_.port;
    stepper_ = std::thread([this] { StepBySelf(); });
  }

  ~Service() override { Stop(); }

  void Stop() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (stopping_) return;
      stopping_ = true;
      for (Peer* peer : peers_) EndPeer(peer, grpc::Status(grpc::UNAVAILABLE, "worker stops"));
    }
    changed_.notify_all();
    stepper_.join();
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
  }

  grpc::ServerBidiReactor<wire::RouterFrame, wire::WorkerFrame>* Session(
      grpc::CallbackServerContext*) override {
    return new Peer(this);
  }

  void Step() {
    const std::lock_guard<std::mutex> lock(mutex_);
    StepAll();
  }

  void SetAutomatic(bool automatic) {
    const std::lock_guard<std::mutex> lock(mutex_);
    automatic_ = automatic;
    changed_.notify_all();
  }

  void Refuse(absl::Status status) {
    const std::lock_guard<std::mutex> lock(mutex_);
    refusal_ = std::move(status);
  }

  void BreakSessions(const absl::Status& status) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (Peer* peer : peers_) EndPeer(peer, ToGrpcStatus(status));
    changed_.notify_all();
  }

  void SetDraining(bool draining) {
    const std::lock_guard<std::mutex> lock(mutex_);
    draining_ = draining;
    for (Peer* peer : peers_) Send(peer, StepFrame());
  }

  void SayLoad(const wire::Load& load) {
    const std::lock_guard<std::mutex> lock(mutex_);
    load_ = load;
    for (Peer* peer : peers_) Send(peer, StepFrame());
  }

  void StoreInSecret(const BlockKey& block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Hold(block);
  }

  void DropRequests() {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (Peer* peer : peers_) {
      wire::WorkerFrame frame = StepFrame();
      for (const auto& [id, live] : peer->live) {
        wire::Output* output = frame.mutable_step()->add_outputs();
        output->set_request_id(id);
        output->set_finish(wire::FINISH_CANCELLED);
      }
      seen_.live -= static_cast<int32_t>(peer->live.size());
      peer->live.clear();
      Send(peer, std::move(frame));
    }
    changed_.notify_all();
  }

  Seen seen() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return seen_;
  }

  bool Await(const std::function<bool(const Seen&)>& condition) const {
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_for(lock, kWaitMax, [&] { return condition(seen_); });
  }

  std::vector<wire::Submit> submits() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return submits_;
  }

  int32_t port() const { return port_; }

 private:
  struct Live {
    std::vector<int32_t> ids;  // prompt and answer so far
    uint32_t answered = 0;
    int scored = 0;  // tokens of the prompt
    wire::Submit submit;
  };

  struct Peer final : grpc::ServerBidiReactor<wire::RouterFrame, wire::WorkerFrame> {
    explicit Peer(Service* service) : service(service) {
      const std::lock_guard<std::mutex> lock(service->mutex_);
      service->peers_.insert(this);
      ++service->seen_.sessions;
      service->changed_.notify_all();
      StartRead(&frame_in);
    }
    void OnReadDone(bool ok) override { service->OnRead(this, ok); }
    void OnWriteDone(bool ok) override { service->OnWrite(this, ok); }
    void OnCancel() override { service->OnCancel(this); }
    void OnDone() override { service->OnPeerDone(this); }

    Service* const service;
    wire::RouterFrame frame_in;
    std::deque<wire::WorkerFrame> out;  // the first is being written
    std::map<uint64_t, Live> live;
    bool ending = false;
    bool finished = false;
    grpc::Status end_status;
  };

  // All below: with mutex_ held, unless they take it.

  void Send(Peer* peer, wire::WorkerFrame frame) {
    if (peer->ending) return;
    peer->out.push_back(std::move(frame));
    if (peer->out.size() == 1) peer->StartWrite(&peer->out.front());
  }

  void EndPeer(Peer* peer, const grpc::Status& status) {
    if (peer->ending) return;
    peer->ending = true;
    peer->end_status = status;
    seen_.live -= static_cast<int32_t>(peer->live.size());
    peer->live.clear();
    if (peer->out.empty()) FinishPeer(peer);
  }

  void FinishPeer(Peer* peer) {
    if (std::exchange(peer->finished, true)) return;
    peer->Finish(peer->end_status);
  }

  void OnRead(Peer* peer, bool ok) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!ok) {
      EndPeer(peer, grpc::Status::OK);
    } else {
      Take(peer, peer->frame_in);
      peer->StartRead(&peer->frame_in);
    }
    changed_.notify_all();
  }

  void OnWrite(Peer* peer, bool ok) {
    const std::lock_guard<std::mutex> lock(mutex_);
    peer->out.pop_front();
    if (!ok || peer->ending) {
      peer->out.clear();
      EndPeer(peer, grpc::Status::CANCELLED);
      FinishPeer(peer);
    } else if (!peer->out.empty()) {
      peer->StartWrite(&peer->out.front());
    }
    changed_.notify_all();
  }

  void OnCancel(Peer* peer) {
    const std::lock_guard<std::mutex> lock(mutex_);
    EndPeer(peer, grpc::Status::CANCELLED);
    changed_.notify_all();
  }

  void OnPeerDone(Peer* peer) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      peers_.erase(peer);
      --seen_.sessions;
      changed_.notify_all();
    }
    delete peer;
  }

  void Take(Peer* peer, const wire::RouterFrame& frame) {
    if (frame.has_hello() && options_.welcomes) {
      Send(peer, WelcomeFrame());
    } else if (frame.has_ask_cache_snapshot()) {
      ++seen_.snapshots;
      Send(peer, SnapshotFrame());
    } else if (frame.has_cancel()) {
      ++seen_.cancels;
      seen_.live -= static_cast<int32_t>(peer->live.erase(frame.cancel().request_id()));
    } else if (frame.has_submit()) {
      const wire::Submit& submit = frame.submit();
      ++seen_.submits;
      submits_.push_back(submit);
      if (!refusal_.ok()) {
        wire::WorkerFrame refused = StepFrame();
        wire::Output* output = refused.mutable_step()->add_outputs();
        output->set_request_id(submit.request_id());
        output->set_finish(wire::FINISH_REFUSED);
        output->set_error_code(static_cast<int32_t>(refusal_.code()));
        output->set_error(std::string(refusal_.message()));
        Send(peer, std::move(refused));
        return;
      }
      Live live{.ids = {submit.prompt_ids().begin(), submit.prompt_ids().end()}, .submit = submit};
      CHECK(peer->live.emplace(submit.request_id(), std::move(live)).second)
          << "request id " << submit.request_id() << " is live already";
      ++seen_.live;
      if (options_.prefix_caching) CachePrompt(submit);
    }
  }

  bool Hold(const BlockKey& block) {
    for (const BlockKey& held : blocks_) {
      if (held == block) return false;
    }
    blocks_.push_back(block);
    digest_.Store(block);
    return true;
  }

  void CachePrompt(const wire::Submit& submit) {
    BlockHasher hasher(*ParseHashKey(""));
    const std::vector<int32_t> ids(submit.prompt_ids().begin(), submit.prompt_ids().end());
    const auto size = static_cast<size_t>(options_.block_size);
    wire::CacheChanges changes;
    changes.set_sequence(blocks_.size() + 1);
    BlockKey parent;
    for (size_t begin = 0; begin + size <= ids.size(); begin += size) {
      const std::span<const int32_t> block(ids.data() + begin, size);
      parent = begin == 0 ? hasher.First(submit.cache_salt(), block) : hasher.Next(parent, block);
      if (!Hold(parent)) continue;
      changes.add_stored(true);
      changes.add_blocks(parent.high);
      changes.add_blocks(parent.low);
    }
    if (changes.stored_size() == 0) return;
    changes.set_digest(digest_.value());
    for (Peer* peer : peers_) {
      wire::WorkerFrame frame = StepFrame();
      *frame.mutable_step()->mutable_cache() = changes;
      Send(peer, std::move(frame));
    }
  }

  wire::WorkerFrame SnapshotFrame() const {
    wire::WorkerFrame frame;
    wire::CacheSnapshot* snapshot = frame.mutable_cache_snapshot();
    snapshot->set_sequence(blocks_.size());
    snapshot->set_digest(digest_.value());
    snapshot->set_first(true);
    snapshot->set_last(true);
    for (const BlockKey& block : blocks_) {
      snapshot->add_blocks(block.high);
      snapshot->add_blocks(block.low);
    }
    return frame;
  }

  wire::WorkerFrame WelcomeFrame() const {
    wire::WorkerFrame frame;
    wire::Welcome* welcome = frame.mutable_welcome();
    welcome->set_protocol_version(options_.protocol_version);
    welcome->set_incarnation(options_.incarnation);
    welcome->set_model_name(options_.model_name);
    welcome->set_vocabulary(static_cast<uint32_t>(options_.vocabulary));
    welcome->set_length_max(static_cast<uint32_t>(options_.length_max));
    welcome->set_block_size(static_cast<uint32_t>(options_.block_size));
    welcome->set_kv_blocks_total(static_cast<uint64_t>(options_.kv_blocks_total));
    welcome->set_prefix_caching(options_.prefix_caching);
    welcome->set_sequences_max(static_cast<uint32_t>(options_.sequences_max));
    for (const int32_t id : options_.eos_ids) welcome->add_eos_ids(static_cast<uint32_t>(id));
    return frame;
  }

  wire::WorkerFrame StepFrame() {
    wire::WorkerFrame frame;
    frame.mutable_step()->set_step(++step_);
    frame.mutable_step()->set_draining(draining_);
    wire::Load* load = frame.mutable_step()->mutable_load();
    *load = load_;
    load->set_requests_running(load_.requests_running() + static_cast<uint32_t>(seen_.live));
    if (load->kv_blocks_total() == 0) {
      load->set_kv_blocks_total(static_cast<uint64_t>(options_.kv_blocks_total));
    }
    return frame;
  }

  void StepAll() {
    for (Peer* peer : peers_) {
      if (!peer->live.empty() && peer->out.size() < kFramesQueuedMax) StepPeer(peer);
    }
    changed_.notify_all();
  }

  void StepPeer(Peer* peer) {
    wire::WorkerFrame frame = StepFrame();
    for (auto it = peer->live.begin(); it != peer->live.end();) {
      wire::Output* output = frame.mutable_step()->add_outputs();
      if (Advance(it->first, &it->second, output)) {
        it = peer->live.erase(it);
        --seen_.live;
      } else {
        ++it;
      }
    }
    Send(peer, std::move(frame));
  }

  /// The prompt's logprobs come in two parts, as chunks of the prompt do; the second comes with the
  /// first token. Whether all are sent.
  bool AddPromptLogprobs(Live* live, wire::Output* output) {
    const wire::Submit& submit = live->submit;
    if (!submit.sampling().has_prompt_logprobs()) return true;
    const int count = submit.prompt_ids_size();
    const int end = live->scored == 0 ? count / 2 : count;
    for (int i = std::max(live->scored, 1); i < end; ++i) {
      *output->add_prompt_logprobs() =
          FakeLogprobs(static_cast<int32_t>(submit.prompt_ids(i)),
                       static_cast<int32_t>(submit.sampling().prompt_logprobs()));
    }
    live->scored = end;
    return end == count;
  }

  /// Whether the request ended.
  bool Advance(uint64_t id, Live* live, wire::Output* output) {
    output->set_request_id(id);
    if (!AddPromptLogprobs(live, output)) return false;
    for (int32_t i = 1; i < options_.tokens_per_step; ++i) {
      if (AddToken(id, live, output)) return true;
    }
    return AddToken(id, live, output);
  }

  bool AddToken(uint64_t id, Live* live, wire::Output* output) {
    const int32_t token = NextToken(options_, live->ids);
    live->ids.push_back(token);
    ++live->answered;
    ++seen_.tokens;
    output->set_request_id(id);
    output->add_token_ids(static_cast<uint32_t>(token));
    const wire::Sampling& sampling = live->submit.sampling();
    if (sampling.has_logprobs() && options_.scores) {
      *output->add_logprobs() = FakeLogprobs(token, static_cast<int32_t>(sampling.logprobs()));
    }
    const wire::Stop& stop = live->submit.stop();
    const bool stops = std::count(stop.stop_ids().begin(), stop.stop_ids().end(),
                                  static_cast<uint32_t>(token)) > 0 &&
                       live->answered + live->submit.generated_before() >= stop.min_tokens();
    if (stops) {
      output->set_finish(wire::FINISH_STOP);
      output->set_stop_id(token);
    } else if (live->answered >= stop.max_tokens()) {
      output->set_finish(wire::FINISH_LENGTH);
    } else {
      return false;
    }
    output->set_prompt_tokens(static_cast<uint32_t>(live->submit.prompt_ids_size()));
    output->set_cached_tokens(static_cast<uint32_t>(options_.cached_tokens));
    return true;
  }

  void StepBySelf() {
    std::unique_lock<std::mutex> lock(mutex_);
    const auto can_step = [this] {
      return automatic_ && std::any_of(peers_.begin(), peers_.end(), [](Peer* peer) {
               return !peer->live.empty() && peer->out.size() < kFramesQueuedMax;
             });
    };
    while (!stopping_) {
      changed_.wait(lock, [&] { return stopping_ || can_step(); });
      if (stopping_) return;
      StepAll();
      // Lets others at the lock between two steps.
      lock.unlock();
      std::this_thread::yield();
      lock.lock();
    }
  }

  const FakeWorkerOptions options_;
  int32_t port_ = 0;
  std::unique_ptr<grpc::Server> server_;
  std::thread stepper_;

  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::set<Peer*> peers_;
  Seen seen_;
  std::vector<wire::Submit> submits_;
  absl::Status refusal_;
  std::vector<BlockKey> blocks_;  // of its prefix cache, as they came
  Digest digest_;
  wire::Load load_;
  uint64_t step_ = 0;
  bool automatic_ = true;
  bool draining_ = false;
  bool stopping_ = false;
};

std::unique_ptr<FakeWorker> FakeWorker::Start(FakeWorkerOptions options) {
  std::unique_ptr<FakeWorker> worker(new FakeWorker());
  worker->service_ = std::make_unique<Service>(std::move(options));
  return worker;
}

FakeWorker::~FakeWorker() = default;

std::string FakeWorker::address() const { return absl::StrCat("127.0.0.1:", port()); }
int32_t FakeWorker::port() const { return service_->port(); }
void FakeWorker::Step() { service_->Step(); }
void FakeWorker::SetAutomatic(bool automatic) { service_->SetAutomatic(automatic); }
void FakeWorker::Refuse(absl::Status status) { service_->Refuse(std::move(status)); }
void FakeWorker::BreakSessions(const absl::Status& status) { service_->BreakSessions(status); }
void FakeWorker::SetDraining(bool draining) { service_->SetDraining(draining); }
void FakeWorker::SayLoad(const wire::Load& load) { service_->SayLoad(load); }
void FakeWorker::StoreInSecret(const BlockKey& block) { service_->StoreInSecret(block); }
void FakeWorker::DropRequests() { service_->DropRequests(); }
FakeWorker::Seen FakeWorker::seen() const { return service_->seen(); }
bool FakeWorker::Await(const std::function<bool(const Seen&)>& condition) const {
  return service_->Await(condition);
}
bool FakeWorker::AwaitLive(int32_t live) const {
  return Await([&](const Seen& seen) { return seen.live == live; });
}
bool FakeWorker::AwaitSubmits(int32_t submits) const {
  return Await([&](const Seen& seen) { return seen.submits >= submits; });
}
bool FakeWorker::AwaitSessions(int32_t sessions) const {
  return Await([&](const Seen& seen) { return seen.sessions == sessions; });
}
std::vector<wire::Submit> FakeWorker::submits() const { return service_->submits(); }
void FakeWorker::Stop() { service_->Stop(); }

}  // namespace glm
