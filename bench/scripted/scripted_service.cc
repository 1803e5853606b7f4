#include "bench/scripted/scripted_service.h"

#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "proto/wire_limits.h"

namespace glm::bench {
namespace {

using Clock = ScriptedService::Clock;

constexpr std::chrono::milliseconds kHeartbeat{500};
constexpr size_t kFramesQueuedMax = 4096;  // of one session; over: its router does not read
constexpr int64_t kSnapshotFrameBlocks = 65'536;
constexpr uint64_t kDropped = ~uint64_t{0};  // the id of a request that is in the queue no more

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

Clock::duration InSeconds(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

}  // namespace

AnswerIds AnswerIdsOf(const ScriptedWorkerOptions& options) {
  return {.begin = options.answer_ids_begin,
          .end = options.answer_ids_end == 0 ? options.vocabulary : options.answer_ids_end,
          .never = options.eos_ids};
}

struct ScriptedService::Live {
  uint64_t id = 0;
  AnswerState state;
  std::vector<int32_t> ids;     // prompt and answer so far; empty without a prefix cache
  std::vector<BlockKey> chain;  // of the prompt
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = -1;  // -1: not looked for yet
  double prefill_left = 0;     // tokens
  bool running = false;
  uint32_t answered = 0;
  uint32_t generated_before = 0;
  wire::Stop stop;
  std::string salt;
};

struct ScriptedService::Peer final : grpc::ServerBidiReactor<wire::RouterFrame, wire::WorkerFrame> {
  explicit Peer(ScriptedService* worker) : worker(worker) {
    const std::lock_guard<std::mutex> lock(worker->mutex_);
    worker->peers_.insert(this);
    ++worker->seen_.sessions;
    if (worker->stopping_) worker->EndPeer(this, grpc::Status(grpc::UNAVAILABLE, "stops"));
    StartRead(&frame_in);
  }
  void OnReadDone(bool ok) override { worker->OnRead(this, ok); }
  void OnWriteDone(bool ok) override { worker->OnWrite(this, ok); }
  void OnCancel() override { worker->OnCancel(this); }
  void OnDone() override { worker->OnPeerDone(this); }

  ScriptedService* const worker;
  wire::RouterFrame frame_in;
  std::deque<wire::WorkerFrame> out;  // the first is being written
  std::map<uint64_t, Live*> live;
  Clock::time_point last_frame{};
  bool welcomed = false;
  bool told_times = false;
  bool ending = false;
  bool finished = false;
  grpc::Status end_status;
};

ScriptedService::ScriptedService(const ScriptedWorkerOptions& options, const HashKey& key)
    : options_(options),
      answer_ids_(AnswerIdsOf(options)),
      script_(options.script),
      cache_(key, options.block_size, options.kv_blocks_total) {
  DrawIncarnation();
}

ScriptedService::~ScriptedService() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    for (Peer* peer : peers_) EndPeer(peer, grpc::Status(grpc::UNAVAILABLE, "worker stops"));
  }
  if (server_ == nullptr) return;
  server_->Shutdown(std::chrono::system_clock::now());
  server_->Wait();
}

absl::Status ScriptedService::Listen(int32_t port, std::function<void()> wake) {
  wake_ = std::move(wake);
  grpc::ServerBuilder builder;
  SetLimits({}, &builder);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddListeningPort(absl::StrCat(options_.host, ":", port),
                           grpc::InsecureServerCredentials(), &port_);
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
  if (server_ != nullptr && port_ != 0) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("cannot listen on ", options_.host, ":", port));
}

grpc::ServerBidiReactor<wire::RouterFrame, wire::WorkerFrame>* ScriptedService::Session(
    grpc::CallbackServerContext*) {
  return new Peer(this);
}

Script ScriptedService::script() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return script_;
}

void ScriptedService::SetScript(const Script& script) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    script_ = script;
    next_step_ = Clock::now();
    for (Peer* peer : peers_) {
      peer->told_times = false;
      if (script.mode != Script::Mode::kHang) Send(peer, StepFrame(peer));
    }
  }
  wake_();
}

void ScriptedService::BreakSessions() {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (Peer* peer : peers_) EndPeer(peer, grpc::Status(grpc::UNAVAILABLE, "connection lost"));
}

void ScriptedService::Restart() {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (Peer* peer : peers_) EndPeer(peer, grpc::Status(grpc::UNAVAILABLE, "worker died"));
  cache_.Reset();
  late_.Clear();
  DrawIncarnation();
}

void ScriptedService::FillCache(int64_t blocks) {
  constexpr int64_t kChain = 100;
  const std::lock_guard<std::mutex> lock(mutex_);
  for (int64_t made = 0; made < blocks; made += kChain) {
    std::vector<BlockKey> chain(static_cast<size_t>(std::min(kChain, blocks - made)));
    for (BlockKey& key : chain) key = {random_(), random_()};
    cache_.Store(chain);
  }
  TellChanges();
}

int64_t ScriptedService::cached_blocks() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return cache_.blocks();
}

ScriptedSeen ScriptedService::seen() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return seen_;
}

Clock::time_point ScriptedService::StepIfDue(Clock::time_point now) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Clock::time_point next = Clock::time_point::max();
  const bool steps = script_.mode != Script::Mode::kHang && script_.mode != Script::Mode::kStall;
  if (steps && seen_.live > 0) {
    if (now >= next_step_) {
      StepAll(now);
      // At its own pace, however late it was called; a pause is not made up for.
      next_step_ = std::max(next_step_ + StepTime(), now - StepTime());
    }
    if (seen_.live > 0) next = next_step_;
  }
  if (script_.mode == Script::Mode::kHang || (seen_.live == 0 && !cache_told_)) return next;
  if (now >= next_heartbeat_) HeartbeatAll(now);
  return std::min(next, next_heartbeat_);
}

void ScriptedService::DrawIncarnation() {
  std::random_device device;
  incarnation_ = uint64_t{device()} << 32 | device();
}

Clock::duration ScriptedService::StepTime() const {
  return script_.tokens_per_s == 0 ? Clock::duration::zero()
                                   : InSeconds(script_.slow / script_.tokens_per_s);
}

void ScriptedService::Send(Peer* peer, wire::WorkerFrame frame) {
  if (peer->ending || !peer->welcomed) return;
  if (peer->out.size() >= kFramesQueuedMax) {
    ++seen_.overflows;
    return EndPeer(peer, grpc::Status(grpc::RESOURCE_EXHAUSTED, "the router does not read"));
  }
  peer->last_frame = Clock::now();
  peer->out.push_back(std::move(frame));
  if (peer->out.size() == 1) peer->StartWrite(&peer->out.front());
}

void ScriptedService::EndPeer(Peer* peer, const grpc::Status& status) {
  if (peer->ending) return;
  peer->ending = true;
  peer->end_status = status;
  while (!peer->live.empty()) Drop(peer, peer->live.begin()->second);
  if (peer->out.empty()) FinishPeer(peer);
}

void ScriptedService::FinishPeer(Peer* peer) {
  if (std::exchange(peer->finished, true)) return;
  peer->Finish(peer->end_status);
}

void ScriptedService::OnRead(Peer* peer, bool ok) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!ok) {
      EndPeer(peer, grpc::Status::OK);
      return;
    }
    Take(peer, peer->frame_in);
    peer->StartRead(&peer->frame_in);
    if (!std::exchange(wakes_, false)) return;
  }
  wake_();
}

void ScriptedService::OnWrite(Peer* peer, bool ok) {
  const std::lock_guard<std::mutex> lock(mutex_);
  peer->out.pop_front();
  if (!ok || peer->ending) {
    peer->out.clear();
    EndPeer(peer, grpc::Status::CANCELLED);
    FinishPeer(peer);
  } else if (!peer->out.empty()) {
    peer->StartWrite(&peer->out.front());
  }
}

void ScriptedService::OnCancel(Peer* peer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  EndPeer(peer, grpc::Status::CANCELLED);
}

void ScriptedService::OnPeerDone(Peer* peer) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    peers_.erase(peer);
    --seen_.sessions;
  }
  delete peer;
}

void ScriptedService::Take(Peer* peer, const wire::RouterFrame& frame) {
  if (frame.has_hello()) {
    peer->welcomed = true;
    Send(peer, WelcomeFrame());
  } else if (frame.has_ask_cache_snapshot()) {
    ++seen_.snapshots;
    // What changed so far is told before, so that the snapshot follows it.
    TellChanges();
    for (wire::WorkerFrame& part : cache_.Snapshot(kSnapshotFrameBlocks)) {
      seen_.snapshot_bytes += static_cast<int64_t>(part.ByteSizeLong());
      Send(peer, std::move(part));
    }
  } else if (frame.has_cancel()) {
    ++seen_.cancels;
    const auto found = peer->live.find(frame.cancel().request_id());
    if (found != peer->live.end()) Drop(peer, found->second);
  } else if (frame.has_submit()) {
    ++seen_.submits;
    TakeSubmit(peer, frame.submit());
  }
}

void ScriptedService::TakeSubmit(Peer* peer, const wire::Submit& submit) {
  if (script_.mode == Script::Mode::kRefuse) {
    return Refuse(peer, submit, absl::ResourceExhaustedError("the script says: refuse"));
  }
  if (script_.mode == Script::Mode::kFail) {
    return Refuse(peer, submit, absl::InternalError("the script says: fail"));
  }
  if (submit.sampling().has_logprobs() || submit.sampling().has_prompt_logprobs()) {
    return Refuse(peer, submit, absl::UnimplementedError("a scripted worker has no logprobs"));
  }
  if (peer->live.contains(submit.request_id())) {
    return EndPeer(peer, grpc::Status(grpc::INVALID_ARGUMENT, "a request id that is live"));
  }
  if (seen_.live == 0) next_step_ = Clock::now() + StepTime();
  auto live = std::make_unique<Live>();
  live->id = submit.request_id();
  live->prompt_tokens = submit.prompt_ids_size();
  live->generated_before = submit.generated_before();
  live->stop = submit.stop();
  live->prefill_left = static_cast<double>(live->prompt_tokens);
  for (const uint32_t id : submit.prompt_ids()) live->state.Take(static_cast<int32_t>(id));
  if (options_.prefix_caching) {
    live->ids.assign(submit.prompt_ids().begin(), submit.prompt_ids().end());
    live->salt = submit.cache_salt();
    live->chain = cache_.Names(live->salt, live->ids);
  }
  seen_.prompt_tokens += live->prompt_tokens;
  tokens_waiting_ += live->prompt_tokens;
  ++seen_.live;
  wakes_ = true;
  peer->live.emplace(live->id, live.get());
  queue_.push_back({peer, std::move(live)});
}

void ScriptedService::Refuse(Peer* peer, const wire::Submit& submit, const absl::Status& status) {
  wire::WorkerFrame frame = StepFrame(peer);
  wire::Output* output = frame.mutable_step()->add_outputs();
  output->set_request_id(submit.request_id());
  output->set_finish(wire::FINISH_REFUSED);
  output->set_error_code(static_cast<int32_t>(status.code()));
  output->set_error(std::string(status.message()));
  Send(peer, std::move(frame));
}

void ScriptedService::Drop(Peer* peer, Live* live) {
  peer->live.erase(live->id);
  --seen_.live;
  context_tokens_ -= live->running ? live->prompt_tokens + live->answered : 0;
  running_ -= live->running ? 1 : 0;
  tokens_waiting_ -= live->running ? 0 : live->prompt_tokens;
  // Taken out of the queue at the next step: an iterator there may stand on it.
  live->id = kDropped;
}

wire::WorkerFrame ScriptedService::WelcomeFrame() const {
  wire::WorkerFrame frame;
  wire::Welcome* welcome = frame.mutable_welcome();
  welcome->set_protocol_version(1);
  welcome->set_incarnation(incarnation_);
  welcome->set_model_name(options_.model_name);
  welcome->set_vocabulary(static_cast<uint32_t>(options_.vocabulary));
  welcome->set_length_max(static_cast<uint32_t>(options_.length_max));
  welcome->set_block_size(static_cast<uint32_t>(options_.block_size));
  welcome->set_kv_blocks_total(static_cast<uint64_t>(options_.kv_blocks_total));
  welcome->set_sequences_max(static_cast<uint32_t>(options_.sequences_max));
  welcome->set_prefix_caching(options_.prefix_caching);
  for (const int32_t id : options_.eos_ids) welcome->add_eos_ids(static_cast<uint32_t>(id));
  return frame;
}

void ScriptedService::SetLoad(wire::Load* load, Peer* peer) const {
  load->set_requests_running(static_cast<uint32_t>(running_));
  load->set_requests_waiting(static_cast<uint32_t>(seen_.live - running_));
  load->set_tokens_waiting(static_cast<uint64_t>(tokens_waiting_));
  load->set_kv_blocks_total(static_cast<uint64_t>(options_.kv_blocks_total));
  load->set_kv_blocks_used(static_cast<uint64_t>(
      std::min(options_.kv_blocks_total, context_tokens_ / options_.block_size + running_)));
  load->set_context_tokens(static_cast<uint64_t>(context_tokens_));
  if (std::exchange(peer->told_times, true)) return;
  wire::StepTimes* times = load->mutable_step_times();
  times->set_base_us(static_cast<float>(1e6 * Seconds(StepTime())));
  if (script_.prefill_tokens_per_s > 0) {
    times->set_prompt_token_us(
        static_cast<float>(1e6 * script_.slow / script_.prefill_tokens_per_s));
  }
}

wire::WorkerFrame ScriptedService::StepFrame(Peer* peer) const {
  wire::WorkerFrame frame;
  frame.mutable_step()->set_step(step_);
  frame.mutable_step()->set_draining(script_.draining);
  SetLoad(frame.mutable_step()->mutable_load(), peer);
  return frame;
}

void ScriptedService::TellChanges() {
  for (const wire::CacheChanges& changes : TakeTold()) Tell(changes);
}

void ScriptedService::Tell(const wire::CacheChanges& changes) {
  for (Peer* peer : peers_) {
    wire::WorkerFrame frame = StepFrame(peer);
    *frame.mutable_step()->mutable_cache() = changes;
    Send(peer, std::move(frame));
  }
}

std::vector<wire::CacheChanges> ScriptedService::TakeTold() {
  wire::CacheChanges changes;
  if (!cache_.TakeChanges(&changes)) return {};
  cache_told_ = true;
  std::vector<wire::CacheChanges> told = {changes};
  if (std::uniform_real_distribution<double>()(random_) < script_.garble) {
    switch (random_() % 3) {
      case 0:  // lost
        told.clear();
        break;
      case 1:  // twice
        told.push_back(changes);
        break;
      default:  // behind the next ones
        told.clear();
        std::swap(late_, changes);
        if (changes.stored_size() > 0) told.push_back(changes);
        return told;
    }
  }
  if (late_.stored_size() > 0) told.push_back(std::exchange(late_, {}));
  return told;
}

void ScriptedService::HeartbeatAll(Clock::time_point now) {
  next_heartbeat_ = now + kHeartbeat;
  const bool tells_cache = seen_.live == 0 && std::exchange(cache_told_, false);
  for (Peer* peer : peers_) {
    if (now - peer->last_frame < kHeartbeat && !tells_cache) continue;
    if (peer->live.empty() && !tells_cache) continue;
    wire::WorkerFrame frame;
    wire::Heartbeat* beat = frame.mutable_heartbeat();
    beat->set_step(step_);
    if (seen_.live > 0) {
      beat->set_step_age_ms(static_cast<uint32_t>(1e3 * Seconds(now - last_step_)));
      beat->set_step_expected_ms(static_cast<uint32_t>(std::ceil(1e3 * Seconds(StepTime()))));
    }
    SetLoad(beat->mutable_load(), peer);
    if (tells_cache) cache_.State(beat->mutable_cache());
    Send(peer, std::move(frame));
  }
}

void ScriptedService::StepAll(Clock::time_point now) {
  ++step_;
  last_step_ = now;
  double budget = script_.prefill_tokens_per_s * Seconds(StepTime()) / script_.slow;
  if (script_.prefill_tokens_per_s == 0 || script_.tokens_per_s == 0) budget = 1e18;
  std::map<Peer*, wire::WorkerFrame> frames;
  size_t kept = 0;
  for (Queued& queued : queue_) {
    Live& live = *queued.live;
    if (live.id != kDropped) Advance(queued.peer, &live, &budget, &frames);
    if (live.id != kDropped) std::swap(queue_[kept++], queued);
  }
  queue_.resize(kept);
  SendStep(std::move(frames));
}

void ScriptedService::Advance(Peer* peer, Live* live, double* budget,
                              std::map<Peer*, wire::WorkerFrame>* frames) {
  if (!live->running) {
    if (running_ >= options_.sequences_max || *budget <= 0) return;
    if (live->cached_tokens < 0) LookUp(live);
    const double part = std::min(*budget, live->prefill_left);
    *budget -= part;
    live->prefill_left -= part;
    if (live->prefill_left > 0) return;
    Run(live);
  }
  auto [frame, is_new] = frames->try_emplace(peer);
  if (is_new) frame->second.mutable_step()->set_step(step_);
  AddToken(peer, live, frame->second.mutable_step()->add_outputs());
}

void ScriptedService::LookUp(Live* live) {
  live->cached_tokens = cache_.Use(live->chain) * options_.block_size;
  // The last token is always computed.
  live->cached_tokens = std::min(live->cached_tokens, live->prompt_tokens - 1);
  live->prefill_left -= static_cast<double>(live->cached_tokens);
  seen_.cached_tokens += live->cached_tokens;
}

void ScriptedService::Run(Live* live) {
  live->running = true;
  ++running_;
  tokens_waiting_ -= live->prompt_tokens;
  context_tokens_ += live->prompt_tokens;
  if (options_.prefix_caching) cache_.Store(live->chain);
  live->chain = {};
}

void ScriptedService::AddToken(Peer* peer, Live* live, wire::Output* output) {
  const int32_t token = live->state.Next(answer_ids_);
  live->state.Take(token);
  if (options_.prefix_caching) live->ids.push_back(token);
  ++live->answered;
  ++seen_.tokens;
  ++context_tokens_;
  output->set_request_id(live->id);
  output->add_token_ids(static_cast<uint32_t>(token));
  const wire::Stop& stop = live->stop;
  const bool stops = live->answered + live->generated_before >= stop.min_tokens() &&
                     std::find(stop.stop_ids().begin(), stop.stop_ids().end(),
                               static_cast<uint32_t>(token)) != stop.stop_ids().end();
  if (!stops && live->answered < stop.max_tokens()) return;
  output->set_finish(stops ? wire::FINISH_STOP : wire::FINISH_LENGTH);
  if (stops) output->set_stop_id(token);
  output->set_prompt_tokens(static_cast<uint32_t>(live->prompt_tokens));
  output->set_cached_tokens(static_cast<uint32_t>(live->cached_tokens));
  // The last token's keys were never computed.
  if (options_.prefix_caching) {
    cache_.Store(
        cache_.Names(live->salt, absl::MakeConstSpan(live->ids).first(live->ids.size() - 1)));
  }
  Drop(peer, live);
}

void ScriptedService::SendStep(std::map<Peer*, wire::WorkerFrame> frames) {
  const std::vector<wire::CacheChanges> told = TakeTold();
  const bool changed = !told.empty();
  for (Peer* peer : peers_) {
    const auto found = frames.find(peer);
    if (found == frames.end() && !changed) continue;
    wire::WorkerFrame frame = StepFrame(peer);
    if (found != frames.end()) {
      frame.mutable_step()->mutable_outputs()->Swap(
          found->second.mutable_step()->mutable_outputs());
    }
    if (changed) *frame.mutable_step()->mutable_cache() = told[0];
    Send(peer, std::move(frame));
  }
  for (size_t i = 1; i < told.size(); ++i) Tell(told[i]);
}

std::string ScriptedService::address() const { return absl::StrCat(options_.host, ":", port_); }

}  // namespace glm::bench
