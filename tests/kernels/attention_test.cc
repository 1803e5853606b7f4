// The attention ops of the CPU backend against the oracle.
#include "tests/kernels/run_cases.h"

namespace glm::test {
namespace {

TEST(AttentionTest, NormRopeStore) { RunOnCpu(NormRopeStoreCases()); }
TEST(AttentionTest, NormRopeStoreFloat8) { RunOnCpu(NormRopeStoreFloat8Cases()); }
TEST(AttentionTest, AttentionFloat8) { RunOnCpu(AttentionFloat8Cases()); }
TEST(AttentionTest, Attention) { RunOnCpu(AttentionCases()); }

}  // namespace
}  // namespace glm::test
