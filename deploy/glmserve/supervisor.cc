#include "deploy/glmserve/supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"

namespace glm::deploy {
namespace {

using std::chrono::milliseconds;

std::string DescribeExit(int status) {
  if (WIFEXITED(status)) return absl::StrCat("exited with ", WEXITSTATUS(status));
  if (WIFSIGNALED(status)) return absl::StrCat("was ended by signal ", WTERMSIG(status));
  return absl::StrCat("ended with status ", status);
}

sigset_t WatchedSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGCHLD}) sigaddset(&signals, signal);
  return signals;
}

/// The next watched signal, or 0 after `timeout`.
int AwaitSignal(milliseconds timeout) {
  const sigset_t signals = WatchedSignals();
  const timespec wait{timeout.count() / 1000, (timeout.count() % 1000) * 1'000'000};
  const int signal = sigtimedwait(&signals, nullptr, &wait);
  return signal < 0 ? 0 : signal;
}

/// In the child, between fork and exec: only calls that are safe there.
[[noreturn]] void Exec(const std::vector<char*>& arguments, int log_fd, pid_t parent) {
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  setpgid(0, 0);  // a terminal's Ctrl-C goes to the launcher, which stops the children in order
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(125);  // the launcher died before the line above
  if (log_fd >= 0) {
    dup2(log_fd, STDOUT_FILENO);
    dup2(log_fd, STDERR_FILENO);
  }
  execv(arguments[0], arguments.data());
  const char message[] = "cannot execute the program\n";
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, message, sizeof(message) - 1);
  _exit(126);
}

}  // namespace

Supervisor::Supervisor(const SupervisorOptions& options, std::vector<ChildSpec> children)
    : options_(options) {
  for (ChildSpec& spec : children) children_.push_back(Child{std::move(spec), 0, {}, {}, {}});
}

absl::Status Supervisor::Start(Child& child) {
  std::vector<char*> arguments;
  for (const std::string& argument : child.spec.arguments) {
    arguments.push_back(const_cast<char*>(argument.c_str()));
  }
  arguments.push_back(nullptr);
  int log_fd = -1;
  if (!child.spec.log_path.empty()) {
    log_fd = open(child.spec.log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (log_fd < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("cannot write ", child.spec.log_path, ": ", strerror(errno)));
    }
  }
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) Exec(arguments, log_fd, parent);
  if (log_fd >= 0) close(log_fd);
  if (pid < 0) return absl::ResourceExhaustedError(absl::StrCat("fork: ", strerror(errno)));
  child.pid = pid;
  child.started = Clock::now();
  LOG(INFO) << child.spec.name << " started, pid " << pid;
  return absl::OkStatus();
}

absl::Status Supervisor::StartDue() {
  for (Child& child : children_) {
    if (child.pid != 0 || child.start_at > Clock::now()) continue;
    if (absl::Status status = Start(child); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Supervisor::Reap(bool up) {
  for (Child& child : children_) {
    int status = 0;
    if (child.pid == 0 || waitpid(child.pid, &status, WNOHANG) != child.pid) continue;
    child.pid = 0;
    if (!up) {
      return absl::FailedPreconditionError(absl::StrCat(
          child.spec.name, " ", DescribeExit(status), " while starting",
          child.spec.log_path.empty() ? "" : absl::StrCat("; see ", child.spec.log_path)));
    }
    const Clock::time_point now = Clock::now();
    const bool was_stable = now - child.started >= options_.stable;
    child.backoff = was_stable || child.backoff.count() == 0
                        ? options_.backoff_initial
                        : std::min(child.backoff * 2, options_.backoff_max);
    child.start_at = now + child.backoff;
    LOG(WARNING) << child.spec.name << " " << DescribeExit(status) << ", restarting in "
                 << child.backoff.count() << " ms";
  }
  return absl::OkStatus();
}

bool Supervisor::AwaitExit(Child& child, milliseconds timeout) {
  const Clock::time_point deadline = Clock::now() + timeout;
  while (true) {
    if (waitpid(child.pid, nullptr, WNOHANG) == child.pid) {
      child.pid = 0;
      return true;
    }
    if (Clock::now() >= deadline) return false;
    AwaitSignal(options_.tick);
  }
}

void Supervisor::StopAll() {
  for (auto child = children_.rbegin(); child != children_.rend(); ++child) {
    if (child->pid == 0) continue;
    kill(child->pid, SIGTERM);
    if (AwaitExit(*child, options_.stop_timeout)) continue;
    LOG(WARNING) << child->spec.name << " did not end within " << options_.stop_timeout.count()
                 << " ms, killing it";
    kill(child->pid, SIGKILL);
    AwaitExit(*child, milliseconds(5'000));
  }
}

absl::Status Supervisor::Run(const std::function<bool()>& poll) {
  const sigset_t signals = WatchedSignals();
  sigprocmask(SIG_BLOCK, &signals, nullptr);
  bool up = false;
  absl::Status status;
  while (status.ok()) {
    status = StartDue();
    if (!status.ok()) break;
    const int signal = AwaitSignal(options_.tick);
    if (signal == SIGTERM || signal == SIGINT) {
      LOG(INFO) << "signal " << signal << ": stopping";
      break;
    }
    status = Reap(up);
    if (status.ok() && !up) up = poll();
  }
  StopAll();
  return status;
}

}  // namespace glm::deploy
