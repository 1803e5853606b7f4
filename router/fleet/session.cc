#include "router/fleet/session.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"

namespace glm::router {
namespace {

/// A step may take this many times what it should before its worker is taken for hung.
constexpr int64_t kStepSlack = 8;

constexpr double kMicro = 1e-6;

/// What a worker says of its times, or nothing where that is no time: at most an hour.
float Sane(float microseconds) {
  return microseconds > 0 && microseconds < 3.6e9f ? microseconds : 0;
}

WorkerShape ShapeOf(const wire::Welcome& welcome) {
  WorkerShape shape;
  shape.incarnation = welcome.incarnation();
  shape.model_name = welcome.model_name();
  shape.vocabulary = static_cast<int32_t>(welcome.vocabulary());
  shape.length_max = static_cast<int32_t>(welcome.length_max());
  shape.block_size = static_cast<int32_t>(welcome.block_size());
  shape.kv_blocks_total = static_cast<int64_t>(welcome.kv_blocks_total());
  shape.sequences_max = static_cast<int32_t>(welcome.sequences_max());
  shape.step_tokens_max = static_cast<int32_t>(welcome.step_tokens_max());
  for (const uint32_t id : welcome.eos_ids()) shape.eos_ids.push_back(static_cast<int32_t>(id));
  return shape;
}

absl::Status CheckShape(const WorkerShape& shape, const WorkerDemand& demand) {
  if (shape.model_name != demand.model_name) {
    return absl::FailedPreconditionError(absl::StrCat("worker serves model '", shape.model_name,
                                                      "', not '", demand.model_name, "'"));
  }
  if (shape.vocabulary < demand.vocabulary_min) {
    return absl::FailedPreconditionError(absl::StrCat("worker's vocabulary is ", shape.vocabulary,
                                                      "; the tokenizer's ids need at least ",
                                                      demand.vocabulary_min));
  }
  if (shape.length_max < 2 || shape.block_size < 1 || shape.sequences_max < 1) {
    return absl::FailedPreconditionError(
        absl::StrCat("worker's length_max=", shape.length_max, ", block_size=", shape.block_size,
                     ", sequences_max=", shape.sequences_max, " must be at least 2, 1 and 1"));
  }
  return absl::OkStatus();
}

}  // namespace

std::shared_ptr<Session> Session::Open(const std::string& address, const FleetOptions& options,
                                       const WorkerDemand& demand, const FleetRooms& rooms,
                                       Events events) {
  std::shared_ptr<Session> session(new Session(address, options, demand, rooms, std::move(events)));
  session->self_ = session;
  session->Dial();
  return session;
}

Session::Session(const std::string& address, const FleetOptions& options,
                 const WorkerDemand& demand, const FleetRooms& rooms, Events events)
    : address_(address),
      options_(options),
      demand_(demand),
      rooms_(rooms),
      events_(std::move(events)),
      live_(rooms.loops.size()) {}

void Session::Dial() {
  stream_ = rooms_.dial(address_, this);
  stream_->Start();
  wire::RouterFrame hello;
  hello.mutable_hello()->set_protocol_version(kProtocolVersion);
  hello.mutable_hello()->set_router_name("glmserve-router");
  Send(std::move(hello));
}

WorkerLoad Session::Load() const {
  const auto relaxed = std::memory_order_relaxed;
  return {.requests = std::max(own_requests_.load(relaxed), said_requests_.load(relaxed)),
          .tokens_waiting =
              std::max(own_tokens_waiting_.load(relaxed), said_tokens_waiting_.load(relaxed)),
          .kv_blocks_used = said_kv_blocks_used_.load(relaxed),
          .kv_blocks_total = said_kv_blocks_total_.load(relaxed),
          .context_tokens = said_context_tokens_.load(relaxed),
          .step_times = {.base_s = kMicro * said_base_us_.load(relaxed),
                         .sequence_s = kMicro * said_sequence_us_.load(relaxed),
                         .prompt_token_s = kMicro * said_prompt_token_us_.load(relaxed),
                         .context_token_s = kMicro * said_context_token_us_.load(relaxed)},
          .silent_s = 1e-3 * static_cast<double>(NowMs(*rooms_.loops[0]) - heard_ms_.load())};
}

int64_t Session::Room() const {
  if (!accepting()) return 0;
  const WorkerLoad load = Load();
  const bool crowded =
      said_requests_waiting_.load(std::memory_order_relaxed) > options_.worker_queue_requests ||
      load.tokens_waiting >= options_.worker_queue_tokens;
  const int64_t room =
      crowded ? 0 : int64_t{shape_.sequences_max} + options_.worker_queue_requests - load.requests;
  // What it said may be long past when it has nothing of ours: one more, and it says it anew.
  const bool idle = own_requests_.load(std::memory_order_relaxed) == 0;
  return std::max<int64_t>(room, idle ? 1 : 0);
}

absl::StatusOr<uint64_t> Session::Submit(Loop* loop, wire::Submit submit, Receiver* receiver,
                                         int64_t cached_tokens) {
  DCHECK(loop->OnThread());
  const absl::Status refusal =
      absl::UnavailableError(absl::StrCat("worker ", address_, " takes no new requests"));
  if (!accepting()) return refusal;
  const uint64_t id =
      requests_made_.fetch_add(1, std::memory_order_relaxed) * live_.size() + loop->index();
  submit.set_request_id(id);
  Live live{.receiver = receiver,
            .prompt_tokens = std::max<int64_t>(0, submit.prompt_ids_size() - cached_tokens)};
  if (own_requests_.fetch_add(1, std::memory_order_relaxed) == 0) busy_since_ms_ = NowMs(*loop);
  own_tokens_waiting_.fetch_add(live.prompt_tokens, std::memory_order_relaxed);
  LiveTable& table = live_[loop->index()];
  table.emplace(id, live);
  wire::RouterFrame frame;
  *frame.mutable_submit() = std::move(submit);
  if (!Send(std::move(frame))) {
    table.erase(id);
    Forget(live);
    return refusal;
  }
  return id;
}

void Session::Cancel(Loop* loop, uint64_t request_id) {
  DCHECK(loop->OnThread());
  LiveTable& table = live_[loop->index()];
  const auto found = table.find(request_id);
  if (found == table.end()) return;
  Forget(found->second);
  table.erase(found);
  wire::RouterFrame frame;
  frame.mutable_cancel()->set_request_id(request_id);
  Send(std::move(frame));
  TellRoom();
}

void Session::Forget(const Live& live) {
  own_requests_.fetch_sub(1, std::memory_order_relaxed);
  if (!live.answered) {
    own_tokens_waiting_.fetch_sub(live.prompt_tokens, std::memory_order_relaxed);
  }
}

void Session::Retire() {
  const std::lock_guard<std::mutex> lock(out_mutex_);
  retired_ = true;
  accepting_ = false;
}

void Session::Close(const absl::Status& reason) {
  {
    const std::lock_guard<std::mutex> lock(out_mutex_);
    accepting_ = false;
    if (close_reason_.ok()) close_reason_ = reason;
  }
  stream_->Cancel();
}

bool Session::Send(wire::RouterFrame frame) {
  const int64_t bytes = static_cast<int64_t>(frame.ByteSizeLong());
  {
    const std::lock_guard<std::mutex> lock(out_mutex_);
    if (ended_) return false;
    if (out_bytes_ + bytes <= options_.session_out_bytes_max) {
      out_bytes_ += bytes;
      out_.push_back(std::move(frame));
      if (out_.size() == 1) stream_->Write(&out_.front());
      return true;
    }
  }
  Close(absl::ResourceExhaustedError(absl::StrCat("worker takes its frames too slowly: over ",
                                                  options_.session_out_bytes_max,
                                                  " bytes (--session-out-bytes-max) wait")));
  return false;
}

void Session::OnWritten(bool ok) {
  const std::lock_guard<std::mutex> lock(out_mutex_);
  // A write that fails means a broken stream: the read under way fails too, and ends the session.
  if (!ok || ended_) return;
  out_bytes_ -= static_cast<int64_t>(out_.front().ByteSizeLong());
  out_.pop_front();
  if (!out_.empty()) stream_->Write(&out_.front());
}

void Session::OnBroken() {
  accepting_ = false;
  cache_.reset();
  const std::lock_guard<std::mutex> lock(out_mutex_);
  ended_ = true;
}

void Session::OnFrame(wire::WorkerFrame* frame) {
  heard_ms_ = NowMs(*rooms_.loops[0]);
  if (absl::Status status = TakeFrame(frame); !status.ok()) Close(status);
}

absl::Status Session::TakeFrame(wire::WorkerFrame* frame) {
  if (frame->has_welcome()) return TakeWelcome(frame->welcome());
  if (!welcomed_) return absl::FailedPreconditionError("worker's first frame is not a Welcome");
  if (frame->has_cache_snapshot()) {
    if (cache_.has_value()) Obey(cache_->Take(frame->cache_snapshot()));
  } else if (frame->has_step()) {
    step_age_ms_ = 0;
    TakeStep(frame->mutable_step());
  } else if (frame->has_heartbeat()) {
    step_age_ms_ = frame->heartbeat().step_age_ms();
    step_expected_ms_ = frame->heartbeat().step_expected_ms();
    if (frame->heartbeat().has_load()) TakeLoad(frame->heartbeat().load());
    if (frame->heartbeat().has_cache() && cache_.has_value()) {
      Obey(cache_->Take(frame->heartbeat().cache()));
    }
  }
  return absl::OkStatus();
}

void Session::CheckProgress() {
  if (own_requests_.load(std::memory_order_relaxed) == 0) return;
  const int64_t silent_ms =
      NowMs(*rooms_.loops[0]) - std::max(heard_ms_.load(), busy_since_ms_.load());
  if (silent_ms > options_.hang_timeout_ms) {
    rooms_.metrics->CountHang(HangKind::kSilent);
    Close(absl::UnavailableError(absl::StrCat("no frame for ", silent_ms,
                                              " ms, with requests under way (--hang-timeout-ms ",
                                              options_.hang_timeout_ms, ")")));
    return;
  }
  const int64_t expected_ms = step_expected_ms_;
  const int64_t limit_ms =
      expected_ms > 0 ? std::max<int64_t>(options_.hang_timeout_ms, kStepSlack * expected_ms)
                      : options_.step_timeout_ms;
  if (step_age_ms_ <= limit_ms) return;
  rooms_.metrics->CountHang(HangKind::kStep);
  Close(absl::UnavailableError(absl::StrCat("a step takes ", step_age_ms_.load(),
                                            " ms and more; the limit is ", limit_ms,
                                            " ms (--step-timeout-ms, or ", kStepSlack,
                                            " times the ", expected_ms, " ms it should take)")));
}

absl::Status Session::TakeWelcome(const wire::Welcome& welcome) {
  if (welcomed_) return absl::FailedPreconditionError("worker sent a second Welcome");
  if (welcome.protocol_version() != kProtocolVersion) {
    return absl::FailedPreconditionError(absl::StrCat("worker speaks protocol version ",
                                                      welcome.protocol_version(),
                                                      "; this router speaks ", kProtocolVersion));
  }
  shape_ = ShapeOf(welcome);
  if (absl::Status status = CheckShape(shape_, demand_); !status.ok()) return status;
  welcomed_ = true;
  if (welcome.prefix_caching()) FollowCache();
  said_kv_blocks_total_ = shape_.kv_blocks_total;
  {
    const std::lock_guard<std::mutex> lock(out_mutex_);
    if (!close_reason_.ok()) return absl::OkStatus();
    accepting_ = !retired_;
  }
  events_.on_ready();
  return absl::OkStatus();
}

void Session::FollowCache() {
  cache_.emplace(rooms_.index);
  cache_slot_ = cache_->slot();
  if (cache_slot_ >= 0) AskSnapshot();
}

void Session::Obey(CacheFeed::Next next) {
  if (next == CacheFeed::Next::kGoOn) return;
  rooms_.metrics->CountCacheBreak();
  AskSnapshot();
}

void Session::AskSnapshot() {
  rooms_.metrics->CountCacheSnapshot();
  wire::RouterFrame frame;
  frame.mutable_ask_cache_snapshot();
  Send(std::move(frame));
}

void Session::TakeLoad(const wire::Load& load) {
  const auto relaxed = std::memory_order_relaxed;
  said_requests_.store(static_cast<int32_t>(load.requests_running() + load.requests_waiting()),
                       relaxed);
  said_requests_waiting_.store(static_cast<int32_t>(load.requests_waiting()), relaxed);
  said_tokens_waiting_.store(static_cast<int64_t>(load.tokens_waiting()), relaxed);
  said_kv_blocks_used_.store(static_cast<int64_t>(load.kv_blocks_used()), relaxed);
  said_kv_blocks_total_.store(static_cast<int64_t>(load.kv_blocks_total()), relaxed);
  said_context_tokens_.store(static_cast<int64_t>(load.context_tokens()), relaxed);
  TellRoom();
  if (!load.has_step_times()) return;  // as said before
  const wire::StepTimes& times = load.step_times();
  said_base_us_.store(Sane(times.base_us()), relaxed);
  said_sequence_us_.store(Sane(times.sequence_us()), relaxed);
  said_prompt_token_us_.store(Sane(times.prompt_token_us()), relaxed);
  said_context_token_us_.store(Sane(times.context_token_us()), relaxed);
}

void Session::TakeStep(wire::Step* step) {
  if (step->has_cache() && cache_.has_value()) Obey(cache_->Take(step->cache()));
  if (step->has_load()) TakeLoad(step->load());
  if (step->draining() && !draining_) {
    draining_ = true;
    accepting_ = false;
    events_.on_draining();
  }
  std::vector<std::vector<wire::Output>> split(live_.size());
  for (wire::Output& output : *step->mutable_outputs()) {
    split[output.request_id() % split.size()].push_back(std::move(output));
  }
  for (size_t i = 0; i < split.size(); ++i) {
    if (split[i].empty()) continue;
    rooms_.loops[i]->Post([self = self_, i, outputs = std::move(split[i])] {
      self->Deliver(static_cast<int32_t>(i), outputs);
    });
  }
}

void Session::Deliver(int32_t loop_index, const std::vector<wire::Output>& outputs) {
  LiveTable& table = live_[loop_index];
  for (const wire::Output& output : outputs) {
    const auto found = table.find(output.request_id());
    if (found == table.end()) continue;  // cancelled here, and not yet there
    Receiver* const receiver = found->second.receiver;
    if (output.finish() != wire::FINISH_NONE) {
      Forget(found->second);
      table.erase(found);
    } else if (!found->second.answered && output.token_ids_size() > 0) {
      found->second.answered = true;
      own_tokens_waiting_.fetch_sub(found->second.prompt_tokens, std::memory_order_relaxed);
    }
    receiver->OnOutput(output);
  }
  TellRoom();
}

void Session::OnClosed(const absl::Status& stream_status) {
  absl::Status status = stream_status;
  {
    const std::lock_guard<std::mutex> lock(out_mutex_);
    if (!close_reason_.ok()) status = close_reason_;
  }
  if (status.ok()) status = absl::UnavailableError("worker ended the stream");
  // Posted after every frame's outputs, so what came is delivered before it is lost. The last post
  // takes the stream's hold along: a channel that dies on a thread of gRPC's would have it join
  // itself.
  const size_t last = rooms_.loops.size() - 1;
  for (size_t i = 0; i < last; ++i) {
    rooms_.loops[i]->Post(
        [self = self_, i, status] { self->LoseAll(static_cast<int32_t>(i), status); });
  }
  rooms_.loops[last]->Post([self = std::move(self_), last, status] {
    self->LoseAll(static_cast<int32_t>(last), status);
    self->events_.on_end(status);
  });
}

void Session::LoseAll(int32_t loop_index, const absl::Status& status) {
  LiveTable& table = live_[loop_index];
  // One by one: a receiver that hears of it may cancel others of this table.
  while (!table.empty()) {
    const Live live = table.begin()->second;
    table.erase(table.begin());
    Forget(live);
    live.receiver->OnLost(
        absl::UnavailableError(absl::StrCat("worker ", address_, " was lost: ", status.message())));
  }
}

}  // namespace glm::router
