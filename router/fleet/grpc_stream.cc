#include "router/fleet/grpc_stream.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/support/client_callback.h>

#include <utility>

#include "proto/bearer_token.h"
#include "proto/rpc_status.h"
#include "proto/wire_limits.h"
#include "proto/worker.grpc.pb.h"

namespace glm::router {
namespace {

namespace wire = ::glmserve::worker::v1;

ChannelLimits LimitsOf(const FleetOptions& options) {
  return {.message_bytes_max = options.frame_bytes_max,
          .ping_ms = options.keepalive_ms,
          .ping_timeout_ms = options.keepalive_timeout_ms,
          .tls_name = options.tls.name};
}

class GrpcStream final : public WorkerStream,
                         private grpc::ClientBidiReactor<wire::RouterFrame, wire::WorkerFrame> {
 public:
  GrpcStream(std::shared_ptr<grpc::Channel> channel, const TokenFile* tokens, StreamReader* reader)
      : channel_(std::move(channel)), stub_(wire::Worker::NewStub(channel_)), reader_(reader) {
    if (tokens != nullptr) call_.AddMetadata("authorization", tokens->Authorization());
  }

  void Start() override {
    stub_->async()->Session(&call_, this);
    // Writes start outside of gRPC's callbacks: held until none can start any more.
    AddHold();
    StartRead(&frame_);
    StartCall();
  }
  void Write(const wire::RouterFrame* frame) override { StartWrite(frame); }
  void Cancel() override { call_.TryCancel(); }

 private:
  void OnReadDone(bool ok) override {
    if (ok) {
      reader_->OnFrame(&frame_);
      StartRead(&frame_);
      return;
    }
    reader_->OnBroken();
    RemoveHold();
  }
  void OnWriteDone(bool ok) override { reader_->OnWritten(ok); }
  /// The last call: another thread may have destroyed this when it returns.
  void OnDone(const grpc::Status& status) override { reader_->OnClosed(FromGrpcStatus(status)); }

  grpc::ClientContext call_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<wire::Worker::Stub> stub_;
  StreamReader* const reader_;
  wire::WorkerFrame frame_;  // being read
};

}  // namespace

DialWorker DialOverGrpc(const FleetOptions& options,
                        std::shared_ptr<grpc::ChannelCredentials> credentials,
                        const TokenFile* tokens) {
  if (credentials == nullptr) credentials = grpc::InsecureChannelCredentials();
  return [limits = LimitsOf(options), credentials, tokens](const std::string& address,
                                                           StreamReader* reader) {
    return std::make_unique<GrpcStream>(
        grpc::CreateCustomChannel(address, credentials, MakeChannelArguments(limits)), tokens,
        reader);
  };
}

}  // namespace glm::router
