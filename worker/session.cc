#include "worker/session.h"

#include <utility>

#include "proto/base/log.h"
#include "proto/rpc_status.h"
#include "worker/service.h"

namespace glm::worker {

namespace pb = ::glmserve::worker::v1;

Session::Session(Service* service, grpc::CallbackServerContext* call, int32_t frames_max)
    : service_(service), call_(call), peer_(call->peer()), frames_max_(frames_max) {}

std::shared_ptr<Session> Session::Start(Service* service, grpc::CallbackServerContext* call,
                                        int32_t frames_max,
                                        std::chrono::milliseconds hello_timeout) {
  std::shared_ptr<Session> session(new Session(service, call, frames_max));
  session->self_ = session;
  session->AwaitHello(hello_timeout);
  session->StartRead(&session->incoming_);
  return session;
}

void Session::AwaitHello(std::chrono::milliseconds timeout) {
  // The alarm's own hold on the session ends inside the call, never with the alarm: its destructor
  // must not run while the alarm destroys the function.
  hello_alarm_.Set(std::chrono::system_clock::now() + timeout, [hold = self_](bool) mutable {
    const std::shared_ptr<Session> session = std::move(hold);
    {
      MutexLock lock(&session->mutex_);
      if (session->greeted_ || session->ended_) return;
    }
    session->End(
        grpc::Status(grpc::StatusCode::DEADLINE_EXCEEDED, "no hello within --hello-timeout-ms"));
  });
}

void Session::Send(pb::WorkerFrame frame) {
  bool overflow = false;
  {
    MutexLock lock(&mutex_);
    if (ended_) return;
    overflow = static_cast<int32_t>(outgoing_.size()) >= frames_max_;
    if (!overflow) {
      outgoing_.push_back(std::move(frame));
      last_sent_ = std::chrono::steady_clock::now();
      if (!writing_) {
        writing_ = true;
        StartWrite(&outgoing_.front());
      }
    }
  }
  if (overflow) {
    LOG(WARNING) << "session " << number_ << " of " << peer_ << ": " << frames_max_
                 << " frames unread (--session-frames-max), closing";
    call_->TryCancel();
  }
}

std::chrono::steady_clock::time_point Session::last_sent() {
  MutexLock lock(&mutex_);
  return writing_ ? std::chrono::steady_clock::now() : last_sent_;
}

void Session::End(const grpc::Status& status) {
  {
    MutexLock lock(&mutex_);
    if (ended_) return;
    ended_ = true;
  }
  Finish(status);
}

void Session::OnReadDone(bool ok) {
  if (!ok) {  // the router closed its half, or the stream broke
    End(grpc::Status::OK);
    return;
  }
  TakeFrame();
  StartRead(&incoming_);
}

void Session::TakeFrame() {
  if (number_ == 0) {
    TakeHello();
    return;
  }
  switch (incoming_.frame_case()) {
    case pb::RouterFrame::kSubmit:
      service_->Submit(self_, incoming_.submit());
      return;
    case pb::RouterFrame::kCancel:
      service_->Cancel(number_, incoming_.cancel().request_id());
      return;
    case pb::RouterFrame::kAskCacheSnapshot:
      service_->AskCacheSnapshot(number_);
      return;
    case pb::RouterFrame::kHello:
    case pb::RouterFrame::FRAME_NOT_SET:
      End(grpc::Status(grpc::StatusCode::INVALID_ARGUMENT,
                       "expected a submit, a cancel or an ask_cache_snapshot after hello"));
      return;
  }
}

void Session::TakeHello() {
  if (!incoming_.has_hello()) {
    End(grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "the first frame must be hello"));
    return;
  }
  if (incoming_.hello().protocol_version() != kProtocolVersion) {
    End(grpc::Status(grpc::StatusCode::FAILED_PRECONDITION,
                     "protocol version " + std::to_string(incoming_.hello().protocol_version()) +
                         ", this worker speaks " + std::to_string(kProtocolVersion)));
    return;
  }
  {
    MutexLock lock(&mutex_);
    greeted_ = true;
  }
  hello_alarm_.Cancel();
  const absl::Status opened = service_->Open(self_);
  if (!opened.ok()) End(ToGrpcStatus(opened));
}

void Session::OnWriteDone(bool ok) {
  MutexLock lock(&mutex_);
  outgoing_.pop_front();
  if (!ok || ended_ || outgoing_.empty()) {
    writing_ = false;
    return;
  }
  StartWrite(&outgoing_.front());
}

void Session::OnCancel() { End(grpc::Status::CANCELLED); }

void Session::OnDone() {
  hello_alarm_.Cancel();
  if (number_ != 0) service_->Close(number_);
  const std::shared_ptr<Session> last = std::move(self_);
}

}  // namespace glm::worker
