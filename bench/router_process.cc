#include "bench/router_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "absl/strings/str_cat.h"

namespace glm::bench {
namespace {

namespace http = boost::beast::http;
using boost::asio::ip::tcp;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kReadyMax{60};
constexpr std::chrono::milliseconds kPoll{20};

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return std::move(text).str();
}

/// The number behind `mark`; 0: there is none.
int32_t NumberBehind(const std::string& text, const std::string& mark) {
  const size_t at = text.find(mark);
  return at == std::string::npos ? 0 : std::atoi(text.c_str() + at + mark.size());
}

bool SaysReady(int32_t port) {
  boost::asio::io_context loop;
  boost::beast::tcp_stream stream(loop);
  boost::system::error_code error;
  stream.connect(
      tcp::endpoint(boost::asio::ip::address_v4::loopback(), static_cast<uint16_t>(port)), error);
  http::request<http::empty_body> request(http::verb::get, "/readyz", 11);
  request.set(http::field::host, "127.0.0.1");
  if (!error) http::write(stream, request, error);
  boost::beast::flat_buffer buffer;
  http::response<http::string_body> response;
  if (!error) http::read(stream, buffer, response, error);
  return !error && response.result() == http::status::ok;
}

}  // namespace

std::string ProgramBeside(const std::string& name) {
  return (std::filesystem::read_symlink("/proc/self/exe").parent_path() / name).string();
}

absl::StatusOr<std::unique_ptr<RouterProcess>> RouterProcess::Start(
    const std::string& program, const std::vector<std::string>& flags) {
  std::unique_ptr<RouterProcess> router(new RouterProcess());
  std::string path = (std::filesystem::temp_directory_path() / "glmserve-router-XXXXXX").string();
  const int log = mkstemp(path.data());
  if (log < 0) return absl::InternalError(absl::StrCat("cannot make a file like ", path));
  router->log_path_ = path;
  std::vector<std::string> words = {program, "--host",        "127.0.0.1",  "--port",
                                    "0",     "--grpc-listen", "127.0.0.1:0"};
  words.insert(words.end(), flags.begin(), flags.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  router->pid_ = fork();
  if (router->pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    execv(argv[0], argv.data());
    _exit(127);
  }
  close(log);
  if (router->pid_ < 0) return absl::InternalError("cannot fork");
  if (absl::Status status = router->AwaitReady(); !status.ok()) return status;
  return router;
}

absl::Status RouterProcess::AwaitReady() {
  const Clock::time_point end = Clock::now() + kReadyMax;
  while (Clock::now() < end) {
    if (port_ == 0) port_ = NumberBehind(ReadFile(log_path_), "HTTP on 127.0.0.1:");
    if (port_ != 0 && SaysReady(port_)) return absl::OkStatus();
    if (waitpid(pid_, nullptr, WNOHANG) != 0) {
      pid_ = 0;
      return absl::InternalError(absl::StrCat("the router ended: ", ReadFile(log_path_)));
    }
    std::this_thread::sleep_for(kPoll);
  }
  return absl::DeadlineExceededError(
      absl::StrCat("the router was not ready in time: ", ReadFile(log_path_)));
}

RouterProcess::~RouterProcess() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  if (!log_path_.empty()) std::filesystem::remove(log_path_);
}

double RouterProcess::CpuSeconds() const {
  const std::string stat = ReadFile(absl::StrCat("/proc/", pid_, "/stat"));
  // The name, in brackets, may hold anything; the times are fields 14 and 15 of all.
  std::istringstream fields(stat.substr(stat.rfind(')') + 2));
  std::string skipped;
  for (int i = 3; i < 14; ++i) fields >> skipped;
  double user = 0;
  double system = 0;
  fields >> user >> system;
  return (user + system) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

int64_t RouterProcess::ResidentBytes() const {
  std::istringstream fields(ReadFile(absl::StrCat("/proc/", pid_, "/statm")));
  int64_t total_pages = 0;
  int64_t resident_pages = 0;
  fields >> total_pages >> resident_pages;
  return resident_pages * sysconf(_SC_PAGESIZE);
}

}  // namespace glm::bench
