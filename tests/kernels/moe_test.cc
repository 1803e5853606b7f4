// The mixture-of-experts ops of the CPU backend against the oracle.
#include "tests/kernels/run_cases.h"

namespace glm::test {
namespace {

TEST(MoeTest, Route) { RunOnCpu(MoeRouteCases()); }
TEST(MoeTest, Experts) { RunOnCpu(MoeExpertsCases()); }

}  // namespace
}  // namespace glm::test
