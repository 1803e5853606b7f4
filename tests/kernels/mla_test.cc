// The latent attention ops of the CPU backend against the oracle.
#include "tests/kernels/run_cases.h"

namespace glm::test {
namespace {

TEST(MlaTest, MlaRopeStore) { RunOnCpu(MlaRopeStoreCases()); }
TEST(MlaTest, MlaAttention) { RunOnCpu(MlaAttentionCases()); }

}  // namespace
}  // namespace glm::test
