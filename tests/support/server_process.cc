#include "tests/support/server_process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>
#include <utility>

#include "tests/support/cluster.h"

namespace glm::tests {
namespace {

const std::string kModelFlag = std::string("--model=") + GLM_SOURCE_DIR + "/deploy/demo-model";

/// `flags`, and those of `defaults` that they do not name.
std::vector<std::string> With(std::vector<std::string> defaults,
                              const std::vector<std::string>& flags) {
  const auto name = [](const std::string& flag) { return flag.substr(0, flag.find('=')); };
  std::erase_if(defaults, [&](const std::string& standard) {
    return std::any_of(flags.begin(), flags.end(),
                       [&](const std::string& flag) { return name(flag) == name(standard); });
  });
  defaults.insert(defaults.end(), flags.begin(), flags.end());
  return defaults;
}

}  // namespace

ServerProcess::ServerProcess(const std::string& program, const std::vector<std::string>& flags,
                             const std::string& ready)
    : name_(program) {
  std::string pattern = (std::filesystem::temp_directory_path() / "server-XXXXXX").string();
  const int log = mkstemp(pattern.data());
  EXPECT_GE(log, 0);
  log_path_ = pattern;
  std::vector<std::string> arguments = With({std::string(GLM_BINARY_DIR) + "/" + program}, flags);
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  pid_ = fork();
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    execv(argv[0], argv.data());
    _exit(126);
  }
  close(log);
  const bool up =
      Eventually(60, [&] { return !IsRunning() || Log().find(ready) != std::string::npos; });
  EXPECT_TRUE(up && (ready.empty() || IsRunning())) << name_ << " did not start:\n" << Log();
}

ServerProcess::~ServerProcess() {
  if (IsRunning()) {
    kill(pid_, SIGKILL);
    AwaitExit();
  }
  if (testing::Test::HasFailure()) std::cerr << "---- " << name_ << "\n" << Log();
  std::filesystem::remove(log_path_);
}

std::string ServerProcess::Log() const {
  std::ifstream file(log_path_);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

bool ServerProcess::AwaitLog(const std::string& text, double seconds) const {
  return Eventually(seconds, [&] { return Log().find(text) != std::string::npos; });
}

int ServerProcess::NumberAfter(const std::string& mark) const {
  const std::string log = Log();
  const size_t at = log.find(mark);
  return at == std::string::npos ? -1 : atoi(log.c_str() + at + mark.size());
}

void ServerProcess::Signal(int number) const { kill(pid_, number); }

bool ServerProcess::IsRunning() {
  if (!ended_ && waitpid(pid_, &status_, WNOHANG) == pid_) ended_ = true;
  return !ended_;
}

int ServerProcess::AwaitExit(double seconds) {
  if (!Eventually(seconds, [&] { return !IsRunning(); })) return -1;
  return WIFEXITED(status_) ? WEXITSTATUS(status_) : -1;
}

WorkerProcess::WorkerProcess(std::vector<std::string> flags, int port, std::string host)
    : ServerProcess("glmserve-worker",
                    With({kModelFlag, "--listen=" + host + ":" + std::to_string(port),
                          "--metrics-listen=none", "--cpu-threads=1"},
                         flags),
                    "worker ready"),
      host_(std::move(host)),
      port_(NumberAfter("(port ")) {}

RouterProcess::RouterProcess(std::vector<std::string> flags)
    : ServerProcess(
          "glmserve-router",
          With({kModelFlag, "--host=127.0.0.1", "--port=0", "--grpc-listen=127.0.0.1:0"}, flags),
          "router ready"),
      http_port_(NumberAfter("HTTP on 127.0.0.1:")),
      grpc_port_(NumberAfter("(port ")) {}

bool RouterProcess::AwaitReady(double seconds) const {
  return Eventually(seconds, [&] { return Call(http_port_, "/readyz").status == 200; });
}

double RouterProcess::Metric(const std::string& name) const {
  const HttpAnswer answer = Call(http_port_, "/metrics");
  return answer.status == 200 ? SumOfMetric(answer.body, name) : -1;
}

}  // namespace glm::tests
