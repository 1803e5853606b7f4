#include "proto/base/process.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

namespace glm {
namespace {

TEST(StopSignals, TheFirstIsReturnedAndTheSecondEndsTheProcess) {
  for (const int number : {SIGTERM, SIGINT}) {
    const pid_t child = fork();
    if (child == 0) {
      const StopSignals signals;
      kill(getpid(), number);
      if (signals.Await() != number) _exit(1);
      kill(getpid(), number);
      _exit(2);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status)) << "exit " << WEXITSTATUS(status);
    EXPECT_EQ(WTERMSIG(status), number);
  }
}

}  // namespace
}  // namespace glm
