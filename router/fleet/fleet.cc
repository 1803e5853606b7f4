#include "router/fleet/fleet.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"

namespace glm::router {
namespace {

/// How often the sessions' progress is looked at.
constexpr std::chrono::milliseconds kWatchEvery{250};

bool AnyAccepts(const FleetSnapshot& snapshot) {
  return std::any_of(snapshot.workers.begin(), snapshot.workers.end(), [](const auto& worker) {
    return worker.session != nullptr && worker.session->accepting();
  });
}

}  // namespace

int32_t BackoffMs(const FleetOptions& options, int32_t failures, double random) {
  const double doublings = std::min(std::max(failures - 1, 0), 30);
  const double plain =
      std::min<double>(options.backoff_max_ms, options.backoff_initial_ms * std::exp2(doublings));
  const double jittered = plain * (1 + options.backoff_jitter * (2 * random - 1));
  return std::max(1, static_cast<int32_t>(jittered));
}

Fleet::Fleet(const FleetOptions& options, const WorkerDemand& demand, FleetRooms rooms,
             std::function<void(const FleetSnapshot&)> on_change)
    : options_(options),
      demand_(demand),
      rooms_(std::move(rooms)),
      loop_(rooms_.loops[0]),
      on_change_(std::move(on_change)),
      snapshot_(std::make_shared<const FleetSnapshot>()),
      outliers_(options) {
  const absl::Status named = SetMembers(MemberSource::kStatic, options.workers);
  CHECK(named.ok()) << "options that were validated: " << named;
}

Fleet::~Fleet() { Stop(); }

void Fleet::Start() {
  CHECK(!started_) << "a fleet starts once";
  started_ = true;
  loop_->Run([this] {
    watch_timer_ = loop_->NewTimer();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      running_ = true;
    }
    ApplyMembers();
    Watch();
  });
}

void Fleet::BeginStop() {
  if (!started_ || stop_begun_) return;
  stop_begun_ = true;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    running_ = false;
  }
  loop_->Post([this] {
    stopping_ = true;
    watch_timer_->Cancel();
    for (const std::unique_ptr<Member>& member : members_) {
      member->timer->Cancel();
      if (member->session != nullptr) member->session->Close(absl::CancelledError("router stops"));
    }
    if (sessions_open_ == 0) stopped_.set_value();
  });
}

void Fleet::Stop() {
  BeginStop();
  if (!started_) return;
  started_ = false;
  stopped_.get_future().wait();
  loop_->Run([this] {
    members_.clear();
    watch_timer_ = nullptr;
  });
}

void Fleet::Watch() {
  for (const std::unique_ptr<Member>& member : members_) {
    if (member->session == nullptr) continue;
    member->session->CheckProgress();
    if (member->leaves_by.has_value()) Dismiss(member.get());
  }
  PublishEjections();
  watch_timer_->Set(loop_->Now() + kWatchEvery, [this] { Watch(); });
}

absl::Status Fleet::SetMembers(MemberSource source, std::vector<std::string> addresses) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<std::string> wanted;
  std::set<std::string> seen;
  for (int32_t i = 0; i < kMemberSourceCount; ++i) {
    const bool is_new = i == static_cast<int32_t>(source);
    for (const std::string& address : is_new ? addresses : sources_[i]) {
      if (seen.insert(address).second) wanted.push_back(address);
    }
  }
  if (wanted.size() > static_cast<size_t>(kMembersMax)) {
    return absl::ResourceExhaustedError(absl::StrCat(
        wanted.size(), " workers are named, by all sources together; the limit is ", kMembersMax));
  }
  rooms_.metrics->SetMembers(source, static_cast<int32_t>(addresses.size()));
  sources_[static_cast<size_t>(source)] = std::move(addresses);
  if (wanted == wanted_) return absl::OkStatus();
  wanted_ = std::move(wanted);
  if (running_) loop_->Post([this] { ApplyMembers(); });
  return absl::OkStatus();
}

void Fleet::ApplyMembers() {
  if (stopping_) return;
  std::vector<std::string> wanted;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    wanted = wanted_;
  }
  const std::set<std::string> keep(wanted.begin(), wanted.end());
  std::set<std::string> known;
  for (const std::unique_ptr<Member>& member : members_) {
    if (keep.contains(member->address)) {
      known.insert(member->address);
    } else if (!member->leaves_by.has_value()) {
      LOG(INFO) << "worker " << member->address << " leaves: no source names it any more";
      member->leaves_by = loop_->Now() + std::chrono::seconds(options_.leave_timeout_s);
      if (member->session == nullptr) {
        LOG(INFO) << "worker " << member->address << " has left";
        continue;  // erased below
      }
      member->session->Retire();
      Dismiss(member.get());
    }
  }
  std::erase_if(members_, [](const auto& member) {
    return member->leaves_by.has_value() && member->session == nullptr;
  });
  for (const std::string& address : wanted) {
    if (!known.contains(address)) Dial(AddMember(address));
  }
  Publish();
}

Fleet::Member* Fleet::AddMember(const std::string& address) {
  members_.push_back(std::make_unique<Member>());
  members_.back()->address = address;
  members_.back()->timer = loop_->NewTimer();
  return members_.back().get();
}

void Fleet::Dismiss(Member* member) {
  if (member->state != WorkerState::kConnecting) member->state = WorkerState::kDraining;
  if (member->session->requests() > 0 && loop_->Now() < *member->leaves_by) return;
  member->session->Close(absl::UnavailableError("no source names it any more"));
}

bool Fleet::IsWanted(const std::string& address) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return std::find(wanted_.begin(), wanted_.end(), address) != wanted_.end();
}

std::shared_ptr<const FleetSnapshot> Fleet::Snapshot() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return snapshot_;
}

bool Fleet::ready() const { return AnyAccepts(*Snapshot()); }

int64_t Fleet::Room() const {
  int64_t room = -1;
  int64_t room_of_ejected = -1;
  for (const FleetWorker& worker : Snapshot()->workers) {
    if (worker.session == nullptr || !worker.session->accepting()) continue;
    int64_t& sum = worker.ejected ? room_of_ejected : room;
    sum = std::max<int64_t>(sum, 0) + worker.session->Room();
  }
  return room >= 0 ? room : room_of_ejected;
}

void Fleet::TakeFault(const std::string& address, WorkerFault fault) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!running_) return;
  const auto size = static_cast<int32_t>(snapshot_->workers.size());
  if (!outliers_.TakeFault(address, fault, size, NowMs(*loop_))) return;
  rooms_.metrics->CountEjection();
  // Under the lock, so that nothing is posted once it no longer runs.
  loop_->Post([this, address] {
    LOG(WARNING) << "worker " << address << " fails, and is not chosen for a while";
    PublishEjections();
  });
}

void Fleet::TakeSuccess(const std::string& address) {
  const std::lock_guard<std::mutex> lock(mutex_);
  outliers_.TakeSuccess(address, NowMs(*loop_));
}

void Fleet::PublishEjections() {
  bool same = true;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const FleetWorker& worker : snapshot_->workers) {
      same = same && worker.ejected == outliers_.IsEjected(worker.address, NowMs(*loop_));
    }
  }
  if (!same && !stopping_) Publish();
}

void Fleet::Dial(Member* member) {
  member->state = WorkerState::kConnecting;
  ++sessions_open_;
  // A member has one session at a time, and on_end is the last that is heard of it: so the events
  // need not say which session they are of.
  member->session = Session::Open(
      member->address, options_, demand_, rooms_,
      {.on_ready = [this, member] { loop_->Post([this, member] { OnReady(member); }); },
       .on_draining = [this, member] { loop_->Post([this, member] { OnDraining(member); }); },
       .on_end =
           [this, member](absl::Status status) {
             loop_->Post([this, member, status] { OnEnd(member, status); });
           }});
  const auto timeout = std::chrono::milliseconds(options_.connect_timeout_ms);
  member->timer->Set(loop_->Now() + timeout, [this, member] {
    if (member->state != WorkerState::kConnecting) return;
    member->session->Close(absl::DeadlineExceededError(absl::StrCat(
        "no Welcome within ", options_.connect_timeout_ms, " ms (--connect-timeout-ms)")));
  });
}

void Fleet::OnReady(Member* member) {
  if (stopping_ || member->leaves_by.has_value()) return;
  member->state = WorkerState::kReady;
  member->failures = 0;
  member->last_error = absl::OkStatus();
  member->timer->Cancel();
  const WorkerShape& shape = member->session->shape();
  LOG(INFO) << "worker " << member->address << " is ready: " << shape.model_name << ", length "
            << shape.length_max << ", " << shape.sequences_max << " sequences, "
            << shape.kv_blocks_total << " blocks of " << shape.block_size << " tokens";
  Publish();
}

void Fleet::OnDraining(Member* member) {
  if (stopping_) return;
  LOG(INFO) << "worker " << member->address << " drains";
  member->state = WorkerState::kDraining;
  Publish();
}

void Fleet::OnEnd(Member* member, const absl::Status& status) {
  --sessions_open_;
  member->session = nullptr;
  member->state = WorkerState::kDown;
  if (stopping_) {
    if (sessions_open_ == 0) stopped_.set_value();
    return;
  }
  if (member->leaves_by.has_value()) return EndLeave(member);
  // The same failure again and again is said once.
  if (status != member->last_error) {
    LOG(WARNING) << "worker " << member->address << " is down: " << status.message();
  }
  member->last_error = status;
  ++member->failures;
  DialLater(member);
  Publish();
}

void Fleet::EndLeave(Member* member) {
  LOG(INFO) << "worker " << member->address << " has left";
  const std::string address = member->address;
  std::erase_if(members_, [&](const auto& other) { return other.get() == member; });
  // Perhaps a source names it anew since; its old session could take nothing more.
  if (IsWanted(address)) Dial(AddMember(address));
  Publish();
}

void Fleet::DialLater(Member* member) {
  const double random = static_cast<double>(loop_->Random() >> 11) * 0x1p-53;
  const auto wait = std::chrono::milliseconds(BackoffMs(options_, member->failures, random));
  member->timer->Set(loop_->Now() + wait, [this, member] {
    Dial(member);
    Publish();
  });
}

void Fleet::Publish() {
  auto snapshot = std::make_shared<FleetSnapshot>();
  for (const std::unique_ptr<Member>& member : members_) {
    FleetWorker worker{.address = member->address,
                       .state = member->state,
                       .session = nullptr,
                       .unauthenticated = absl::IsUnauthenticated(member->last_error)};
    if (member->state == WorkerState::kReady || member->state == WorkerState::kDraining) {
      worker.session = member->session;
    }
    if (member->state == WorkerState::kReady) {
      ++snapshot->ready;
      const int32_t length_max = member->session->shape().length_max;
      snapshot->length_max =
          snapshot->ready == 1 ? length_max : std::min(snapshot->length_max, length_max);
    }
    snapshot->workers.push_back(std::move(worker));
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (FleetWorker& worker : snapshot->workers) {
      worker.ejected = outliers_.IsEjected(worker.address, NowMs(*loop_));
      if (worker.ejected) ++snapshot->ejected;
    }
    snapshot_ = snapshot;
  }
  rooms_.metrics->SetEjected(snapshot->ejected);
  if (rooms_.on_room) rooms_.on_room();
  if (on_change_) on_change_(*snapshot);
}

}  // namespace glm::router
