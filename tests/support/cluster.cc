#include "tests/support/cluster.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

namespace glm::tests {
namespace {

namespace beast = boost::beast;
namespace fs = std::filesystem;
namespace http = beast::http;
using boost::asio::ip::tcp;

bool IsFree(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const bool free = bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  close(fd);
  return free;
}

http::request<http::string_body> MakeRequest(const std::string& target, const std::string& body) {
  http::request<http::string_body> request(body.empty() ? http::verb::get : http::verb::post,
                                           target, 11);
  request.set(http::field::host, "127.0.0.1");
  if (!body.empty()) {
    request.set(http::field::content_type, "application/json");
    request.body() = body;
  }
  request.prepare_payload();
  return request;
}

}  // namespace

double SumOfMetric(const std::string& text, const std::string& name) {
  std::istringstream lines(text);
  double sum = 0;
  bool found = false;
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind(name, 0) != 0) continue;
    const char next = line[name.size()];
    if (next != ' ' && next != '{') continue;
    sum += std::strtod(line.c_str() + line.rfind(' '), nullptr);
    found = true;
  }
  return found ? sum : -1;
}

/// Below the range that the kernel hands out by itself.
int FreePorts(int count) {
  for (int port = 20'000 + getpid() % 10'000; port < 32'000; ++port) {
    int free = 0;
    while (free < count && IsFree(port + free)) ++free;
    if (free == count) return port;
  }
  ADD_FAILURE() << "no " << count << " free ports";
  return 0;
}

double MonotonicSeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void PollPause() { std::this_thread::sleep_for(std::chrono::milliseconds(5)); }

HttpAnswer Call(int port, const std::string& target, const std::string& body) {
  boost::asio::io_context loop;
  tcp::socket socket(loop);
  beast::error_code error;
  socket.connect({boost::asio::ip::address_v4::loopback(), static_cast<uint16_t>(port)}, error);
  if (!error) http::write(socket, MakeRequest(target, body), error);
  beast::flat_buffer buffer;
  http::response<http::string_body> response;
  if (!error) http::read(socket, buffer, response, error);
  if (error) return {0, error.message()};
  return {static_cast<int>(response.result_int()), response.body()};
}

struct EventStream::State {
  boost::asio::io_context loop;
  tcp::socket socket{loop};
  beast::flat_buffer buffer;
  http::response_parser<http::buffer_body> parser;
  std::string text;
};

EventStream::EventStream(int port, const std::string& target, const std::string& body)
    : state_(std::make_unique<State>()) {
  beast::error_code error;
  state_->socket.connect({boost::asio::ip::address_v4::loopback(), static_cast<uint16_t>(port)},
                         error);
  if (!error) http::write(state_->socket, MakeRequest(target, body), error);
  state_->parser.body_limit(boost::none);
  if (!error) http::read_header(state_->socket, state_->buffer, state_->parser, error);
  EXPECT_FALSE(error) << error.message();
  EXPECT_EQ(state_->parser.get().result_int(), 200u);
}

EventStream::~EventStream() = default;

struct HastyClient::State {
  boost::asio::io_context loop;
  tcp::socket socket{loop};
};

HastyClient::HastyClient(int port, const std::string& target, const std::string& body)
    : state_(std::make_unique<State>()) {
  beast::error_code error;
  state_->socket.connect({boost::asio::ip::address_v4::loopback(), static_cast<uint16_t>(port)},
                         error);
  if (!error) http::write(state_->socket, MakeRequest(target, body), error);
  EXPECT_FALSE(error) << error.message();
}

HastyClient::~HastyClient() = default;

std::string EventStream::Next() {
  while (true) {
    const size_t end = state_->text.find("\n\n");
    if (end != std::string::npos) {
      const std::string event = state_->text.substr(0, end);
      state_->text.erase(0, end + 2);
      return event.rfind("data: ", 0) == 0 ? event.substr(6) : event;
    }
    if (state_->parser.is_done()) return "";
    char chunk[4096];
    state_->parser.get().body().data = chunk;
    state_->parser.get().body().size = sizeof(chunk);
    beast::error_code error;
    http::read_some(state_->socket, state_->buffer, state_->parser, error);
    if (error && error != http::error::need_buffer) return "";
    state_->text.append(chunk, sizeof(chunk) - state_->parser.get().body().size);
  }
}

Cluster::Cluster(const std::string& model, int workers, bool worker_metrics,
                 const std::vector<std::string>& flags)
    : workers_(workers) {
  std::string pattern = (fs::temp_directory_path() / "cluster-XXXXXX").string();
  EXPECT_NE(mkdtemp(pattern.data()), nullptr);
  folder_ = pattern;
  http_port_ = FreePorts(2 + workers);
  grpc_port_ = http_port_ + 1;
  metrics_port_ = http_port_ + 2;
  std::vector<std::string> arguments = {
      std::string(GLM_BINARY_DIR) + "/glmserve",
      "serve",
      model,
      "--data-parallel-size=" + std::to_string(workers),
      "--host=127.0.0.1",
      "--port=" + std::to_string(http_port_),
      "--grpc-port=" + std::to_string(grpc_port_),
      "--metrics-port=" + std::to_string(worker_metrics ? metrics_port_ : 0),
      "--log-dir=" + folder_,
      "--run-dir=" + folder_};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  launcher_ = fork();
  if (launcher_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    const int log = open((folder_ + "/launcher.log").c_str(), O_WRONLY | O_CREAT, 0644);
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    execv(argv[0], argv.data());
    _exit(126);
  }
  const bool ready = Eventually(120, [&] {
    int status = 0;
    if (waitpid(launcher_, &status, WNOHANG) == launcher_) launcher_ = 0;
    return launcher_ == 0 || Log("launcher").find("glmserve is ready") != std::string::npos;
  });
  EXPECT_TRUE(ready && launcher_ != 0) << "the cluster did not start:\n"
                                       << Log("launcher") << Log("router") << Log("worker-0");
}

Cluster::~Cluster() {
  if (launcher_ != 0) Stop();
  if (testing::Test::HasFailure()) {
    for (const auto& entry : fs::directory_iterator(folder_)) {
      if (entry.path().extension() != ".log") continue;
      std::cerr << "---- " << entry.path().filename() << "\n" << Log(entry.path().stem());
    }
  }
  fs::remove_all(folder_);
}

std::string Cluster::Log(const std::string& name) const {
  std::ifstream file(folder_ + "/" + name + ".log");
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

pid_t Cluster::WorkerPid(int index) const {
  const std::string log = Log("launcher");
  const std::string mark = "worker-" + std::to_string(index) + " started, pid ";
  const size_t at = log.rfind(mark);
  return at == std::string::npos ? 0 : std::stoi(log.substr(at + mark.size()));
}

pid_t Cluster::WorkerThread(int index, const std::string& name) const {
  const std::string threads = "/proc/" + std::to_string(WorkerPid(index)) + "/task";
  for (const auto& thread : fs::directory_iterator(threads)) {
    std::string own;
    std::getline(std::ifstream(thread.path() / "comm"), own);
    if (own == name) return std::stoi(thread.path().filename());
  }
  return 0;
}

int Cluster::WorkerStarts(int index) const {
  const std::string log = Log("launcher");
  const std::string mark = "worker-" + std::to_string(index) + " started, pid ";
  int count = 0;
  for (size_t at = log.find(mark); at != std::string::npos; at = log.find(mark, at + 1)) ++count;
  return count;
}

double Cluster::WorkerMetric(int index, const std::string& name) const {
  const HttpAnswer answer = Call(metrics_port_ + index, "/metrics");
  return answer.status == 200 ? SumOfMetric(answer.body, name) : -1;
}

int Cluster::BusyWorker() const {
  int busy = -1;
  EXPECT_TRUE(Eventually(10, [&] {
    for (int i = 0; i < workers_ && busy < 0; ++i) {
      if (WorkerMetric(i, "glmserve_worker_requests_running") > 0) busy = i;
    }
    return busy >= 0;
  }));
  return std::max(busy, 0);
}

double Cluster::RouterMetric(const std::string& name) const {
  const HttpAnswer answer = Call(http_port_, "/metrics");
  return answer.status == 200 ? SumOfMetric(answer.body, name) : -1;
}

int Cluster::Stop() {
  int status = 0;
  kill(launcher_, SIGTERM);
  waitpid(launcher_, &status, 0);
  launcher_ = 0;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

}  // namespace glm::tests
