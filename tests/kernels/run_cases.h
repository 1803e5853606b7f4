// Runs generated cases on the CPU backend.
//
// Who calls: the CPU backend's suites, one per family of ops.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "tests/kernels/op_cases.h"

namespace glm::test {

/// Each case must satisfy its oracle on one thread with exactly the scratch that it asked for, and
/// give the same bits on three threads of a device that serves all of them.
inline void RunOnCpu(const std::vector<OpCase>& cases) {
  ASSERT_FALSE(cases.empty());
  const std::unique_ptr<Device> shared = CreateCpuDevice(3);
  shared->PlanScratch(LimitsOf(cases));
  for (const OpCase& one : cases) {
    const std::unique_ptr<Device> single = CreateCpuDevice(1);
    single->PlanScratch(one.limits);
    const CaseResult alone = one.run(*single);
    EXPECT_EQ(alone.failure, "") << one.name;
    EXPECT_FALSE(alone.bits.empty()) << one.name;
    EXPECT_TRUE(one.run(*shared).bits == alone.bits) << one.name << " differs with three threads";
  }
}

}  // namespace glm::test
