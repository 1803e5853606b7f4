// A whole cluster of real processes for a test: the launcher, its router and its workers, and a
// plain HTTP client to talk to it.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"

namespace glm::tests {

struct HttpAnswer {
  int status = 0;  // 0: the connection failed
  std::string body;

  nlohmann::json Json() const {
    return nlohmann::json::parse(body, nullptr, /*allow_exceptions=*/false);
  }
};

/// One request on a connection of its own. An empty body makes a GET.
HttpAnswer Call(int port, const std::string& target, const std::string& body = "");

/// A streaming answer that is read event by event. Destruction closes the connection.
class EventStream {
 public:
  EventStream(int port, const std::string& target, const std::string& body);
  ~EventStream();

  /// The next "data: ..." payload; empty at the stream's end.
  std::string Next();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// A client that sends a request, waits for nothing and closes the connection when destroyed.
class HastyClient {
 public:
  HastyClient(int port, const std::string& target, const std::string& body);
  ~HastyClient();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

class Cluster {
 public:
  /// Starts `glmserve serve model` with `workers` workers and more `flags`, and waits until it says
  /// that it is ready; fails the test with the logs if it does not.
  Cluster(const std::string& model, int workers, bool worker_metrics = true,
          const std::vector<std::string>& flags = {});
  /// Stops it if the test did not.
  ~Cluster();

  int http_port() const { return http_port_; }
  int grpc_port() const { return grpc_port_; }

  /// The process of worker `index` that runs now, or ran last.
  pid_t WorkerPid(int index) const;
  /// The thread of that process whose name is `name`; 0: there is none.
  pid_t WorkerThread(int index, const std::string& name) const;
  /// How often worker `index` was started.
  int WorkerStarts(int index) const;
  /// The sum of a metric over its labels, from worker `index`; -1 when it does not answer.
  double WorkerMetric(int index, const std::string& name) const;
  double RouterMetric(const std::string& name) const;
  /// A worker with running requests; waits for one, and fails the test if there is none.
  int BusyWorker() const;

  /// Sends SIGTERM and waits; the launcher's exit status.
  int Stop();

 private:
  std::string Log(const std::string& name) const;

  std::string folder_;
  pid_t launcher_ = 0;
  int workers_ = 0;
  int http_port_ = 0;
  int grpc_port_ = 0;
  int metrics_port_ = 0;
};

/// The sum of the samples of `name` in a Prometheus text; -1 when there is none.
double SumOfMetric(const std::string& text, const std::string& name);

/// The first of `count` consecutive free ports of 127.0.0.1.
int FreePorts(int count);

/// Polls `condition` until it holds; false after `seconds`.
template <typename Condition>
bool Eventually(double seconds, const Condition& condition);

void PollPause();
double MonotonicSeconds();

template <typename Condition>
bool Eventually(double seconds, const Condition& condition) {
  const double deadline = MonotonicSeconds() + seconds;
  while (!condition()) {
    if (MonotonicSeconds() > deadline) return false;
    PollPause();
  }
  return true;
}

}  // namespace glm::tests
