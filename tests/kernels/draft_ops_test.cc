// The ops around drafting on the CPU against the oracle.
#include "tests/kernels/run_cases.h"

namespace glm::test {
namespace {

TEST(DraftOpsTest, StoreTokens) { RunOnCpu(StoreTokensCases()); }
TEST(DraftOpsTest, BeginAndAdvance) { RunOnCpu(DraftCases()); }

}  // namespace
}  // namespace glm::test
