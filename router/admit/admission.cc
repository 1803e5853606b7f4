#include "router/admit/admission.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "proto/base/log.h"
#include "router/admit/retry_after.h"

namespace glm::router {
namespace {

/// Things change with every step of every worker; to look each time would cost more than it gives.
constexpr std::chrono::microseconds kPumpEvery{200};
/// While somebody waits it is looked at least this often, whoever forgot to say that things
/// changed.
constexpr std::chrono::milliseconds kPumpAtLeastEvery{50};
constexpr std::chrono::milliseconds kParkFor{10};

}  // namespace

Admission::Admission(const AdmitOptions& options, const HashKey& key, AdmissionRooms rooms)
    : options_(options),
      key_(key),
      rooms_(std::move(rooms)),
      retries_(options.retry_percent, options.retry_burst),
      pump_timer_(rooms_.loop->NewTimer()),
      queue_({.tenants_max = options.tenants_max,
              .priority_across_tenants = options.priority_across_tenants}) {}

Admission::~Admission() {
  // What was posted before is done then.
  rooms_.loop->Run([this] { pump_timer_ = nullptr; });
  DCHECK(counts() == Counts{}) << "requests outlive their queue";
}

TenantId Admission::TenantOf(std::string_view name) const {
  if (name.empty()) return {};
  const auto* bytes = reinterpret_cast<const uint8_t*>(name.data());
  const BlockKey digest = SipHash128(key_, std::span<const uint8_t>(bytes, name.size()));
  return {digest.high, digest.low};
}

// Refusals.

absl::Status Admission::Refuse(Refusal reason, const std::string& message, double seconds) const {
  rooms_.metrics->CountRefusal(reason);
  return WithRetryAfter(absl::ResourceExhaustedError(message), seconds);
}

double Admission::PredictWait(TenantId tenant, int32_t priority, int64_t now_ms) {
  const int64_t ahead = first_cost_ + queue_.CostAhead(tenant, priority);
  if (ahead == 0) return 0;
  const std::optional<double> rate = drain_.TokensPerSecond(now_ms);
  // Before there is a rate: as long as nothing moves, whoever comes waits at least as long.
  if (!rate.has_value()) return drain_.IdleSeconds(now_ms);
  return *rate > 0 ? static_cast<double>(ahead) / *rate : std::numeric_limits<double>::max();
}

absl::Status Admission::RefuseFor(TenantId tenant, int64_t now_ms, Refusal reason,
                                  const std::string& message) {
  return Refuse(reason, message, PredictWait(tenant, 0, now_ms));
}

absl::Status Admission::CheckQueue(TenantId tenant, int64_t prompt_tokens, int64_t now_ms) {
  const int64_t requests = static_cast<int64_t>(waiting_.size());
  if (requests >= options_.queue_requests_max) {
    return RefuseFor(tenant, now_ms, Refusal::kQueueRequests,
                     absl::StrCat(requests, " requests wait for a worker; the limit is ",
                                  options_.queue_requests_max, " (--queue-requests-max)"));
  }
  if (waiting_tokens_ + prompt_tokens > options_.queue_tokens_max) {
    return RefuseFor(tenant, now_ms, Refusal::kQueueTokens,
                     absl::StrCat("requests of ", waiting_tokens_,
                                  " prompt tokens wait for a worker; the limit is ",
                                  options_.queue_tokens_max, " (--queue-tokens-max)"));
  }
  // One request may always wait, and be as large as the queue takes.
  const int64_t own = queue_.RequestsOf(tenant);
  const int64_t own_tokens = queue_.PromptTokensOf(tenant);
  const double share = options_.queue_tenant_share;
  if (own > 0 && (static_cast<double>(own + 1) > share * options_.queue_requests_max ||
                  static_cast<double>(own_tokens + prompt_tokens) >
                      share * static_cast<double>(options_.queue_tokens_max))) {
    return RefuseFor(tenant, now_ms, Refusal::kTenantShare,
                     absl::StrCat(own, " requests of this API key, of ", own_tokens,
                                  " prompt tokens, wait for a worker; the limit is a share of ",
                                  share, " of the queue (--queue-tenant-share)"));
  }
  return absl::OkStatus();
}

absl::Status Admission::CheckWait(TenantId tenant, int32_t priority, int32_t timeout_ms,
                                  int64_t now_ms) {
  if (!worker_ready_) return absl::OkStatus();  // how long that takes is not known
  const double seconds = PredictWait(tenant, priority, now_ms);
  const int32_t limit_ms = std::min(options_.queue_wait_max_ms, timeout_ms);
  if (seconds * 1000 <= limit_ms) return absl::OkStatus();
  const char* const name =
      timeout_ms < options_.queue_wait_max_ms ? "the request's own" : "--queue-wait-max-ms";
  const std::string wait = seconds > kRetryAfterMaxS ? absl::StrCat("over ", kRetryAfterMaxS, " s")
                                                     : absl::StrFormat("about %.1f s", seconds);
  return Refuse(Refusal::kWait,
                absl::StrCat("the request would wait ", wait, " for a worker; the limit is ",
                             limit_ms, " ms (", name, ")"),
                seconds);
}

absl::Status Admission::TimedOut(TenantId tenant, int32_t priority, int64_t waited_ms,
                                 int64_t now_ms) {
  const MutexLock lock(&mutex_);
  return Refuse(Refusal::kTimeout,
                absl::StrCat("no worker had room for the request within ", waited_ms,
                             " ms (--queue-timeout-ms, or the request's own limit)"),
                PredictWait(tenant, priority, now_ms));
}

absl::Status Admission::CheckBounds(TenantId tenant, int64_t now_ms) {
  const int64_t open = open_.load();
  if (open >= options_.requests_max) {
    const MutexLock lock(&mutex_);
    return RefuseFor(tenant, now_ms, Refusal::kRequests,
                     absl::StrCat(open, " requests are in the router; the limit is ",
                                  options_.requests_max, " (--requests-max)"));
  }
  if (!IsLinedUp()) return absl::OkStatus();
  const MutexLock lock(&mutex_);
  return CheckQueue(tenant, 1, now_ms);
}

// A request's way.

absl::Status Admission::Enter(TenantId tenant, int32_t priority, int32_t timeout_ms,
                              int64_t now_ms) {
  if (absl::Status status = CheckBounds(tenant, now_ms); !status.ok()) return status;
  if (IsLinedUp()) {
    const MutexLock lock(&mutex_);
    if (absl::Status status = CheckWait(tenant, priority, timeout_ms, now_ms); !status.ok()) {
      return status;
    }
  }
  open_.fetch_add(1);
  rooms_.metrics->AddOpen(1);
  retries_.Offer();
  return absl::OkStatus();
}

void Admission::Leave(TenantId tenant, int64_t answer_tokens) {
  open_.fetch_sub(1);
  rooms_.metrics->AddOpen(-1);
  if (answer_tokens == 0) return;
  const MutexLock lock(&mutex_);
  queue_.LearnAnswer(tenant, answer_tokens);
}

absl::StatusOr<uint64_t> Admission::Wait(const WaitRequest& request, Loop* loop,
                                         std::function<void()> go) {
  const int64_t now_ms = NowMs(*loop);
  uint64_t ticket = 0;
  {
    const MutexLock lock(&mutex_);
    if (!request.replay) {
      absl::Status status = CheckQueue(request.tenant, request.prompt_tokens, now_ms);
      if (status.ok()) {
        status = CheckWait(request.tenant, request.priority, request.timeout_ms, now_ms);
      }
      if (!status.ok()) return status;
    }
    ticket = ++tickets_;
    Waiting& waiting = waiting_[ticket];
    waiting.request = {
        .ticket = ticket,
        .tenant = request.tenant,
        .priority = request.priority,
        .cost_tokens = request.prompt_tokens +
                       queue_.ExpectedAnswer(request.tenant, request.answer_tokens_max),
        .prompt_tokens = request.prompt_tokens};
    waiting.replay = request.replay;
    waiting.since_ms = now_ms;
    waiting.loop = loop;
    waiting.go = std::move(go);
    waiting_tokens_ += request.prompt_tokens;
    waiting.state = State::kGranted;  // until it is put in its place
    ++granted_;
    SetState(ticket, &waiting, request.replay ? State::kReplay : State::kQueued);
  }
  rooms_.metrics->AddWaiting(1);
  rooms_.metrics->AddWaitingTokens(request.prompt_tokens);
  RoomChanged();
  return ticket;
}

/// From one place to another. REQUIRES: it is not in the queue, which Pop takes it out of.
void Admission::SetState(uint64_t ticket, Waiting* waiting, State state) {
  const int64_t cost = waiting->request.cost_tokens;
  switch (waiting->state) {
    case State::kQueued:
      queue_.Remove(ticket);
      break;
    case State::kReplay:
      replays_.erase(ticket);
      first_cost_ -= cost;
      break;
    case State::kFirst:
      first_.erase(ticket);
      first_cost_ -= cost;
      break;
    case State::kParked:
      parked_.erase(ticket);
      break;
    case State::kGranted:
      --granted_;
      break;
  }
  waiting->state = state;
  switch (state) {
    case State::kQueued:
      queue_.Push(waiting->request);
      break;
    case State::kReplay:
      replays_.insert(ticket);
      first_cost_ += cost;
      break;
    case State::kFirst:
      first_.insert(ticket);
      first_cost_ += cost;
      break;
    case State::kParked:
      parked_.insert(ticket);
      break;
    case State::kGranted:
      ++granted_;
      break;
  }
  lined_up_.store(static_cast<int64_t>(waiting_.size() - parked_.size()));
}

void Admission::PutBack(uint64_t ticket, bool others_fit) {
  {
    const MutexLock lock(&mutex_);
    Waiting& waiting = waiting_.at(ticket);
    DCHECK(waiting.state == State::kGranted) << "put back out of turn";
    if (others_fit) {
      waiting.parked_until_ms = NowMs(*waiting.loop) + kParkFor.count();
      SetState(ticket, &waiting, State::kParked);
    } else {
      SetState(ticket, &waiting, waiting.replay ? State::kReplay : State::kFirst);
    }
  }
  SchedulePump();
}

void Admission::Forget(std::unordered_map<uint64_t, Waiting>::iterator found) {
  const int64_t prompt_tokens = found->second.request.prompt_tokens;
  SetState(found->first, &found->second, State::kGranted);
  --granted_;
  waiting_.erase(found);
  waiting_tokens_ -= prompt_tokens;
  lined_up_.store(static_cast<int64_t>(waiting_.size() - parked_.size()));
  rooms_.metrics->AddWaiting(-1);
  rooms_.metrics->AddWaitingTokens(-prompt_tokens);
}

void Admission::Sent(uint64_t ticket, int64_t now_ms) {
  {
    const MutexLock lock(&mutex_);
    const auto found = waiting_.find(ticket);
    CHECK(found != waiting_.end()) << "ticket " << ticket << " does not wait";
    drain_.Served(found->second.request.cost_tokens, now_ms);
    rooms_.metrics->ObserveQueueWait(static_cast<double>(now_ms - found->second.since_ms) / 1000);
    Forget(found);
  }
  RoomChanged();  // the room that was kept for it is now what the worker says
}

void Admission::Cancel(uint64_t ticket) {
  {
    const MutexLock lock(&mutex_);
    const auto found = waiting_.find(ticket);
    CHECK(found != waiting_.end()) << "ticket " << ticket << " does not wait";
    Forget(found);
  }
  RoomChanged();  // if it was its turn, it is another's now
}

Admission::Counts Admission::counts() const {
  const MutexLock lock(&mutex_);
  return {.open = open_.load(),
          .waiting = static_cast<int64_t>(waiting_.size()),
          .waiting_tokens = waiting_tokens_,
          .lined_up = lined_up_.load(),
          .granted = granted_};
}

// Who is next.

void Admission::RoomChanged() {
  if (IsLinedUp()) SchedulePump();
}

void Admission::SchedulePump() {
  if (!pump_due_.exchange(true)) rooms_.loop->Post([this] { Pump(); });
}

void Admission::PumpAt(Loop::Clock::time_point at) {
  pump_timer_->Set(at, [this] { Pump(); });
}

void Admission::Pump() {
  const Loop::Clock::time_point now = rooms_.loop->Now();
  if (now < pumped_ + kPumpEvery) return PumpAt(pumped_ + kPumpEvery);
  pumped_ = now;
  pump_due_ = false;  // what changes from here on is looked at again
  if (IsIdle()) return;
  for (auto& [loop, go] : ChooseNext(rooms_.room(), NowMs(*rooms_.loop))) {
    loop->Post(std::move(go));
  }
  const MutexLock lock(&mutex_);
  if (!parked_.empty()) {
    PumpAt(now + kParkFor);
  } else if (!waiting_.empty()) {
    PumpAt(now + kPumpAtLeastEvery);
  }
}

/// Where nobody waits the fleet may be gone already.
bool Admission::IsIdle() {
  const MutexLock lock(&mutex_);
  if (!waiting_.empty()) return false;
  drain_.SetBusy(false, NowMs(*rooms_.loop));
  return true;
}

void Admission::Unpark(int64_t now_ms) {
  const std::set<uint64_t> parked = parked_;
  for (const uint64_t ticket : parked) {
    Waiting& waiting = waiting_.at(ticket);
    if (waiting.parked_until_ms > now_ms) continue;
    SetState(ticket, &waiting, waiting.replay ? State::kReplay : State::kFirst);
  }
}

void Admission::Grant(uint64_t ticket, Grants* grants) {
  Waiting& waiting = waiting_.at(ticket);
  SetState(ticket, &waiting, State::kGranted);
  grants->emplace_back(waiting.loop, waiting.go);
}

Admission::Grants Admission::ChooseNext(int64_t room, int64_t now_ms) {
  Grants grants;
  const MutexLock lock(&mutex_);
  worker_ready_ = room >= 0;
  Unpark(now_ms);
  drain_.SetBusy(worker_ready_ && lined_up_.load() > granted_, now_ms);
  while (worker_ready_ && !replays_.empty()) Grant(*replays_.begin(), &grants);
  while (granted_ < room && !first_.empty()) Grant(*first_.begin(), &grants);
  while (granted_ < room) {
    const std::optional<QueuedRequest> next = queue_.Pop();
    if (!next.has_value()) break;
    Grant(next->ticket, &grants);
  }
  return grants;
}

}  // namespace glm::router
