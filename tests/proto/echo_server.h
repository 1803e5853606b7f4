// The smallest server that speaks our wire's service: it answers each frame with a Welcome.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "proto/wire_limits.h"
#include "proto/worker.grpc.pb.h"

namespace glm::test {

namespace wire = ::glmserve::worker::v1;

class EchoServer {
 public:
  EchoServer(const std::shared_ptr<grpc::ServerCredentials>& credentials,
             const ServerLimits& limits) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", credentials, &port_);
    builder.RegisterService(&service_);
    SetLimits(limits, &builder);
    server_ = builder.BuildAndStart();
  }
  ~EchoServer() { server_->Shutdown(std::chrono::system_clock::now()); }

  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

 private:
  class Service final : public wire::Worker::Service {
    grpc::Status Session(
        grpc::ServerContext*,
        grpc::ServerReaderWriter<wire::WorkerFrame, wire::RouterFrame>* stream) override {
      wire::RouterFrame in;
      wire::WorkerFrame out;
      out.mutable_welcome()->set_protocol_version(1);
      while (stream->Read(&in) && stream->Write(out)) {
      }
      return grpc::Status::OK;
    }
  };

  int port_ = 0;
  Service service_;
  std::unique_ptr<grpc::Server> server_;
};

/// One stream to such a server.
class EchoStream {
 public:
  explicit EchoStream(const std::shared_ptr<grpc::Channel>& channel)
      : stub_(wire::Worker::NewStub(channel)) {
    call_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    stream_ = stub_->Session(&call_);
  }
  ~EchoStream() { call_.TryCancel(); }

  /// Sends a frame with a name of `bytes` bytes; whether the answer came.
  bool Echo(size_t bytes = 1) {
    wire::RouterFrame frame;
    frame.mutable_hello()->set_router_name(std::string(bytes, 'r'));
    wire::WorkerFrame answer;
    return stream_->Write(frame) && stream_->Read(&answer);
  }
  /// Waits for the stream's end.
  grpc::Status Finish() {
    wire::WorkerFrame frame;
    while (stream_->Read(&frame)) {
    }
    return stream_->Finish();
  }

 private:
  grpc::ClientContext call_;
  std::unique_ptr<wire::Worker::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<wire::RouterFrame, wire::WorkerFrame>> stream_;
};

}  // namespace glm::test
