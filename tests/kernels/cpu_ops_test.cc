// Every op of the CPU backend against the oracle, and the two promises of the backend: a result
// depends neither on the number of threads nor on the rows beside it.
#include <gtest/gtest.h>

#include "tests/kernels/op_cases.h"

namespace glm::test {
namespace {

CaseResult RunOn(const OpCase& one, int threads) {
  const std::unique_ptr<Device> device = CreateCpuDevice(threads);
  device->PlanScratch(one.limits);
  return one.run(*device);
}

void RunAll(const std::vector<OpCase>& cases) {
  ASSERT_FALSE(cases.empty());
  for (const OpCase& one : cases) {
    const CaseResult alone = RunOn(one, 1);
    EXPECT_EQ(alone.failure, "") << one.name;
    EXPECT_FALSE(alone.bits.empty()) << one.name;
    EXPECT_TRUE(RunOn(one, 3).bits == alone.bits) << one.name << " differs with three threads";
  }
}

TEST(CpuOpsTest, Embed) { RunAll(EmbedCases()); }
TEST(CpuOpsTest, AddRmsNorm) { RunAll(AddRmsNormCases()); }
TEST(CpuOpsTest, Linear) { RunAll(LinearCases()); }
TEST(CpuOpsTest, NormRopeStore) { RunAll(NormRopeStoreCases()); }
TEST(CpuOpsTest, Attention) { RunAll(AttentionCases()); }
TEST(CpuOpsTest, SiluMul) { RunAll(SiluMulCases()); }
TEST(CpuOpsTest, MoeRoute) { RunAll(MoeRouteCases()); }
TEST(CpuOpsTest, MoeExperts) { RunAll(MoeExpertsCases()); }
TEST(CpuOpsTest, GatherLogitRows) { RunAll(GatherLogitRowsCases()); }
TEST(CpuOpsTest, Sample) { RunAll(SampleCases()); }

TEST(CpuOpsTest, OneDeviceRunsAllCases) {
  const std::vector<OpCase> cases = AllOpCases();
  const std::unique_ptr<Device> device = CreateCpuDevice(2);
  device->PlanScratch(LimitsOf(cases));
  for (const OpCase& one : cases) EXPECT_EQ(one.run(*device).failure, "") << one.name;
}

}  // namespace
}  // namespace glm::test
