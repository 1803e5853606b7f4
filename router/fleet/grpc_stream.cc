#include "router/fleet/grpc_stream.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/support/client_callback.h>

#include <utility>

#include "proto/rpc_status.h"
#include "proto/worker.grpc.pb.h"

namespace glm::router {
namespace {

namespace wire = ::glmserve::worker::v1;

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address,
                                           const FleetOptions& options) {
  grpc::ChannelArguments arguments;
  // A connection of its own for each session, so that the fleet's back-off is the only one.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, options.keepalive_ms);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, options.keepalive_timeout_ms);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetMaxReceiveMessageSize(static_cast<int>(options.frame_bytes_max));
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

class GrpcStream final : public WorkerStream,
                         private grpc::ClientBidiReactor<wire::RouterFrame, wire::WorkerFrame> {
 public:
  GrpcStream(std::shared_ptr<grpc::Channel> channel, StreamReader* reader)
      : channel_(std::move(channel)), stub_(wire::Worker::NewStub(channel_)), reader_(reader) {}

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

DialWorker DialOverGrpc(const FleetOptions& options) {
  return [options](const std::string& address, StreamReader* reader) {
    return std::make_unique<GrpcStream>(MakeChannel(address, options), reader);
  };
}

}  // namespace glm::router
