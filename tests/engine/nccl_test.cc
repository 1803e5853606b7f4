// Two ranks on one GPU, each a process that says it is another host, meet over NCCL and give the
// tokens that one rank gives. Skips without a GPU or without NCCL.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "tests/engine/stepper.h"
#include "tests/support/temp_folder.h"

namespace glm::test {
namespace {

const std::string kDemoModel = std::string(GLM_SOURCE_DIR) + "/deploy/demo-model";

/// Runs rank `rank` of `size` to its end; true when that was a good one.
bool RunRank(const std::string& folder, int32_t rank, int32_t size) {
  // A rank that waits for another for ever must not hold up the suite.
  const std::string command = "NCCL_HOSTID=host" + std::to_string(rank) +
                              " NCCL_SOCKET_IFNAME=lo timeout 100 " + GLM_BINARY_DIR +
                              "/nccl_rank " + kDemoModel + " " + std::to_string(rank) + " " +
                              std::to_string(size) + " " + folder + "/id " + folder + "/out." +
                              std::to_string(size) + "." + std::to_string(rank);
  const int status = std::system(command.c_str());
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

std::vector<Ids> Read(const std::string& path) {
  std::ifstream file(path);
  std::vector<Ids> lines;
  for (std::string line; std::getline(file, line);) {
    std::istringstream numbers(line);
    lines.emplace_back();
    for (int32_t id = 0; numbers >> id;) lines.back().push_back(id);
  }
  return lines;
}

/// Where two answers part, the logits of the two tokens must be within rounding: parts of a sum are
/// rounded to BF16 before ranks add them.
void ExpectSame(const Ids& want, const Ids& got) {
  ASSERT_EQ(want.size(), got.size());
  const auto [at, other] = std::mismatch(want.begin(), want.end(), got.begin());
  if (at == want.end()) return;
  Stepper stepper(kDemoModel, DType::kBF16, {.cuda = true});
  const std::vector<float> logits = stepper.Step({{0, Ids(want.begin(), at)}}).back();
  const double gap = std::abs(logits[*at] - logits[*other]);
  const double largest = *std::max_element(logits.begin(), logits.end());
  EXPECT_LE(gap, 0x1p-4 * std::max(1.0, std::abs(largest)))
      << "token " << at - want.begin() << ": " << *at << " or " << *other;
  std::printf("parted at token %ld, the logits %.4f apart\n", static_cast<long>(at - want.begin()),
              gap);
}

TEST(NcclTest, TwoRanksOnOneGpuGiveTheTokensOfOne) {
  std::string error;
  if (CreateCudaDevice(0, &error) == nullptr) GTEST_SKIP() << error;
  NcclId id;
  if (!NewNcclId(&id, &error)) GTEST_SKIP() << error;
  TempFolder folder;
  std::ofstream(folder.path() + "/id", std::ios::binary).write(id.bytes, sizeof(id.bytes));
  ASSERT_TRUE(RunRank(folder.path(), 0, 1));
  bool good[2] = {};
  std::thread second([&] { good[1] = RunRank(folder.path(), 1, 2); });
  good[0] = RunRank(folder.path(), 0, 2);
  second.join();
  ASSERT_TRUE(good[0] && good[1]);
  const std::vector<Ids> one = Read(folder.path() + "/out.1.0");
  const std::vector<Ids> first = Read(folder.path() + "/out.2.0");
  ASSERT_EQ(one.size(), static_cast<size_t>(kSequencesMax));
  // The ranks have the same bits, and so the same tokens.
  EXPECT_EQ(first, Read(folder.path() + "/out.2.1"));
  ASSERT_EQ(first.size(), one.size());
  for (size_t i = 0; i < one.size(); ++i) ExpectSame(one[i], first[i]);
}

TEST(NcclTest, SaysWhyThereIsNone) {
  NcclId id;
  std::string error;
  if (NewNcclId(&id, &error)) GTEST_SKIP() << "NCCL is here";
  EXPECT_NE(error.find("NCCL"), std::string::npos) << error;
}

}  // namespace
}  // namespace glm::test
