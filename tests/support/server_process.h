// One router or worker as a process of its own, for tests that put clusters together by hand.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace glm::tests {

class ServerProcess {
 public:
  /// Starts `program` of the build ("glmserve-worker") with `flags` and waits until its log has
  /// `ready`; fails the test with the log if it ends first. Empty `ready`: waits for nothing.
  ServerProcess(const std::string& program, const std::vector<std::string>& flags,
                const std::string& ready);
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;
  /// Kills it if it still runs; shows the log if the test has failed.
  ~ServerProcess();

  pid_t pid() const { return pid_; }
  std::string Log() const;
  /// Waits until the log has `text`; false after `seconds`.
  bool AwaitLog(const std::string& text, double seconds = 30) const;
  /// The number after `mark` in the log; -1 when it is not there.
  int NumberAfter(const std::string& mark) const;

  void Signal(int number) const;
  /// Waits for its end; its exit status, or -1 when a signal ended it or it runs after `seconds`.
  int AwaitExit(double seconds = 60);
  bool IsRunning();

 private:
  std::string name_;
  std::string log_path_;
  pid_t pid_ = 0;
  bool ended_ = false;
  int status_ = 0;
};

/// A worker of the demo model on a free port of `host`, with one CPU thread.
class WorkerProcess : public ServerProcess {
 public:
  explicit WorkerProcess(std::vector<std::string> flags = {}, int port = 0,
                         std::string host = "127.0.0.1");
  int port() const { return port_; }
  std::string address() const { return host_ + ":" + std::to_string(port_); }

 private:
  std::string host_;
  int port_ = 0;
};

/// A router of the demo model on free ports of 127.0.0.1.
class RouterProcess : public ServerProcess {
 public:
  explicit RouterProcess(std::vector<std::string> flags);
  int http_port() const { return http_port_; }
  int grpc_port() const { return grpc_port_; }
  /// Waits until /readyz says so; false after `seconds`.
  bool AwaitReady(double seconds = 30) const;
  /// The sum of a metric over its labels; -1 when it is not there.
  double Metric(const std::string& name) const;

 private:
  int http_port_ = 0;
  int grpc_port_ = 0;
};

}  // namespace glm::tests
