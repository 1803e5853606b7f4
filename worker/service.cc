#include "worker/service.h"

#include <pthread.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"
#include "proto/peer_host.h"
#include "worker/session.h"
#include "worker/wire.h"

namespace glm::worker {

namespace pb = ::glmserve::worker::v1;

namespace {

uint64_t DrawIncarnation() {
  std::random_device random;
  return (static_cast<uint64_t>(random()) << 32) | random();
}

/// Whether a router should hear of `now`, having been told `told`. A fit moves a little with every
/// step; what it says in all is what counts.
bool IsNews(const engine::StepTimes& now, const engine::StepTimes& told) {
  constexpr double kShare = 0.05;
  const auto differs = [](double a, double b) {
    return std::abs(a - b) > kShare * std::max(std::abs(a), std::abs(b));
  };
  return differs(now.base_us, told.base_us) || differs(now.sequence_us, told.sequence_us) ||
         differs(now.prompt_token_us, told.prompt_token_us) ||
         differs(now.context_token_us, told.context_token_us);
}

/// A call that ends before it begins.
class RefusedCall final : public grpc::ServerBidiReactor<pb::RouterFrame, pb::WorkerFrame> {
 public:
  explicit RefusedCall(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

}  // namespace

Service::Service(const WorkerOptions& options, WorkerMetrics* metrics, const TokenFile* tokens)
    : options_(options), metrics_(metrics), tokens_(tokens), incarnation_(DrawIncarnation()) {
  heart_ = std::thread([this] { Beat(); });
  pthread_setname_np(heart_.native_handle(), "heartbeat");
}

Service::~Service() {
  {
    MutexLock lock(&mutex_);
    beating_ = false;
    beat_changed_.Signal();
  }
  heart_.join();
}

void Service::Attach(engine::Engine* engine) {
  MutexLock lock(&mutex_);
  engine_ = engine;
}

grpc::ServerBidiReactor<pb::RouterFrame, pb::WorkerFrame>* Service::Session(
    grpc::CallbackServerContext* context) {
  if (tokens_ != nullptr) {
    const grpc::Status shown = tokens_->Check(context->client_metadata());
    if (!shown.ok()) {
      metrics_->CountRefusedSession(RefusedSession::kToken);
      const uint64_t count = ++unauthenticated_;
      if ((count & (count - 1)) == 0) {  // 1, 2, 4, 8, ...
        LOG(WARNING) << "call " << count << " refused, from " << context->peer() << ": "
                     << shown.error_message();
      }
      return new RefusedCall(shown);
    }
  }
  return glm::worker::Session::Start(this, context, options_.session_frames_max,
                                     std::chrono::milliseconds(options_.hello_timeout_ms))
      .get();
}

absl::Status Service::CheckRoom(const glm::worker::Session& session) const {
  if (static_cast<int32_t>(sessions_.size()) >= options_.sessions_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat(sessions_.size(), " routers are connected (--sessions-max)"));
  }
  const auto of_peer = std::count_if(sessions_.begin(), sessions_.end(), [&](const auto& other) {
    return PeerHost(other.second->peer()) == PeerHost(session.peer());
  });
  if (of_peer >= options_.peer_sessions_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat(of_peer, " routers of this host are connected (--peer-sessions-max)"));
  }
  return absl::OkStatus();
}

absl::Status Service::Open(const std::shared_ptr<glm::worker::Session>& session) {
  MutexLock lock(&mutex_);
  if (engine_ == nullptr) return absl::UnavailableError("the model is still loading");
  if (draining_) return absl::UnavailableError("this worker is draining");
  if (absl::Status status = CheckRoom(*session); !status.ok()) {
    metrics_->CountRefusedSession(RefusedSession::kLimit);
    return status;
  }
  session->number_ = next_session_number_++;
  sessions_[session->number_] = session;
  LOG(INFO) << "session " << session->number_ << ": router '"
            << session->incoming_.hello().router_name() << "' at " << session->peer();
  pb::WorkerFrame frame;
  *frame.mutable_welcome() = MakeWelcome();
  session->Send(std::move(frame));
  return absl::OkStatus();
}

pb::Welcome Service::MakeWelcome() const {
  const engine::EngineShape& shape = engine_->shape();
  pb::Welcome welcome;
  welcome.set_protocol_version(kProtocolVersion);
  welcome.set_incarnation(incarnation_);
  welcome.set_model_name(shape.model_name);
  welcome.set_vocabulary(shape.vocabulary);
  welcome.set_length_max(shape.length_max);
  welcome.set_block_size(shape.block_size);
  welcome.set_kv_blocks_total(shape.kv_blocks_total);
  welcome.set_sequences_max(shape.sequences_max);
  welcome.set_prefix_caching(shape.prefix_caching);
  welcome.set_step_tokens_max(static_cast<uint32_t>(std::max(0, shape.step_tokens_max)));
  welcome.mutable_eos_ids()->Add(shape.eos_ids.begin(), shape.eos_ids.end());
  return welcome;
}

void Service::Close(uint64_t session_number) {
  std::vector<engine::RequestId> orphans;
  engine::Engine* engine = nullptr;
  {
    MutexLock lock(&mutex_);
    const auto session = sessions_.find(session_number);
    if (session == sessions_.end()) return;
    for (const auto& [request_id, engine_id] : session->second->requests_) {
      orphans.push_back(engine_id);
      live_.erase(engine_id);
    }
    LOG(INFO) << "session " << session_number << " closed, " << orphans.size()
              << " requests cancelled";
    session->second->requests_.clear();
    if (live_.empty()) idle_.SignalAll();
    sessions_.erase(session);
    engine = engine_;
  }
  for (const engine::RequestId orphan : orphans) engine->Cancel(orphan);
}

absl::Status Service::Register(const std::shared_ptr<glm::worker::Session>& session,
                               uint64_t request_id, engine::RequestId* engine_id) {
  MutexLock lock(&mutex_);
  if (draining_) return absl::UnavailableError("this worker is draining");
  if (!sessions_.contains(session->number_)) return absl::CancelledError("the session has ended");
  *engine_id = next_engine_id_;
  if (!session->requests_.emplace(request_id, *engine_id).second) {
    return absl::AlreadyExistsError(absl::StrCat("request_id ", request_id, " is live already"));
  }
  ++next_engine_id_;
  if (session->requests_.size() == 1) {
    session->busy_since_ = Clock::now();
    beat_changed_.Signal();
  }
  live_[*engine_id] = LiveRequest{session, request_id, Clock::now(), {}, false};
  return absl::OkStatus();
}

void Service::Forget(engine::RequestId engine_id) {
  const auto live = live_.find(engine_id);
  if (live == live_.end()) return;
  live->second.session->requests_.erase(live->second.request_id);
  live_.erase(live);
  if (live_.empty()) idle_.SignalAll();
}

void Service::Submit(const std::shared_ptr<glm::worker::Session>& session,
                     const pb::Submit& submit) {
  engine::RequestId engine_id = 0;
  absl::Status status = Register(session, submit.request_id(), &engine_id);
  if (status.ok()) {
    // Registered first: the engine may answer before Submit returns.
    absl::StatusOr<engine::Request> request = FromWire(submit, engine_id);
    status = request.ok() ? engine_->Submit(*std::move(request)) : request.status();
    if (status.ok()) return;
    MutexLock lock(&mutex_);
    Forget(engine_id);
  }
  pb::WorkerFrame frame;
  pb::Output* output = frame.mutable_step()->add_outputs();
  output->set_request_id(submit.request_id());
  output->set_finish(pb::FINISH_REFUSED);
  output->set_error(std::string(status.message()));
  output->set_error_code(static_cast<int32_t>(status.code()));
  ToWire(engine_->Stats().load, frame.mutable_step()->mutable_load());
  session->Send(std::move(frame));
}

void Service::Cancel(uint64_t session_number, uint64_t request_id) {
  engine::RequestId engine_id = 0;
  {
    MutexLock lock(&mutex_);
    const auto session = sessions_.find(session_number);
    if (session == sessions_.end()) return;
    const auto request = session->second->requests_.find(request_id);
    if (request == session->second->requests_.end()) return;
    engine_id = request->second;
  }
  engine_->Cancel(engine_id);
}

void Service::AskCacheSnapshot(uint64_t session_number) {
  {
    MutexLock lock(&mutex_);
    const auto session = sessions_.find(session_number);
    if (session == sessions_.end()) return;
    session->second->wants_snapshot_ = true;
  }
  engine_->AskCacheSnapshot();
}

void Service::SendSnapshot(const engine::CacheSnapshot& snapshot) {
  for (const auto& [number, session] : sessions_) {
    if (!session->wants_snapshot_) continue;
    session->wants_snapshot_ = false;
    for (pb::WorkerFrame& frame : ToWire(snapshot)) session->Send(std::move(frame));
  }
}

void Service::Observe(const engine::RequestEvent& event, LiveRequest& live) {
  const Clock::time_point now = Clock::now();
  const auto seconds = [now](Clock::time_point since) {
    return std::chrono::duration<double>(now - since).count();
  };
  for (size_t i = 0; i < event.token_ids.size(); ++i) {
    if (live.has_token) {
      metrics_->ObserveInterToken(seconds(live.last_token));
    } else {
      metrics_->ObserveTimeToFirstToken(seconds(live.submitted));
    }
    live.has_token = true;
    live.last_token = now;
  }
  if (event.finish != engine::FinishReason::kNone) {
    metrics_->ObserveEndToEnd(seconds(live.submitted));
  }
}

void Service::Deliver(engine::StepEvents&& events) {
  MutexLock lock(&mutex_);
  NoteCache(events);
  std::map<uint64_t, pb::WorkerFrame> frames;
  for (const auto& [number, session] : sessions_) {
    pb::Step* step = frames[number].mutable_step();
    step->set_step(events.step);
    step->set_draining(draining_);
    TellLoad(events.load, session.get(), step->mutable_load());
    if (!events.cache_changes.empty()) ToWire(events, step->mutable_cache());
  }
  for (const engine::RequestEvent& event : events.requests) {
    const auto live = live_.find(event.id);
    if (live == live_.end()) continue;  // its session has closed
    Observe(event, live->second);
    const auto frame = frames.find(live->second.session->number_);
    CHECK(frame != frames.end()) << "a live request of a session that is not open";
    ToWire(event, live->second.request_id, frame->second.mutable_step()->add_outputs());
    if (event.finish != engine::FinishReason::kNone) Forget(event.id);
  }
  for (auto& [number, frame] : frames) sessions_[number]->Send(std::move(frame));
  if (events.cache_snapshot != nullptr) SendSnapshot(*events.cache_snapshot);
}

void Service::TellLoad(const engine::EngineLoad& load, glm::worker::Session* session,
                       pb::Load* wire) {
  ToWire(load, wire);
  if (!IsNews(load.step_times, session->step_times_told_)) return;
  ToWire(load.step_times, wire->mutable_step_times());
  session->step_times_told_ = load.step_times;
}

void Service::NoteCache(const engine::StepEvents& events) {
  cache_sequence_next_ = events.cache_sequence + events.cache_changes.size();
  cache_digest_ = events.cache_digest;
  if (events.cache_changes.empty()) return;
  for (const auto& [number, session] : sessions_) {
    if (!std::exchange(session->wants_digest_, true)) beat_changed_.Signal();
  }
}

// ---- Heartbeats
// ----------------------------------------------------------------------------------

void Service::Beat() {
  MutexLock lock(&mutex_);
  while (beating_) {
    const Clock::time_point now = Clock::now();
    const Clock::time_point next = SendHeartbeats(now);
    if (next == Clock::time_point::max()) {
      beat_changed_.Wait(&mutex_);
    } else {
      const auto wait = std::chrono::ceil<std::chrono::milliseconds>(next - now);
      beat_changed_.WaitFor(&mutex_, wait);
    }
  }
}

Service::Clock::time_point Service::SendHeartbeats(Clock::time_point now) {
  const auto period = std::chrono::milliseconds(options_.heartbeat_ms);
  Clock::time_point next = Clock::time_point::max();
  for (const auto& [number, session] : sessions_) {
    if (session->requests_.empty() && !session->wants_digest_) continue;
    Clock::time_point due = std::max(session->last_sent(), session->busy_since_) + period;
    if (due <= now) {
      const engine::EngineStats stats = engine_->Stats();
      pb::WorkerFrame frame;
      ToWire(stats, frame.mutable_heartbeat());
      TellLoad(stats.load, session.get(), frame.mutable_heartbeat()->mutable_load());
      if (std::exchange(session->wants_digest_, false)) {
        frame.mutable_heartbeat()->mutable_cache()->set_sequence(cache_sequence_next_);
        frame.mutable_heartbeat()->mutable_cache()->set_digest(cache_digest_);
      }
      metrics_->CountHeartbeat();
      session->Send(std::move(frame));
      if (session->requests_.empty()) continue;
      due = now + period;
    }
    next = std::min(next, due);
  }
  return next;
}

void Service::StartDraining() {
  MutexLock lock(&mutex_);
  draining_ = true;
  for (const auto& [number, session] : sessions_) {
    pb::WorkerFrame frame;
    frame.mutable_step()->set_draining(true);
    ToWire(engine_->Stats().load, frame.mutable_step()->mutable_load());
    session->Send(std::move(frame));
  }
}

bool Service::AwaitIdle(std::chrono::milliseconds timeout) {
  const Clock::time_point deadline = Clock::now() + timeout;
  MutexLock lock(&mutex_);
  while (!live_.empty()) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
    if (left.count() <= 0) return false;
    idle_.WaitFor(&mutex_, left);
  }
  return true;
}

void Service::CloseAll() {
  MutexLock lock(&mutex_);
  beating_ = false;
  beat_changed_.Signal();
  for (const auto& [number, session] : sessions_) {
    session->End(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the worker is shutting down"));
  }
}

}  // namespace glm::worker
