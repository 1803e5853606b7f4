// linear of the CPU backend against the oracle.
#include "tests/kernels/run_cases.h"

namespace glm::test {
namespace {

TEST(GemmTest, Linear) { RunOnCpu(LinearCases()); }

}  // namespace
}  // namespace glm::test
