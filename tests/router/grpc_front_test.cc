#include "router/front/grpc_front.h"

#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/router.grpc.pb.h"
#include "tests/router/exchange_rig.h"

namespace glm::router {
namespace {

namespace pb = ::glmserve::v1;
using ::testing::HasSubstr;

const std::vector<int32_t> kPrompt = {300, 301, 302};

pb::GenerateRequest Ask(uint32_t max_tokens) {
  pb::GenerateRequest request;
  for (const int32_t id : kPrompt) {
    request.mutable_token_ids()->add_ids(static_cast<uint32_t>(id));
  }
  request.mutable_params()->set_max_tokens(max_tokens);
  request.mutable_params()->set_ignore_eos(true);
  return request;
}

class GrpcFrontTest : public ::testing::Test {
 protected:
  void StartFront(int32_t ready_workers) {
    rig_.Start(ready_workers);
    options_.listen = "127.0.0.1:0";
    absl::StatusOr<std::unique_ptr<GrpcFront>> front =
        GrpcFront::Start(options_, rig_.Rooms(), rig_.loops());
    ASSERT_TRUE(front.ok()) << front.status();
    front_ = *std::move(front);
    channel_ = grpc::CreateChannel(absl::StrCat("127.0.0.1:", front_->port()),
                                   grpc::InsecureChannelCredentials());
    stub_ = pb::Generation::NewStub(channel_);
  }
  /// The status of a call that is expected to fail before any event.
  grpc::Status StatusOf(const pb::GenerateRequest& request) {
    grpc::ClientContext call;
    const auto reader = stub_->Generate(&call, request);
    pb::GenerateEvent event;
    EXPECT_FALSE(reader->Read(&event));
    return reader->Finish();
  }
  /// What grpc.health.v1 says of `service`, asked by name so that no generated code is needed.
  std::string HealthOf(const std::string& service) {
    grpc::ClientContext call;
    grpc::GenericStub generic(channel_);
    grpc::CompletionQueue queue;
    std::string bytes;
    if (!service.empty())
      bytes = "\x0a" + std::string(1, static_cast<char>(service.size())) + service;
    const grpc::Slice slice(bytes);
    const grpc::ByteBuffer request(&slice, 1);
    auto unary = generic.PrepareUnaryCall(&call, "/grpc.health.v1.Health/Check", request, &queue);
    unary->StartCall();
    grpc::ByteBuffer response;
    grpc::Status status;
    unary->Finish(&response, &status, this);
    void* tag = nullptr;
    bool ok = false;
    EXPECT_TRUE(queue.Next(&tag, &ok));
    if (!status.ok()) return status.error_message();
    std::vector<grpc::Slice> slices;
    EXPECT_TRUE(response.Dump(&slices).ok());
    std::string answer;
    for (const grpc::Slice& part : slices) answer.append(part.begin(), part.end());
    return answer == "\x08\x01" ? "serving" : answer == "\x08\x02" ? "not serving" : "?";
  }

  ExchangeRig rig_;
  GrpcOptions options_;
  std::unique_ptr<GrpcFront> front_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<pb::Generation::Stub> stub_;
};

TEST_F(GrpcFrontTest, GenerateStreamsTextTokensAndUsage) {
  const FakeWorkerOptions options = rig_.WorkerOptions();
  rig_.AddWorker(options);
  StartFront(1);
  grpc::ClientContext call;
  const auto reader = stub_->Generate(&call, Ask(60));
  pb::GenerateEvent event;
  pb::GenerateEvent last;
  std::string text;
  std::vector<int32_t> ids;
  while (reader->Read(&event)) {
    text += event.text();
    ids.insert(ids.end(), event.token_ids().begin(), event.token_ids().end());
    EXPECT_EQ(last.finish_reason(), "") << "an event after the last";
    last = event;
  }
  const grpc::Status status = reader->Finish();
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(ids, FakeAnswer(options, kPrompt, 60));
  EXPECT_EQ(text, rig_.text().Decode(ids));
  EXPECT_EQ(last.finish_reason(), "length");
  EXPECT_EQ(last.usage().prompt_tokens(), 3u);
  EXPECT_EQ(last.usage().completion_tokens(), 60u);
}

TEST_F(GrpcFrontTest, ChatStreamsReasoningAndContent) {
  Chat chat;
  chat.messages.push_back({.role = ChatMessage::Role::kUser,
                           .content = "hi",
                           .reasoning = std::nullopt,
                           .tool_calls = {}});
  const ChatPrompt prompt = *rig_.text().EncodeChat(chat);
  rig_.AddWorker(
      rig_.Scripted(prompt.ids.size(), *rig_.text().EncodePrompt("\n<think>hm</think>\nwell met")));
  StartFront(1);
  pb::ChatRequest request;
  request.set_model("tiny");
  pb::ChatMessage* message = request.add_messages();
  message->set_role("user");
  message->set_content("hi");
  grpc::ClientContext call;
  const auto reader = stub_->Chat(&call, request);
  pb::ChatEvent event;
  std::string content;
  std::string reasoning;
  std::string finish;
  while (reader->Read(&event)) {
    content += event.content();
    reasoning += event.reasoning_content();
    finish = event.finish_reason();
  }
  const grpc::Status status = reader->Finish();
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_THAT(content, HasSubstr("well met"));
  EXPECT_THAT(reasoning, HasSubstr("hm"));
  EXPECT_EQ(finish, "stop");
}

TEST_F(GrpcFrontTest, SeveralAnswersShareACall) {
  const FakeWorkerOptions options = rig_.WorkerOptions();
  FakeWorker* worker = rig_.AddWorker(options);
  StartFront(1);
  pb::GenerateRequest request = Ask(20);
  request.mutable_params()->set_n(3);
  request.mutable_params()->set_logprobs(1);
  request.mutable_params()->set_prompt_logprobs(1);
  grpc::ClientContext call;
  const auto reader = stub_->Generate(&call, request);
  pb::GenerateEvent event;
  std::vector<int32_t> ids[3];
  std::vector<int32_t> scored[3];
  int ends[3] = {};
  int prompt_scores[3] = {};
  while (reader->Read(&event)) {
    ASSERT_LT(event.index(), 3u);
    EXPECT_EQ(ends[event.index()], 0) << "an event after the last";
    std::vector<int32_t>& of_answer = ids[event.index()];
    of_answer.insert(of_answer.end(), event.token_ids().begin(), event.token_ids().end());
    for (const pb::TokenLogprobs& score : event.logprobs()) {
      scored[event.index()].push_back(static_cast<int32_t>(score.id()));
      EXPECT_EQ(score.logprob(), FakeLogprobs(static_cast<int32_t>(score.id()), 1).logprob());
      EXPECT_EQ(score.token(),
                rig_.text().tokenizer().TokenBytes(static_cast<int32_t>(score.id())));
      EXPECT_EQ(score.top_size(), 1);
    }
    prompt_scores[event.index()] += event.prompt_logprobs_size();
    if (event.finish_reason().empty()) continue;
    ++ends[event.index()];
    EXPECT_EQ(event.usage().completion_tokens(), 20u);
  }
  ASSERT_TRUE(reader->Finish().ok());
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(ids[i], FakeAnswer(options, kPrompt, 20));
    EXPECT_EQ(scored[i], ids[i]);
    EXPECT_EQ(ends[i], 1);
    EXPECT_EQ(prompt_scores[i], i == 0 ? static_cast<int>(kPrompt.size()) : 0);
    EXPECT_EQ(worker->submits().at(i).sampling().choice(), static_cast<uint32_t>(i));
  }
}

TEST_F(GrpcFrontTest, ACancelledCallFreesAllItsAnswers) {
  FakeWorkerOptions options = rig_.WorkerOptions();
  options.automatic = false;
  FakeWorker* worker = rig_.AddWorker(options);
  StartFront(1);
  pb::GenerateRequest request = Ask(4000);
  request.mutable_params()->set_n(3);
  grpc::ClientContext call;
  const auto reader = stub_->Generate(&call, request);
  ASSERT_TRUE(worker->AwaitLive(3));
  call.TryCancel();
  ASSERT_TRUE(worker->AwaitLive(0));
  EXPECT_EQ(worker->seen().cancels, 3);
}

TEST_F(GrpcFrontTest, ErrorsComeAsStatuses) {
  rig_.AddWorker(rig_.WorkerOptions());
  StartFront(1);
  pb::GenerateRequest request = Ask(1);
  request.mutable_params()->set_temperature(3);
  grpc::Status status = StatusOf(request);
  EXPECT_EQ(status.error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("temperature=3 must be from 0 to 2"));

  status = StatusOf(pb::GenerateRequest());
  EXPECT_EQ(status.error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("prompt is missing"));

  request = Ask(1);
  request.set_model("other");
  EXPECT_EQ(StatusOf(request).error_code(), grpc::NOT_FOUND);

  EXPECT_THAT(rig_.metrics()->Text(),
              HasSubstr("requests_total{endpoint=\"grpc_generate\",outcome=\"invalid\"} 3"));
}

TEST_F(GrpcFrontTest, ACancelledCallFreesTheWorker) {
  FakeWorkerOptions options = rig_.WorkerOptions();
  options.automatic = false;
  FakeWorker* worker = rig_.AddWorker(options);
  StartFront(1);
  grpc::ClientContext call;
  const auto reader = stub_->Generate(&call, Ask(4000));
  ASSERT_TRUE(worker->AwaitLive(1));
  worker->Step();
  pb::GenerateEvent event;
  ASSERT_TRUE(reader->Read(&event));
  call.TryCancel();
  ASSERT_TRUE(worker->AwaitLive(0));
  EXPECT_EQ(worker->seen().cancels, 1);
  EXPECT_EQ(reader->Finish().error_code(), grpc::CANCELLED);
}

TEST_F(GrpcFrontTest, ADeadlineFreesTheWorker) {
  FakeWorkerOptions options = rig_.WorkerOptions();
  options.automatic = false;
  FakeWorker* worker = rig_.AddWorker(options);
  StartFront(1);
  grpc::ClientContext call;
  call.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(300));
  const auto reader = stub_->Generate(&call, Ask(4000));
  EXPECT_EQ(reader->Finish().error_code(), grpc::DEADLINE_EXCEEDED);
  ASSERT_TRUE(worker->AwaitLive(0));
}

TEST_F(GrpcFrontTest, AClientThatDoesNotReadIsCutOff) {
  FakeWorkerOptions options = rig_.WorkerOptions();
  options.length_max = 2'000'000;
  options.next_token = [](const std::vector<int32_t>&) { return 300; };
  options.tokens_per_step = 5000;
  FakeWorker* worker = rig_.AddWorker(options);
  options_.output_bytes_max = 65'536;
  StartFront(1);
  grpc::ClientContext call;
  const auto reader = stub_->Generate(&call, Ask(1'900'000));  // more than HTTP/2's windows hold
  ASSERT_TRUE(worker->Await([](const FakeWorker::Seen& seen) { return seen.cancels == 1; }));
  EXPECT_LT(worker->seen().tokens, 1'900'000);
  pb::GenerateEvent event;
  while (reader->Read(&event)) EXPECT_EQ(event.finish_reason(), "");
  EXPECT_FALSE(reader->Finish().ok());
}

TEST_F(GrpcFrontTest, ListsTheModel) {
  FakeWorkerOptions options = rig_.WorkerOptions();
  options.length_max = 777;
  rig_.AddWorker(options);
  StartFront(1);
  grpc::ClientContext call;
  pb::ListModelsResponse response;
  ASSERT_TRUE(stub_->ListModels(&call, pb::ListModelsRequest(), &response).ok());
  ASSERT_EQ(response.models_size(), 1);
  EXPECT_EQ(response.models(0).id(), "tiny");
  EXPECT_EQ(response.models(0).length_max(), 777u);
}

TEST_F(GrpcFrontTest, HealthSaysWhatItIsTold) {
  rig_.AddWorker(rig_.WorkerOptions());
  StartFront(1);
  EXPECT_EQ(HealthOf(""), "not serving");
  front_->SetServing(true);
  EXPECT_EQ(HealthOf(""), "serving");
  EXPECT_EQ(HealthOf("glmserve.v1.Generation"), "serving");
  front_->SetServing(false);
  EXPECT_EQ(HealthOf("glmserve.v1.Generation"), "not serving");
}

TEST_F(GrpcFrontTest, DrainLetsCallsFinishAndTakesNoNewOnes) {
  FakeWorkerOptions options = rig_.WorkerOptions();
  options.automatic = false;
  FakeWorker* worker = rig_.AddWorker(options);
  StartFront(1);
  grpc::ClientContext call;
  const auto reader = stub_->Generate(&call, Ask(3));
  ASSERT_TRUE(worker->AwaitLive(1));
  std::thread drain([this] { front_->Drain(std::chrono::seconds(60)); });
  worker->SetAutomatic(true);
  pb::GenerateEvent event;
  int64_t tokens = 0;
  while (reader->Read(&event)) tokens += event.token_ids_size();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(tokens, 3);
  drain.join();
  EXPECT_EQ(StatusOf(Ask(1)).error_code(), grpc::UNAVAILABLE);
}

TEST_F(GrpcFrontTest, DrainCutsWhatTakesTooLong) {
  FakeWorkerOptions options = rig_.WorkerOptions();
  options.automatic = false;
  FakeWorker* worker = rig_.AddWorker(options);
  StartFront(1);
  grpc::ClientContext call;
  const auto reader = stub_->Generate(&call, Ask(3));
  ASSERT_TRUE(worker->AwaitLive(1));
  front_->Drain(std::chrono::milliseconds(50));
  EXPECT_FALSE(reader->Finish().ok());
  EXPECT_TRUE(worker->AwaitLive(0));
}

TEST_F(GrpcFrontTest, APortInUseIsAnError) {
  StartFront(0);
  GrpcOptions options;
  options.listen = absl::StrCat("127.0.0.1:", front_->port());
  const auto second = GrpcFront::Start(options, rig_.Rooms(), rig_.loops());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(options.listen));
}

TEST_F(GrpcFrontTest, SaysNoAtOnceAndWhenToComeAgain) {
  FakeWorkerOptions options = rig_.WorkerOptions();
  options.automatic = false;
  options.sequences_max = 1;
  FakeWorker* const worker = rig_.AddWorker(options);
  rig_.fleet_options.worker_queue_requests = 0;
  rig_.admit_options.queue_requests_max = 4;
  rig_.admit_options.queue_tenant_share = 0.25;
  StartFront(1);
  grpc::ClientContext running;
  const auto reader = stub_->Generate(&running, Ask(1));
  ASSERT_TRUE(worker->AwaitLive(1));
  grpc::ClientContext waiting;
  waiting.AddMetadata("authorization", "Bearer one");
  const auto second = stub_->Generate(&waiting, Ask(1));
  while (rig_.admission()->counts().waiting < 1) std::this_thread::yield();
  // Before the message is looked at, and after.
  for (const uint32_t timeout_ms : {1000u, 0u}) {
    grpc::ClientContext call;
    if (timeout_ms > 0) call.AddMetadata("x-api-key", "Bearer one");
    pb::GenerateRequest request = Ask(1);
    request.mutable_params()->set_queue_timeout_ms(timeout_ms);
    const auto refused = stub_->Generate(&call, request);
    pb::GenerateEvent event;
    EXPECT_FALSE(refused->Read(&event));
    EXPECT_EQ(refused->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    const auto& trailer = call.GetServerTrailingMetadata();
    ASSERT_EQ(trailer.count("retry-after"), 1u);
    EXPECT_EQ(trailer.find("retry-after")->second, "1");
  }
  worker->SetAutomatic(true);
  pb::GenerateEvent event;
  while (reader->Read(&event) || second->Read(&event)) {
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_TRUE(second->Finish().ok());
}

}  // namespace
}  // namespace glm::router
