// The row-by-row ops of the CPU backend against the oracle.
#include "tests/kernels/run_cases.h"

namespace glm::test {
namespace {

TEST(CpuOpsTest, Embed) { RunOnCpu(EmbedCases()); }
TEST(CpuOpsTest, EmbedSlice) { RunOnCpu(EmbedSliceCases()); }
TEST(CpuOpsTest, RmsNorm) { RunOnCpu(RmsNormCases()); }
TEST(CpuOpsTest, AddRmsNorm) { RunOnCpu(AddRmsNormCases()); }
TEST(CpuOpsTest, SiluMul) { RunOnCpu(SiluMulCases()); }
TEST(CpuOpsTest, GatherLogitRows) { RunOnCpu(GatherLogitRowsCases()); }

}  // namespace
}  // namespace glm::test
