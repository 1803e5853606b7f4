// glmserve: the launcher. `glmserve serve MODEL` runs a whole cluster on this host; `glmserve chat`
// talks to one.
#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <string>

#include "deploy/glmserve/chat.h"
#include "deploy/glmserve/serve.h"
#include "proto/base/log.h"

namespace glm::deploy {
namespace {

CLI::App* AddServe(CLI::App& app, ServeOptions& options) {
  CLI::App* serve =
      app.add_subcommand("serve",
                         "Run one router and its workers on this host. Flags not listed here go to "
                         "every worker; those "
                         "that begin with --router. go to the router, without that prefix");
  serve->option_defaults()->always_capture_default();
  serve->allow_extras();
  serve->add_option("model", options.model, "Folder of the checkpoint")->required();
  serve->add_option("--data-parallel-size", options.data_parallel_size, "Worker processes");
  serve->add_option("--tensor-parallel-size", options.tensor_parallel_size,
                    "Ranks of each worker, which share the model: 1, 2, 4 or 8");
  serve->add_option("--device", options.device, "cpu or cuda");
  serve->add_option("--cpu-threads", options.cpu_threads,
                    "Threads of each CPU worker; 0: this host's cores, divided");
  serve->add_option("--host", options.host, "Address to listen on");
  serve->add_option("--port", options.port, "Port of the HTTP gateway");
  serve->add_option("--grpc-port", options.grpc_port, "Port of the gRPC service");
  serve->add_option("--metrics-port", options.metrics_port,
                    "Worker i serves /metrics on this port + i; 0: none");
  serve->add_option("--drain-timeout-s", options.drain_timeout_s,
                    "Seconds that running requests may still take after SIGTERM");
  serve->add_option("--run-dir", options.run_dir, "Folder for sockets; empty: one under /tmp");
  serve->add_option("--log-dir", options.log_dir, "Folder for logs; empty: this terminal");
  return serve;
}

void AddChat(CLI::App& app, ChatOptions& options) {
  CLI::App* chat = app.add_subcommand("chat", "Talk to a running cluster");
  chat->option_defaults()->always_capture_default();
  chat->add_option("--server", options.server, "Router's gRPC address");
  chat->add_option("--message", options.message, "One question; empty: ask on the terminal");
  chat->add_option("--system", options.system, "System message");
  chat->add_flag("--thinking,!--no-thinking", options.thinking, "Let the model think first");
  chat->add_option("--max-tokens", options.max_tokens, "Longest answer, in tokens");
  chat->add_option("--temperature", options.temperature, "0 is greedy");
}

/// Splits the flags that the launcher does not know.
void TakeExtras(const CLI::App& serve, ServeOptions& options) {
  const std::string prefix = "--router.";
  for (const std::string& extra : serve.remaining()) {
    if (extra.rfind(prefix, 0) == 0) {
      options.router_flags.push_back("--" + extra.substr(prefix.size()));
    } else {
      options.worker_flags.push_back(extra);
    }
  }
}

int Report(const absl::Status& status) {
  if (status.ok()) return 0;
  std::cerr << "glmserve: " << status.message() << std::endl;
  return 1;
}

int Main(int argc, char** argv) {
  CLI::App app("A serving cluster for the GLM-4.X models");
  app.require_subcommand(1);
  ServeOptions serve_options;
  ChatOptions chat_options;
  const CLI::App* serve = AddServe(app, serve_options);
  AddChat(app, chat_options);
  CLI11_PARSE(app, argc, argv);
  SetLogName("glmserve");
  if (!serve->parsed()) return Report(ChatOnTerminal(chat_options));
  TakeExtras(*serve, serve_options);
  if (const absl::Status status = serve_options.Validate(); !status.ok()) return Report(status);
  const std::string binary_dir =
      std::filesystem::read_symlink("/proc/self/exe").parent_path().string();
  return Report(Serve(serve_options, binary_dir));
}

}  // namespace
}  // namespace glm::deploy

int main(int argc, char** argv) { return glm::deploy::Main(argc, argv); }
