// The supervisor over real child processes (small shell scripts).
#include "deploy/glmserve/supervisor.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace glm::deploy {
namespace {

namespace fs = std::filesystem;

class SupervisorTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "supervisor-XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
    options_.backoff_initial = std::chrono::milliseconds(5);
    options_.tick = std::chrono::milliseconds(5);
  }
  void TearDown() override { fs::remove_all(folder_); }

  /// A child that runs `script`; $LOG is a file that the test can read, $PPID is the supervisor.
  ChildSpec Script(const std::string& name, const std::string& script) {
    return ChildSpec{name, {"/bin/sh", "-c", "LOG=" + log() + "; " + script}, ""};
  }
  absl::Status Run(std::vector<ChildSpec> children, bool up) {
    Supervisor supervisor(options_, std::move(children));
    return supervisor.Run([up] { return up; });
  }
  std::string log() const { return folder_ + "/log"; }
  std::vector<std::string> Lines() const {
    std::ifstream file(log());
    std::vector<std::string> lines;
    for (std::string line; std::getline(file, line);) lines.push_back(line);
    return lines;
  }

  std::string folder_;
  SupervisorOptions options_;
};

TEST_F(SupervisorTest, ADeathBeforeTheClusterIsUpEndsEverything) {
  const absl::Status status = Run(
      {Script("steady", "trap 'echo stopped >> $LOG; exit 0' TERM; while :; do sleep 0.01; done"),
       Script("broken", "sleep 0.2; exit 3")},
      /*up=*/false);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("broken exited with 3"), std::string::npos) << status;
  EXPECT_EQ(Lines(), std::vector<std::string>{"stopped"});
}

TEST_F(SupervisorTest, ADeathAfterwardsIsARestart) {
  const std::string script =
      "echo run >> $LOG; if [ $(wc -l < $LOG) -ge 4 ]; then kill -TERM $PPID; exec sleep 60; fi; "
      "sleep 0.1; exit 1";
  EXPECT_TRUE(Run({Script("flaky", script)}, /*up=*/true).ok());
  EXPECT_EQ(Lines().size(), 4u);
}

TEST_F(SupervisorTest, AKilledChildIsRestartedToo) {
  const std::string script =
      "echo run >> $LOG; if [ $(wc -l < $LOG) -ge 2 ]; then kill -TERM $PPID; exec sleep 60; fi; "
      "sleep 0.1; kill -KILL $$";
  EXPECT_TRUE(Run({Script("killed", script)}, /*up=*/true).ok());
  EXPECT_EQ(Lines().size(), 2u);
}

TEST_F(SupervisorTest, ChildrenStopInReverseOrder) {
  const auto waiter = [&](const std::string& name) {
    return Script(name,
                  "trap 'echo " + name +
                      " >> $LOG; exit 0' TERM; echo >> $LOG.ready; while :; do sleep 0.01; done");
  };
  const std::string stopper =
      "while [ ! -f $LOG.ready ] || [ $(wc -l < $LOG.ready) -lt 2 ]; do sleep 0.01; done; "
      "kill -TERM $PPID; exec sleep 60";
  EXPECT_TRUE(Run({Script("stopper", stopper), waiter("first"), waiter("second")}, true).ok());
  EXPECT_EQ(Lines(), (std::vector<std::string>{"second", "first"}));
}

TEST_F(SupervisorTest, AChildThatDoesNotStopIsKilled) {
  options_.stop_timeout = std::chrono::milliseconds(100);
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_TRUE(
      Run({Script("stubborn", "trap '' TERM; kill -TERM $PPID; while :; do sleep 0.05; done")},
          true)
          .ok());
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(30));
}

TEST_F(SupervisorTest, LogsGoToTheirFile) {
  ChildSpec child = Script("talker", "echo hello; echo error >&2; kill -TERM $PPID; exec sleep 60");
  child.log_path = log();
  EXPECT_TRUE(Run({child}, /*up=*/true).ok());
  EXPECT_EQ(Lines(), (std::vector<std::string>{"hello", "error"}));
}

TEST_F(SupervisorTest, AMissingProgramIsNamed) {
  ChildSpec child;
  child.name = "ghost";
  child.arguments = {"/nowhere/ghost"};
  child.log_path = log();
  const absl::Status status = Run({child}, /*up=*/false);
  EXPECT_NE(status.message().find("ghost exited with 126"), std::string::npos) << status;
  EXPECT_EQ(Lines(), std::vector<std::string>{"cannot execute the program"});
}

}  // namespace
}  // namespace glm::deploy
