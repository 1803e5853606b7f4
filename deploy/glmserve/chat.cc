#include "deploy/glmserve/chat.h"

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <chrono>
#include <iostream>
#include <memory>

#include "proto/router.grpc.pb.h"
#include "proto/rpc_status.h"

namespace glm::deploy {
namespace {

namespace pb = ::glmserve::v1;

constexpr const char* kDim = "\033[2m";
constexpr const char* kPlain = "\033[0m";

void AddMessage(pb::ChatRequest& request, const std::string& role, const std::string& content) {
  pb::ChatMessage* message = request.add_messages();
  message->set_role(role);
  message->set_content(content);
}

/// Sends the dialogue so far, prints the answer and appends it.
absl::Status Ask(pb::Generation::Stub& stub, pb::ChatRequest& request, bool colours) {
  grpc::ClientContext call;
  const auto stream = stub.Chat(&call, request);
  pb::ChatEvent event;
  std::string answer;
  bool in_reasoning = false;
  while (stream->Read(&event)) {
    if (!event.reasoning_content().empty()) {
      if (!in_reasoning && colours) std::cout << kDim;
      in_reasoning = true;
      std::cout << event.reasoning_content() << std::flush;
    }
    if (!event.content().empty()) {
      if (in_reasoning) std::cout << (colours ? kPlain : "") << "\n\n";
      in_reasoning = false;
      std::cout << event.content() << std::flush;
      answer += event.content();
    }
  }
  if (in_reasoning && colours) std::cout << kPlain;
  std::cout << std::endl;
  AddMessage(request, "assistant", answer);
  return FromGrpcStatus(stream->Finish());
}

}  // namespace

absl::Status ChatOnTerminal(const ChatOptions& options) {
  const auto channel = grpc::CreateChannel(options.server, grpc::InsecureChannelCredentials());
  if (!channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(10))) {
    return absl::UnavailableError("no router answers at " + options.server);
  }
  const auto stub = pb::Generation::NewStub(channel);
  pb::ChatRequest request;
  request.set_enable_thinking(options.thinking);
  request.mutable_params()->set_max_tokens(options.max_tokens);
  request.mutable_params()->set_temperature(options.temperature);
  if (!options.system.empty()) AddMessage(request, "system", options.system);

  const bool terminal = isatty(STDIN_FILENO) != 0 && isatty(STDOUT_FILENO) != 0;
  if (!options.message.empty()) {
    AddMessage(request, "user", options.message);
    return Ask(*stub, request, terminal);
  }
  std::string line;
  while (true) {
    if (terminal) std::cout << "> " << std::flush;
    if (!std::getline(std::cin, line)) return absl::OkStatus();
    if (line.empty()) continue;
    AddMessage(request, "user", line);
    if (absl::Status status = Ask(*stub, request, terminal); !status.ok()) return status;
  }
}

}  // namespace glm::deploy
