// deploy/bundle.sh packs the programs of this build so that they run elsewhere.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <set>
#include <sstream>
#include <string>

#include "tests/support/temp_folder.h"

namespace glm::test {
namespace {

namespace fs = std::filesystem;

struct Outcome {
  int status = -1;
  std::string output;  // stdout and stderr
};

/// Runs a shell command in `folder`, without the caller's environment.
Outcome Shell(const std::string& folder, const std::string& command) {
  Outcome outcome;
  const std::string whole =
      "cd '" + folder + "' && env -i PATH=/usr/bin:/bin sh -c '" + command + "' 2>&1";
  FILE* pipe = popen(whole.c_str(), "r");
  EXPECT_NE(pipe, nullptr);
  std::array<char, 4096> part{};
  while (const size_t bytes = fread(part.data(), 1, part.size(), pipe)) {
    outcome.output.append(part.data(), bytes);
  }
  outcome.status = pclose(pipe);
  return outcome;
}

const std::string kScript = std::string(GLM_SOURCE_DIR) + "/deploy/bundle.sh";

/// A bundle of this build, unpacked in a folder of its own, once for all tests.
class BundleTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = std::make_unique<TempFolder>();
    const std::string build = fs::path(GLM_BINARY_DIR).parent_path().string();
    const Outcome packed =
        Shell("/", kScript + " --build " + build + " --output " + folder_->path() + "/bundle.tar");
    ASSERT_EQ(packed.status, 0) << packed.output;
    const Outcome unpacked = Shell(folder_->path(), "tar -xf bundle.tar && mv glmserve-* moved");
    ASSERT_EQ(unpacked.status, 0) << unpacked.output;
  }
  static void TearDownTestSuite() { folder_.reset(); }
  static std::string moved() { return folder_->path() + "/moved"; }

 private:
  static inline std::unique_ptr<TempFolder> folder_;
};

const std::set<std::string> kPrograms = {"glmserve", "glmserve-bench", "glmserve-router",
                                         "glmserve-worker"};

TEST_F(BundleTest, ProgramsRunFromAnotherFolderWithLibrariesOfTheirOwn) {
  std::set<std::string> found;
  for (const auto& entry : fs::directory_iterator(moved() + "/bin")) {
    found.insert(entry.path().filename().string());
  }
  EXPECT_EQ(found, kPrograms);
  // Of the host: glibc, the driver, cuBLASLt.
  const std::set<std::string> hosts = {"libc.so.6",    "libm.so.6",        "libdl.so.2",
                                       "librt.so.1",   "libpthread.so.0",  "libresolv.so.2",
                                       "libcuda.so.1", "libcublasLt.so.13"};
  for (const std::string& program : kPrograms) {
    const Outcome help = Shell("/", moved() + "/bin/" + program + " --help");
    EXPECT_EQ(help.status, 0) << program << ": " << help.output;
    EXPECT_NE(help.output.find("--help"), std::string::npos) << program;
    std::istringstream lines(Shell("/", "ldd " + moved() + "/bin/" + program).output);
    int own = 0;
    for (std::string line; std::getline(lines, line);) {
      std::istringstream words(line);
      std::string library;
      std::string arrow;
      std::string path;
      words >> library >> arrow >> path;
      if (arrow != "=>" || hosts.count(library) > 0) continue;
      // "bin/../lib", as the path of a library is what the program was told.
      EXPECT_EQ(path.rfind(moved(), 0), 0U) << program << " takes " << library << " from " << path;
      ++own;
    }
    EXPECT_GE(own, 3) << program;
  }
}

TEST_F(BundleTest, ManifestNamesEveryLibrary) {
  const Outcome manifest = Shell(moved(), "cat MANIFEST");
  EXPECT_NE(manifest.output.find("built from "), std::string::npos) << manifest.output;
  EXPECT_NE(manifest.output.find("needs glibc "), std::string::npos) << manifest.output;
  int libraries = 0;
  for (const auto& entry : fs::directory_iterator(moved() + "/lib")) {
    const std::string line = "lib/" + entry.path().filename().string() + " ";
    EXPECT_NE(manifest.output.find(line), std::string::npos) << line;
    ++libraries;
  }
  EXPECT_GE(libraries, 10);
}

TEST(BundleScriptTest, SaysWhatIsWrong) {
  const Outcome unbuilt = Shell("/", kScript + " --build /nowhere");
  EXPECT_NE(unbuilt.status, 0);
  EXPECT_NE(unbuilt.output.find("there is no /nowhere/bin/glmserve"), std::string::npos)
      << unbuilt.output;
  const std::string build = fs::path(GLM_BINARY_DIR).parent_path().string();
  const Outcome kind = Shell("/", kScript + " --build " + build + " --output /tmp/bundle.zip");
  EXPECT_NE(kind.status, 0);
  EXPECT_NE(kind.output.find("--output is /tmp/bundle.zip, accepted: *.tar.gz"), std::string::npos)
      << kind.output;
  const Outcome flag = Shell("/", kScript + " --what");
  EXPECT_NE(flag.status, 0);
  EXPECT_NE(flag.output.find("deploy/bundle.sh [--build DIR]"), std::string::npos) << flag.output;
}

}  // namespace
}  // namespace glm::test
