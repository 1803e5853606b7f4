#include "router/front/grpc_front.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/credentials.h"
#include "proto/router.grpc.pb.h"
#include "proto/rpc_status.h"
#include "proto/wire_limits.h"
#include "router/admit/admission.h"
#include "router/fleet/fleet.h"
#include "router/front/grpc_call.h"
#include "router/front/grpc_request.h"

namespace glm::router {

namespace pb = ::glmserve::v1;

namespace {

void FillUsage(const Usage& usage, pb::Usage* message) {
  message->set_prompt_tokens(static_cast<uint32_t>(usage.prompt_tokens));
  message->set_completion_tokens(static_cast<uint32_t>(usage.completion_tokens));
  message->set_cached_tokens(static_cast<uint32_t>(usage.cached_tokens));
}

int64_t AppendScores(const std::vector<TokenScore>& scores,
                     google::protobuf::RepeatedPtrField<pb::TokenLogprobs>* messages) {
  size_t bytes = 0;
  for (const TokenScore& score : scores) {
    pb::TokenLogprobs* const message = messages->Add();
    message->set_id(static_cast<uint32_t>(score.id));
    message->set_logprob(score.logprob);
    message->set_rank(static_cast<uint32_t>(score.rank));
    message->set_token(std::string(score.bytes));
    for (const TokenScore::Alternative& other : score.top) {
      pb::TokenLogprobs::Alternative* const alternative = message->add_top();
      alternative->set_id(static_cast<uint32_t>(other.id));
      alternative->set_logprob(other.logprob);
      alternative->set_token(std::string(other.bytes));
    }
    bytes += message->ByteSizeLong();
  }
  return static_cast<int64_t>(bytes);
}

template <typename Event>
int64_t AppendLogprobs(const AnswerDelta& delta, Event* event) {
  return AppendScores(delta.logprobs, event->mutable_logprobs()) +
         AppendScores(delta.prompt_logprobs, event->mutable_prompt_logprobs());
}

template <typename Event>
void FillEnd(const AnswerDelta& delta, Event* event) {
  if (!delta.end.has_value()) return;
  event->set_finish_reason(*delta.end == AnswerEnd::kStop ? "stop" : "length");
  FillUsage(delta.usage, event->mutable_usage());
}

/// A call that is refused before it begins.
template <typename Event>
class RefusedCall final : public grpc::ServerWriteReactor<Event> {
 public:
  RefusedCall(const absl::Status& status, grpc::CallbackServerContext* call) {
    this->Finish(EndOfCall(status, call));
  }
  void OnDone() override { delete this; }
};

}  // namespace

int64_t AppendDelta(AnswerDelta delta, pb::GenerateEvent* event) {
  const size_t bytes = delta.content.size() + delta.token_ids.size() * sizeof(int32_t);
  event->mutable_text()->append(delta.content);
  event->mutable_token_ids()->Add(delta.token_ids.begin(), delta.token_ids.end());
  FillEnd(delta, event);
  return static_cast<int64_t>(bytes) + AppendLogprobs(delta, event);
}

int64_t AppendDelta(AnswerDelta delta, pb::ChatEvent* event) {
  event->mutable_content()->append(delta.content);
  event->mutable_reasoning_content()->append(delta.reasoning);
  FillEnd(delta, event);
  return static_cast<int64_t>(delta.content.size() + delta.reasoning.size()) +
         AppendLogprobs(delta, event);
}

class GrpcFront::Service final : public pb::Generation::CallbackService {
 public:
  Service(const GrpcOptions& options, const ExchangeRooms& rooms, LoopPool* loops)
      : options_(options), rooms_(rooms), loops_(loops) {}

  grpc::ServerWriteReactor<pb::GenerateEvent>* Generate(
      grpc::CallbackServerContext* call, const pb::GenerateRequest* message) override {
    return StartCall<pb::GenerateEvent>(call, *message, ReadGenerateRequest,
                                        Endpoint::kGrpcGenerate);
  }

  grpc::ServerWriteReactor<pb::ChatEvent>* Chat(grpc::CallbackServerContext* call,
                                                const pb::ChatRequest* message) override {
    return StartCall<pb::ChatEvent>(call, *message, ReadChatRequest, Endpoint::kGrpcChat);
  }

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* call,
                                       const pb::ListModelsRequest*,
                                       pb::ListModelsResponse* response) override {
    pb::Model* const model = response->add_models();
    model->set_id(rooms_.model_name);
    model->set_length_max(static_cast<uint32_t>(rooms_.fleet->Snapshot()->length_max));
    grpc::ServerUnaryReactor* const reactor = call->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

 private:
  template <typename Message>
  using ReadMessage = absl::StatusOr<ExchangeRequest> (*)(const Message&);

  /// As the HTTP gateway's: a header of the option, or the API key in either of its places.
  TenantId TenantOf(const grpc::CallbackServerContext& call) const {
    const auto value = [&](const std::string& name) -> std::string_view {
      const auto found = call.client_metadata().find(name);
      if (found == call.client_metadata().end()) return {};
      return {found->second.data(), found->second.size()};
    };
    const Admission& admission = *rooms_.admission;
    if (!admission.options().tenant_header.empty()) {
      return admission.TenantOf(value(admission.options().tenant_header));
    }
    const std::string_view key = value("authorization");
    return admission.TenantOf(key.empty() ? value("x-api-key") : key);
  }

  template <typename Message>
  absl::StatusOr<std::vector<ExchangeRequest>> Read(const grpc::CallbackServerContext& call,
                                                    const Message& message,
                                                    ReadMessage<Message> read,
                                                    const Loop& loop) const {
    const TenantId tenant = TenantOf(call);
    // Before the message is looked at: to say no costs little then.
    absl::Status status = rooms_.admission->CheckBounds(tenant, NowMs(loop));
    if (!status.ok()) return status;
    absl::StatusOr<ExchangeRequest> request = read(message);
    if (!request.ok()) return request.status();
    const absl::StatusOr<int32_t> answers = ReadAnswers(message.params());
    if (!answers.ok()) return answers.status();
    request->tenant = tenant;
    return RequestsFor(*std::move(request), *answers);
  }

  template <typename Event, typename Message>
  grpc::ServerWriteReactor<Event>* StartCall(grpc::CallbackServerContext* call,
                                             const Message& message, ReadMessage<Message> read,
                                             Endpoint endpoint) {
    ExchangeRooms rooms = rooms_;
    rooms.loop = &loops_->Next();
    absl::StatusOr<std::vector<ExchangeRequest>> requests =
        Read<Message>(*call, message, read, *rooms.loop);
    if (!requests.ok()) {
      rooms_.metrics->CountRequest(endpoint, OutcomeOf(requests.status()));
      return new RefusedCall<Event>(requests.status(), call);
    }
    return GrpcCall<Event>::Start(rooms, *std::move(requests), options_.output_bytes_max, call);
  }

  const GrpcOptions options_;
  const ExchangeRooms rooms_;
  LoopPool* const loops_;
};

GrpcFront::GrpcFront() = default;

absl::StatusOr<std::unique_ptr<GrpcFront>> GrpcFront::Start(const GrpcOptions& options,
                                                            const ExchangeRooms& rooms,
                                                            LoopPool* loops) {
  const auto credentials = MakeCredentials("grpc-tls", options.tls);
  if (!credentials.ok()) return credentials.status();
  std::unique_ptr<GrpcFront> front(new GrpcFront());
  front->loops_ = loops;
  front->service_ = std::make_unique<Service>(options, rooms, loops);
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  SetLimits({.message_bytes_max = options.message_bytes_max,
             .streams_max = options.streams_max,
             .memory_bytes_max = options.memory_bytes_max},
            &builder);
  int port = 0;
  builder.AddListeningPort(options.listen, *credentials, &port);
  builder.RegisterService(front->service_.get());
  front->server_ = builder.BuildAndStart();
  if (front->server_ == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on --grpc-listen=", options.listen, ": is it in use?"));
  }
  front->port_ = port;
  front->SetServing(false);
  return front;
}

GrpcFront::~GrpcFront() { Drain(std::chrono::milliseconds(0)); }

void GrpcFront::SetServing(bool serving) {
  grpc::HealthCheckServiceInterface* const health = server_->GetHealthCheckService();
  if (health == nullptr) return;
  health->SetServingStatus(serving);
  health->SetServingStatus(pb::Generation::service_full_name(), serving);
}

void GrpcFront::BeginDrain() {
  if (auto* health = server_->GetHealthCheckService(); health != nullptr) health->Shutdown();
}

void GrpcFront::Drain(std::chrono::milliseconds wait) {
  if (server_ == nullptr || drained_.exchange(true)) return;
  BeginDrain();
  server_->Shutdown(std::chrono::system_clock::now() + wait);
  server_->Wait();
  // What gRPC's last callbacks posted is done before the rooms may go.
  for (int32_t i = 0; i < loops_->size(); ++i) loops_->at(i).Run([] {});
}

}  // namespace glm::router
