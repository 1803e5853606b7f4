#include "deploy/glmserve/serve.h"

#include <stdlib.h>

#include <algorithm>
#include <boost/asio/connect.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <filesystem>
#include <iostream>
#include <thread>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "deploy/glmserve/supervisor.h"
#include "proto/base/log.h"

namespace glm::deploy {
namespace {

namespace fs = std::filesystem;

absl::Status CheckRange(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--", name, " is ", value, ", it must be from ", low, " to ", high));
}

/// True when GET http://host:port/readyz answers 200.
bool IsReady(const std::string& host, int32_t port) {
  namespace beast = boost::beast;
  boost::asio::io_context loop;
  const std::string address = host == "0.0.0.0" ? "127.0.0.1" : host;
  beast::error_code error;
  boost::asio::ip::tcp::resolver resolver(loop);
  const auto endpoints = resolver.resolve(address, std::to_string(port), error);
  if (error) return false;

  beast::tcp_stream stream(loop);
  beast::http::request<beast::http::empty_body> request(beast::http::verb::get, "/readyz", 11);
  request.set(beast::http::field::host, address);
  beast::flat_buffer buffer;
  beast::http::response<beast::http::string_body> response;
  bool ready = false;
  stream.expires_after(std::chrono::seconds(2));
  stream.async_connect(endpoints, [&](beast::error_code connected, const auto&) {
    if (connected) return;
    beast::http::async_write(stream, request, [&](beast::error_code written, size_t) {
      if (written) return;
      beast::http::async_read(stream, buffer, response, [&](beast::error_code read, size_t) {
        ready = !read && response.result() == beast::http::status::ok;
      });
    });
  });
  loop.run();
  return ready;
}

std::string LogPath(const ServeOptions& options, const std::string& name) {
  return options.log_dir.empty() ? "" : absl::StrCat(options.log_dir, "/", name, ".log");
}

ChildSpec WorkerSpec(const ServeOptions& options, const std::string& binary_dir,
                     const std::string& address, int32_t index) {
  ChildSpec child;
  child.name = absl::StrCat("worker-", index);
  child.log_path = LogPath(options, child.name);
  const std::string metrics = options.metrics_port == 0
                                  ? "none"
                                  : absl::StrCat(options.host, ":", options.metrics_port + index);
  child.arguments = {absl::StrCat(binary_dir, "/glmserve-worker"),
                     absl::StrCat("--name=", child.name),
                     absl::StrCat("--model=", options.model),
                     absl::StrCat("--listen=", address),
                     absl::StrCat("--device=", options.device),
                     absl::StrCat("--tensor-parallel-size=", options.tensor_parallel_size),
                     absl::StrCat("--metrics-listen=", metrics),
                     absl::StrCat("--drain-timeout-s=", options.drain_timeout_s)};
  if (options.device == "cuda") {
    child.arguments.push_back(
        absl::StrCat("--device-index=", index * options.tensor_parallel_size));
  } else {
    const int32_t cores = static_cast<int32_t>(std::thread::hardware_concurrency());
    const int32_t share = std::max(1, cores / options.data_parallel_size);
    child.arguments.push_back(
        absl::StrCat("--cpu-threads=", options.cpu_threads > 0 ? options.cpu_threads : share));
  }
  child.arguments.insert(child.arguments.end(), options.worker_flags.begin(),
                         options.worker_flags.end());
  return child;
}

ChildSpec RouterSpec(const ServeOptions& options, const std::string& binary_dir,
                     const std::vector<std::string>& addresses) {
  ChildSpec child;
  child.name = "router";
  child.log_path = LogPath(options, child.name);
  child.arguments = {absl::StrCat(binary_dir, "/glmserve-router"),
                     absl::StrCat("--model=", options.model),
                     absl::StrCat("--workers=", absl::StrJoin(addresses, ",")),
                     absl::StrCat("--host=", options.host),
                     absl::StrCat("--port=", options.port),
                     absl::StrCat("--grpc-listen=", options.host, ":", options.grpc_port),
                     absl::StrCat("--drain-timeout-s=", options.drain_timeout_s)};
  const bool is_settle_said =
      std::any_of(options.router_flags.begin(), options.router_flags.end(),
                  [](const std::string& flag) { return absl::StartsWith(flag, "--settle-s"); });
  // Who stops a whole cluster waits for no load balancer.
  if (!is_settle_said) child.arguments.push_back("--settle-s=0");
  child.arguments.insert(child.arguments.end(), options.router_flags.begin(),
                         options.router_flags.end());
  return child;
}

absl::Status MakeFolder(const std::string& path, const char* flag) {
  std::error_code error;
  fs::create_directories(path, error);
  if (!error) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--", flag, "=", path, ": ", error.message()));
}

/// The folder for sockets: the one asked for, made if need be, or a fresh one.
absl::StatusOr<std::string> MakeRunDir(const std::string& wanted) {
  if (!wanted.empty()) {
    if (absl::Status status = MakeFolder(wanted, "run-dir"); !status.ok()) return status;
    return wanted;
  }
  std::string pattern = "/tmp/glmserve-XXXXXX";
  if (mkdtemp(pattern.data()) == nullptr) {
    return absl::InternalError(absl::StrCat("cannot make a folder like ", pattern));
  }
  return pattern;
}

}  // namespace

absl::Status ServeOptions::Validate() const {
  if (!fs::exists(fs::path(model) / "config.json")) {
    return absl::InvalidArgumentError(
        absl::StrCat("MODEL is ", model, ": there is no config.json in it"));
  }
  if (device != "cpu" && device != "cuda") {
    return absl::InvalidArgumentError(
        absl::StrCat("--device is ", device, ", it must be cpu or cuda"));
  }
  for (const absl::Status& status :
       {CheckRange("data-parallel-size", data_parallel_size, 1, 256),
        CheckRange("tensor-parallel-size", tensor_parallel_size, 1, 8),
        CheckRange("cpu-threads", cpu_threads, 0, 4'096), CheckRange("port", port, 1, 65'535),
        CheckRange("grpc-port", grpc_port, 1, 65'535),
        CheckRange("metrics-port", metrics_port, 0, 65'535 - data_parallel_size),
        CheckRange("drain-timeout-s", drain_timeout_s, 0, 86'400)}) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Serve(const ServeOptions& options, const std::string& binary_dir) {
  const absl::StatusOr<std::string> run_dir = MakeRunDir(options.run_dir);
  if (!run_dir.ok()) return run_dir.status();
  if (!options.log_dir.empty()) {
    if (absl::Status status = MakeFolder(options.log_dir, "log-dir"); !status.ok()) return status;
  }
  std::vector<std::string> addresses;
  std::vector<ChildSpec> children;
  for (int32_t i = 0; i < options.data_parallel_size; ++i) {
    addresses.push_back(absl::StrCat("unix:", *run_dir, "/worker-", i, ".sock"));
    children.push_back(WorkerSpec(options, binary_dir, addresses.back(), i));
  }
  children.push_back(RouterSpec(options, binary_dir, addresses));

  SupervisorOptions supervision;
  supervision.stop_timeout = std::chrono::seconds(options.drain_timeout_s + 5);
  Supervisor supervisor(supervision, std::move(children));
  const absl::Status status = supervisor.Run([&] {
    if (!IsReady(options.host, options.port)) return false;
    std::cout << "glmserve is ready: HTTP http://" << options.host << ":" << options.port
              << "/v1, gRPC " << options.host << ":" << options.grpc_port << std::endl;
    return true;
  });
  if (options.run_dir.empty()) fs::remove_all(*run_dir);
  return status;
}

}  // namespace glm::deploy
