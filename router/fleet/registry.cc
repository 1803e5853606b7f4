#include "router/fleet/registry.h"

#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "proto/base/log.h"
#include "proto/bearer_token.h"
#include "proto/credentials.h"
#include "proto/option_checks.h"
#include "proto/peer_host.h"
#include "proto/registry.grpc.pb.h"
#include "proto/rpc_status.h"
#include "proto/wire_limits.h"
#include "router/route/worker_mask.h"

namespace glm::router {

namespace pb = ::glmserve::registry::v1;

namespace {

constexpr uint32_t kProtocolVersion = 1;
constexpr int64_t kMessageBytesMax = 4096;
constexpr std::chrono::milliseconds kLookEvery{250};
/// A worker has one, and for a moment two when it has just come back.
constexpr int32_t kStreamsMax = 2 * WorkerMask::kWorkersMax;

}  // namespace

absl::StatusOr<std::string> AnnouncedAddress(absl::string_view announced, absl::string_view peer) {
  std::string address(announced);
  if (absl::StartsWith(announced, ":")) address = absl::StrCat(PeerHost(peer), announced);
  if (announced.size() <= 256 && IsAddress(address, 1)) return address;
  return absl::InvalidArgumentError(
      absl::StrCat("address='", announced.substr(0, 256), "', from ", peer,
                   ", must be host:port, with a port from 1 to 65535, :port, or unix:/path"));
}

void Registrations::Join(const std::string& address) { ++known_[address].streams; }

void Registrations::Part(const std::string& address, bool leaves, Clock::time_point now) {
  const auto found = known_.find(address);
  CHECK(found != known_.end()) << address << " parts and never joined";
  if (--found->second.streams > 0) return;
  found->second.broken = now;
  if (leaves) known_.erase(found);
}

bool Registrations::ForgetLost(Clock::time_point now,
                               const std::function<bool(const std::string&)>& reached) {
  for (auto& [address, known] : known_) {
    if (known.streams == 0 && reached(address)) known.broken = now;
  }
  return std::erase_if(known_, [&](const auto& entry) {
           return entry.second.streams == 0 && now - entry.second.broken >= grace_;
         }) > 0;
}

std::vector<std::string> Registrations::Addresses() const {
  std::vector<std::string> addresses;
  for (const auto& entry : known_) addresses.push_back(entry.first);
  return addresses;
}

class Registry::Service final : public pb::Registry::CallbackService {
 public:
  Service(const MembershipOptions& options, Rooms rooms)
      : rooms_(std::move(rooms)),
        registrations_(std::chrono::seconds(options.registration_grace_s)),
        thread_([this] { Look(); }) {}
  ~Service() override { thread_.join(); }

  grpc::ServerBidiReactor<pb::Announcement, pb::Registered>* Register(
      grpc::CallbackServerContext* call) override;

  /// From now on nothing is passed on.
  void Stop() {
    MutexLock lock(&mutex_);
    stopping_ = true;
    stop_.SignalAll();
  }

  absl::Status Open() {
    MutexLock lock(&mutex_);
    if (streams_ >= kStreamsMax) {
      return absl::ResourceExhaustedError(
          absl::StrCat(streams_, " registrations are open; the limit is ", kStreamsMax));
    }
    ++streams_;
    return absl::OkStatus();
  }
  void Close() {
    MutexLock lock(&mutex_);
    --streams_;
  }

  /// A worker is there. RESOURCE_EXHAUSTED.
  absl::Status Join(const std::string& address) {
    MutexLock lock(&mutex_);
    const bool is_new = !registrations_.Knows(address);
    registrations_.Join(address);
    if (!is_new || stopping_) return absl::OkStatus();
    const absl::Status named =
        rooms_.set_members(MemberSource::kRegistry, registrations_.Addresses());
    if (named.ok()) {
      LOG(INFO) << "worker " << address << " registers itself";
    } else {
      registrations_.Part(address, /*leaves=*/true, Registrations::Clock::now());
      rooms_.metrics->CountMemberError(MemberSource::kRegistry);
    }
    return named;
  }
  void Part(const std::string& address, bool leaves) {
    MutexLock lock(&mutex_);
    registrations_.Part(address, leaves, Registrations::Clock::now());
    if (!registrations_.Knows(address)) Tell();
  }

 private:
  friend class Registry::Stream;

  void Look();
  /// Fewer than before are always taken.
  void Tell() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (stopping_) return;
    const absl::Status told =
        rooms_.set_members(MemberSource::kRegistry, registrations_.Addresses());
    if (!told.ok()) LOG(WARNING) << "registrations: " << told.message();
  }

  const Rooms rooms_;
  Mutex mutex_;  // "registrations"
  Condition stop_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  int32_t streams_ ABSL_GUARDED_BY(mutex_) = 0;
  Registrations registrations_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;  // last: it uses the others
};

void Registry::Service::Look() {
  MutexLock lock(&mutex_);
  while (!stopping_) {
    stop_.WaitFor(&mutex_, kLookEvery);
    if (!stopping_ && registrations_.ForgetLost(Registrations::Clock::now(), rooms_.reached)) {
      Tell();
    }
  }
}

/// One worker's stream. gRPC's threads; deletes itself.
class Registry::Stream final : public grpc::ServerBidiReactor<pb::Announcement, pb::Registered> {
 public:
  Stream(Service* service, grpc::CallbackServerContext* call)
      : service_(service), peer_(call->peer()) {
    grpc::Status status = grpc::Status::OK;
    if (service->rooms_.tokens != nullptr) {
      status = service->rooms_.tokens->Check(call->client_metadata());
    }
    if (status.ok()) {
      status = ToGrpcStatus(service->Open());
      is_open_ = status.ok();
    }
    if (!is_open_) {
      service->rooms_.metrics->CountMemberError(MemberSource::kRegistry);
      finished_ = true;
      Finish(status);
      return;
    }
    StartRead(&announcement_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) {  // it closed its half, or the stream broke; OnDone knows which
      if (!finished_.exchange(true)) {
        leaves_ = true;
        Finish(grpc::Status::OK);
      }
      return;
    }
    const absl::Status status = Take();
    if (!status.ok()) {
      if (!finished_.exchange(true)) Finish(ToGrpcStatus(status));
      return;
    }
    StartWrite(&answer_);
    StartRead(&announcement_);
  }
  void OnCancel() override {
    is_cancelled_ = true;
    if (!finished_.exchange(true)) Finish(grpc::Status::CANCELLED);
  }
  void OnDone() override {
    if (!answer_.address().empty()) service_->Part(answer_.address(), leaves_ && !is_cancelled_);
    if (is_open_) service_->Close();
    delete this;
  }

 private:
  absl::Status Take() {
    if (!answer_.address().empty()) {
      return absl::InvalidArgumentError("a second announcement on one stream");
    }
    if (announcement_.protocol_version() != kProtocolVersion) {
      return absl::FailedPreconditionError(absl::StrCat("protocol version ",
                                                        announcement_.protocol_version(),
                                                        ", this router speaks ", kProtocolVersion));
    }
    const absl::StatusOr<std::string> address = AnnouncedAddress(announcement_.address(), peer_);
    if (!address.ok()) return address.status();
    if (absl::Status joined = service_->Join(*address); !joined.ok()) return joined;
    answer_.set_address(*address);
    return absl::OkStatus();
  }

  Service* const service_;
  const std::string peer_;
  bool is_open_ = false;
  std::atomic<bool> finished_{false};
  std::atomic<bool> leaves_{false};
  std::atomic<bool> is_cancelled_{false};
  pb::Announcement announcement_;
  pb::Registered answer_;  // its address is set while the worker is joined
};

grpc::ServerBidiReactor<pb::Announcement, pb::Registered>* Registry::Service::Register(
    grpc::CallbackServerContext* call) {
  return new Stream(this, call);
}

Registry::Registry() = default;

absl::StatusOr<std::unique_ptr<Registry>> Registry::Start(const MembershipOptions& options,
                                                          Rooms rooms) {
  const auto credentials = MakeCredentials("registry-tls", options.registry_tls);
  if (!credentials.ok()) return credentials.status();
  std::unique_ptr<Registry> registry(new Registry());
  registry->service_ = std::make_unique<Service>(options, std::move(rooms));
  grpc::ServerBuilder builder;
  SetLimits({.message_bytes_max = kMessageBytesMax, .streams_max = 4}, &builder);
  builder.AddListeningPort(options.registry_listen, *credentials, &registry->port_);
  builder.RegisterService(registry->service_.get());
  registry->server_ = builder.BuildAndStart();
  if (registry->server_ == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on --registry-listen=", options.registry_listen));
  }
  return registry;
}

Registry::~Registry() {
  service_->Stop();
  if (server_ != nullptr) {
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
  }
}

}  // namespace glm::router
