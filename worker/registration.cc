#include "worker/registration.h"

#include <grpcpp/create_channel.h>

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "proto/base/log.h"
#include "proto/rpc_status.h"
#include "proto/wire_limits.h"

namespace glm::worker {

namespace pb = ::glmserve::registry::v1;

namespace {

constexpr uint32_t kProtocolVersion = 1;
constexpr std::chrono::seconds kConnectTimeout{5};

}  // namespace

std::string AnnouncementOf(const std::string& advertise, const std::string& listen, int32_t port) {
  if (!advertise.empty()) return advertise;
  if (absl::StartsWith(listen, "unix:")) return listen;
  const std::string host = listen.substr(0, listen.rfind(':'));
  const bool is_everywhere = host == "0.0.0.0" || host == "[::]";
  return absl::StrCat(is_everywhere ? "" : host, ":", port);
}

Registration::Registration(Options options, std::shared_ptr<grpc::ChannelCredentials> credentials,
                           const TokenFile* tokens)
    : options_(std::move(options)),
      credentials_(std::move(credentials)),
      tokens_(tokens),
      thread_([this] { Stay(); }) {}

Registration::~Registration() {
  {
    MutexLock lock(&mutex_);
    leaving_ = true;
    if (call_ != nullptr) call_->TryCancel();
  }
  stop_.SignalAll();
  thread_.join();
}

void Registration::Leave() {
  MutexLock lock(&mutex_);
  leaving_ = true;
  if (stream_ != nullptr) {
    stream_->WritesDone();
  } else if (call_ != nullptr) {
    call_->TryCancel();
  }
  stop_.SignalAll();
}

void Registration::Stay() {
  std::chrono::milliseconds pause = options_.backoff_initial;
  do {
    absl::Status why;
    if (StayOnce(&why)) pause = options_.backoff_initial;
    {
      MutexLock lock(&mutex_);
      if (leaving_) return;
    }
    SayOnce(absl::StrCat("not registered with ", options_.router, ": ",
                         why.ok() ? "the router ended the stream" : why.message()));
    if (!Pause(pause)) return;
    pause = std::min(2 * pause, options_.backoff_max);
  } while (true);
}

bool Registration::StayOnce(absl::Status* why) {
  ChannelLimits limits;
  limits.tls_name = options_.tls_name;
  const auto channel =
      grpc::CreateCustomChannel(options_.router, credentials_, MakeChannelArguments(limits));
  // A stream begun on a channel that cannot connect would wait where Leave does not reach it.
  if (!channel->WaitForConnected(std::chrono::system_clock::now() + kConnectTimeout)) {
    *why = absl::UnavailableError("cannot connect");
    return false;
  }
  grpc::ClientContext call;
  if (tokens_ != nullptr) call.AddMetadata("authorization", tokens_->Authorization());
  {
    MutexLock lock(&mutex_);
    if (leaving_) return false;
    call_ = &call;
  }
  const auto stub = pb::Registry::NewStub(channel);
  const auto stream = stub->Register(&call);
  pb::Announcement announcement;
  announcement.set_protocol_version(kProtocolVersion);
  announcement.set_address(options_.announcement);
  stream->Write(announcement);
  {
    MutexLock lock(&mutex_);
    stream_ = stream.get();
    if (leaving_) stream->WritesDone();
  }
  pb::Registered registered;
  bool answered = false;
  while (stream->Read(&registered)) {
    answered = true;
    SayOnce(absl::StrCat("registered with ", options_.router, " as ", registered.address()));
  }
  {
    MutexLock lock(&mutex_);
    stream_ = nullptr;
    call_ = nullptr;
  }
  *why = FromGrpcStatus(stream->Finish());
  return answered;
}

void Registration::SayOnce(const std::string& what) {
  if (what == said_) return;
  said_ = what;
  LOG(INFO) << what;
}

bool Registration::Pause(std::chrono::milliseconds pause) {
  const auto until = std::chrono::steady_clock::now() + pause;
  MutexLock lock(&mutex_);
  while (!leaving_ && std::chrono::steady_clock::now() < until) {
    stop_.WaitFor(&mutex_, std::chrono::duration_cast<std::chrono::milliseconds>(
                               until - std::chrono::steady_clock::now()) +
                               std::chrono::milliseconds(1));
  }
  return !leaving_;
}

}  // namespace glm::worker
