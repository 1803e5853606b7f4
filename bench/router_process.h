// A router as a process of its own, over given workers, and what it takes of the machine.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace glm::bench {

class RouterProcess {
 public:
  /// Starts `program` with `flags` and --port 0, and waits until it says that it is ready to serve
  /// and its /readyz agrees. Its log goes to a file that is gone with this object.
  static absl::StatusOr<std::unique_ptr<RouterProcess>> Start(
      const std::string& program, const std::vector<std::string>& flags);
  RouterProcess(const RouterProcess&) = delete;
  RouterProcess& operator=(const RouterProcess&) = delete;
  /// Kills it.
  ~RouterProcess();

  int32_t port() const { return port_; }
  double CpuSeconds() const;  // of all its threads, since its start
  int64_t ResidentBytes() const;

 private:
  RouterProcess() = default;
  absl::Status AwaitReady();

  pid_t pid_ = 0;
  int32_t port_ = 0;
  std::string log_path_;
};

/// The program `name` in the folder of this one.
std::string ProgramBeside(const std::string& name);

}  // namespace glm::bench
