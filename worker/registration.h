// The worker makes itself known to routers: one stream to each for as long as it serves
// (registry.proto), dialled again with a growing pause when it breaks.
//
// Who calls: main, once the worker serves. Each router has a thread of its own here, which mostly
// waits for its stream to end.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/security/credentials.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "proto/base/mutex.h"
#include "proto/bearer_token.h"
#include "proto/registry.grpc.pb.h"

namespace glm::worker {

/// What to announce for a worker that listens at `listen` and was told to `advertise`; ":port" when
/// it listens everywhere, so that the router puts in whence the call comes. `port` is the one that
/// was bound.
std::string AnnouncementOf(const std::string& advertise, const std::string& listen, int32_t port);

/// One router.
class Registration {
 public:
  struct Options {
    std::string router;        // host:port or unix:/path
    std::string announcement;  // AnnouncementOf
    std::string tls_name;      // as ClientTls::name
    std::chrono::milliseconds backoff_initial{100};
    std::chrono::milliseconds backoff_max{5000};
  };

  /// `tokens`, whose first one is shown, outlives this; null: none is.
  Registration(Options options, std::shared_ptr<grpc::ChannelCredentials> credentials,
               const TokenFile* tokens);
  Registration(const Registration&) = delete;
  Registration& operator=(const Registration&) = delete;
  /// Ends the stream as if it broke, unless Leave came first and was heard.
  ~Registration();

  /// Tells the router that this worker goes. Does not wait for it.
  void Leave();

 private:
  using Stream = grpc::ClientReaderWriter<::glmserve::registry::v1::Announcement,
                                          ::glmserve::registry::v1::Registered>;

  void Stay();
  /// One stream from its beginning to its end; why it ended. Whether the router answered.
  bool StayOnce(absl::Status* why);
  /// Logs what has not been said just before.
  void SayOnce(const std::string& what);
  bool Pause(std::chrono::milliseconds pause);

  const Options options_;
  const std::shared_ptr<grpc::ChannelCredentials> credentials_;
  const TokenFile* const tokens_;
  std::string said_;  // the thread's

  Mutex mutex_;  // "registration"
  Condition stop_;
  bool leaving_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::ClientContext* call_ ABSL_GUARDED_BY(mutex_) = nullptr;  // of the stream there is
  Stream* stream_ ABSL_GUARDED_BY(mutex_) = nullptr;             // once it has begun
  std::thread thread_;                                           // last: it uses the others
};

}  // namespace glm::worker
