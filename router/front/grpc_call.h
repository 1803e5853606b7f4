// One streaming call of the public gRPC service: an exchange for each answer on one side, a gRPC
// stream on the other.
//
// Who calls: GrpcFront makes it on a gRPC thread. All its state lives on its loop; gRPC's callbacks
// do nothing but post there, so nothing is locked. It frees itself when gRPC is done with it.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "proto/router.pb.h"
#include "proto/rpc_status.h"
#include "router/admit/retry_after.h"
#include "router/exchange.h"
#include "router/thread_loop.h"

namespace glm::router {

/// Ends a call with `status`: what it says of when to try again goes into the trailing metadata.
inline grpc::Status EndOfCall(const absl::Status& status, grpc::CallbackServerContext* call) {
  if (const std::optional<int32_t> seconds = RetryAfterOf(status); seconds.has_value()) {
    call->AddTrailingMetadata("retry-after", absl::StrCat(*seconds));
  }
  return ToGrpcStatus(status);
}

/// Adds a delta to an event that has not been sent; events that wait are merged, not queued.
/// Returns how many bytes it adds.
int64_t AppendDelta(AnswerDelta delta, glmserve::v1::GenerateEvent* event);
int64_t AppendDelta(AnswerDelta delta, glmserve::v1::ChatEvent* event);

template <typename Event>
class GrpcCall final : public grpc::ServerWriteReactor<Event>,
                       public std::enable_shared_from_this<GrpcCall<Event>> {
 public:
  /// gRPC gets the pointer, and gives it up with OnDone. `rooms.loop` is the call's loop.
  static GrpcCall* Start(const ExchangeRooms& rooms, std::vector<ExchangeRequest> requests,
                         int64_t output_bytes_max, grpc::CallbackServerContext* server_call) {
    std::shared_ptr<GrpcCall> call(new GrpcCall(rooms, output_bytes_max, server_call));
    call->self_ = call;
    rooms.loop->Post(
        [call, requests = std::move(requests)]() mutable { call->Begin(std::move(requests)); });
    return call.get();
  }

 private:
  GrpcCall(const ExchangeRooms& rooms, int64_t output_bytes_max,
           grpc::CallbackServerContext* server_call)
      : rooms_(rooms), output_bytes_max_(output_bytes_max), server_call_(server_call) {}

  void OnWriteDone(bool ok) override {
    rooms_.loop->Post([call = this->shared_from_this(), ok] {
      call->writing_ = false;
      if (ok) return call->Pump();
      call->End(absl::CancelledError("client is gone"));
    });
  }
  void OnCancel() override {
    rooms_.loop->Post([call = this->shared_from_this()] {
      call->End(absl::CancelledError("client left or its deadline passed"));
    });
  }
  void OnDone() override {
    rooms_.loop->Post([call = this->shared_from_this()] {
      call->answers_.clear();
      call->self_ = nullptr;
    });
  }

  // All below: on the loop.

  /// One of the n answers.
  struct Answer {
    std::unique_ptr<Exchange> exchange;
    Event waiting;  // what came since it was last written
    int64_t waiting_bytes = 0;
    bool has_waiting = false;
  };

  void Begin(std::vector<ExchangeRequest> requests) {
    if (end_.has_value()) return;  // cancelled before it began
    answers_.resize(requests.size());
    open_ = requests.size();
    for (size_t i = 0; i < requests.size() && !end_.has_value(); ++i) {
      std::unique_ptr<Exchange> exchange = Exchange::Start(
          rooms_, std::move(requests[i]),
          {.on_delta = [this, i](AnswerDelta delta) { TakeDelta(i, std::move(delta)); },
           .on_error = [this](const absl::Status& status) { End(status); }});
      if (!end_.has_value()) answers_[i].exchange = std::move(exchange);
    }
  }

  void TakeDelta(size_t index, AnswerDelta delta) {
    const bool last = delta.end.has_value();
    Answer& answer = answers_[index];
    const int64_t bytes = AppendDelta(std::move(delta), &answer.waiting);
    answer.waiting.set_index(static_cast<uint32_t>(index));
    answer.waiting_bytes += bytes;
    waiting_bytes_ += bytes;
    answer.has_waiting = answer.has_waiting || bytes > 0 || last;
    if (waiting_bytes_ > output_bytes_max_) {
      // The write under way waits for the client as well, and a status would wait behind it.
      server_call_->TryCancel();
      return End(absl::ResourceExhaustedError(
          absl::StrCat("client reads too slowly: over ", output_bytes_max_,
                       " bytes wait for it (--grpc-output-bytes-max)")));
    }
    if (last && --open_ == 0) end_ = absl::OkStatus();
    Pump();
  }

  /// Ends the call early: what waits is dropped.
  void End(const absl::Status& status) {
    for (Answer& answer : answers_) {
      answer.exchange = nullptr;
      if (!end_.has_value() || !status.ok()) answer.has_waiting = false;
    }
    if (!end_.has_value() || !status.ok()) end_ = status;
    Pump();
  }

  void Pump() {
    if (writing_ || finished_) return;
    // In turn, so that no answer holds up the others.
    for (size_t i = 0; i < answers_.size(); ++i) {
      Answer& answer = answers_[next_++ % answers_.size()];
      if (!answer.has_waiting) continue;
      sent_.Clear();
      sent_.Swap(&answer.waiting);
      answer.has_waiting = false;
      waiting_bytes_ -= std::exchange(answer.waiting_bytes, 0);
      writing_ = true;
      return this->StartWrite(&sent_);
    }
    if (end_.has_value()) {
      finished_ = true;
      this->Finish(EndOfCall(*end_, server_call_));
    }
  }

  const ExchangeRooms rooms_;
  const int64_t output_bytes_max_;
  grpc::CallbackServerContext* const server_call_;  // lives until OnDone
  std::shared_ptr<GrpcCall> self_;                  // gRPC's hold on this object, until OnDone
  std::vector<Answer> answers_;
  size_t open_ = 0;            // answers that have not ended
  size_t next_ = 0;            // the answer that is looked at first for what to write
  Event sent_;                 // being written while writing_
  int64_t waiting_bytes_ = 0;  // of all answers
  bool writing_ = false;
  bool finished_ = false;
  std::optional<absl::Status> end_;  // what the call ends with, once known
};

}  // namespace glm::router
