// A router's side of one stream with the worker's service, for tests.
#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <initializer_list>
#include <memory>

#include "proto/worker.grpc.pb.h"
#include "worker/service.h"

namespace glm::worker {

namespace pb = ::glmserve::worker::v1;

/// Synchronous: one thread.
class Peer {
 public:
  explicit Peer(const std::shared_ptr<grpc::Channel>& channel)
      : stub_(pb::Worker::NewStub(channel)) {
    // A test that waits for what never comes ends all the same.
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    stream_ = stub_->Session(&context_);
  }
  ~Peer() { context_.TryCancel(); }

  void Hello(uint32_t version = kProtocolVersion) {
    pb::RouterFrame frame;
    frame.mutable_hello()->set_protocol_version(version);
    frame.mutable_hello()->set_router_name("test");
    stream_->Write(frame);
  }
  void Submit(uint64_t request_id, std::initializer_list<uint32_t> prompt,
              uint32_t max_tokens = 5) {
    pb::RouterFrame frame;
    frame.mutable_submit()->set_request_id(request_id);
    frame.mutable_submit()->mutable_prompt_ids()->Add(prompt.begin(), prompt.end());
    frame.mutable_submit()->mutable_stop()->set_max_tokens(max_tokens);
    frame.mutable_submit()->mutable_sampling()->set_top_p(1);
    frame.mutable_submit()->mutable_sampling()->set_seed(0xFFFFFFFFFFFFFFFFull);
    stream_->Write(frame);
  }
  void Cancel(uint64_t request_id) {
    pb::RouterFrame frame;
    frame.mutable_cancel()->set_request_id(request_id);
    stream_->Write(frame);
  }
  void AskCacheSnapshot() {
    pb::RouterFrame frame;
    frame.mutable_ask_cache_snapshot();
    stream_->Write(frame);
  }
  /// The next frame; fails the test at the stream's end.
  pb::WorkerFrame Read() {
    pb::WorkerFrame frame;
    EXPECT_TRUE(stream_->Read(&frame));
    return frame;
  }
  /// Says hello and returns the welcome.
  pb::Welcome Open() {
    Hello();
    return Read().welcome();
  }
  grpc::Status Finish() {
    pb::WorkerFrame frame;
    while (stream_->Read(&frame)) {
    }
    return stream_->Finish();
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<pb::Worker::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<pb::RouterFrame, pb::WorkerFrame>> stream_;
};

}  // namespace glm::worker
