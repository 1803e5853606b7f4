// Reads the source tree and holds it against the rules of ARCHITECTURE.md: who may include whom, no
// file that is not built, no test that is switched off, names, no device switches outside
// kernels/cuda.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

const fs::path kRoot = GLM_SOURCE_DIR;
const std::vector<std::string> kRooms = {"proto",  "kernels", "engine", "worker",
                                         "router", "deploy",  "bench",  "tests"};

std::string ReadFile(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

bool IsSource(const fs::path& path) {
  static const std::set<std::string> kExtensions = {".h", ".cc", ".cu", ".cuh"};
  return kExtensions.contains(path.extension().string());
}

/// All sources, relative to the root, in a fixed order.
std::vector<std::string> Sources() {
  std::vector<std::string> sources;
  for (const std::string& room : kRooms) {
    for (const auto& entry : fs::recursive_directory_iterator(kRoot / room)) {
      if (entry.is_regular_file() && IsSource(entry.path())) {
        sources.push_back(fs::relative(entry.path(), kRoot).string());
      }
    }
  }
  std::sort(sources.begin(), sources.end());
  return sources;
}

bool StartsWith(const std::string& text, const std::string& prefix) {
  return text.rfind(prefix, 0) == 0;
}

bool StartsWithAny(const std::string& text, const std::vector<std::string>& prefixes) {
  return std::any_of(prefixes.begin(), prefixes.end(),
                     [&](const std::string& prefix) { return StartsWith(text, prefix); });
}

/// What the files under `room` may and may not include, by prefix of the included name. The first
/// rule whose room is a prefix of the file's path counts.
struct Floor {
  std::string room;
  std::vector<std::string> ours;         // of this project: allowed
  std::vector<std::string> banned;       // libraries: not allowed
  std::vector<std::string> except = {};  // of those: allowed all the same
};

const std::vector<std::string> kWireLibraries = {"grpc", "google/protobuf", "prometheus", "boost/"};

const std::vector<Floor>& Floors() {
  static const std::vector<Floor> floors = [] {
    std::vector<std::string> no_libraries = kWireLibraries;
    no_libraries.insert(no_libraries.end(), {"absl/", "nlohmann/", "CLI/", "cuda", "nccl"});
    std::vector<std::string> engine_banned = kWireLibraries;
    engine_banned.insert(engine_banned.end(), {"CLI/", "cuda", "nccl"});
    std::vector<std::string> kernels_cuda_banned = kWireLibraries;
    kernels_cuda_banned.insert(kernels_cuda_banned.end(), {"absl/", "nlohmann/", "CLI/"});
    const std::vector<std::string> text_banned = {"grpc", "prometheus", "boost/", "CLI/"};
    const std::vector<std::string> kernel_faces = {"kernels/dtype.h",  "kernels/tensor.h",
                                                   "kernels/philox.h", "kernels/device.h",
                                                   "kernels/ops.h",    "kernels/communicator.h"};
    const auto with = [](std::vector<std::string> a, const std::vector<std::string>& b) {
      a.insert(a.end(), b.begin(), b.end());
      return a;
    };
    return std::vector<Floor>{
        // Clang's thread-safety annotations are macros in one header of Abseil's.
        {"proto/base/", {"proto/base/"}, no_libraries, {"absl/base/thread_annotations.h"}},
        {"proto/", {"proto/"}, {"cuda", "boost/", "CLI/"}},
        {"kernels/cuda/", {"proto/base/log.h", "kernels/"}, kernels_cuda_banned},
        {"kernels/", {"proto/base/log.h", "kernels/"}, no_libraries},
        {"engine/model/", with({"proto/base/", "engine/model/"}, kernel_faces), engine_banned},
        {"engine/schedule/",
         with({"proto/base/", "engine/schedule/", "engine/request.h", "engine/options.h"},
              kernel_faces),
         engine_banned},
        {"engine/rank/",
         with({"proto/base/", "engine/rank/", "engine/model/", "engine/schedule/step.h",
               "engine/request.h", "engine/options.h"},
              kernel_faces),
         engine_banned},
        {"engine/transfer/", with({"proto/base/", "engine/transfer/"}, kernel_faces),
         engine_banned},
        {"engine/", with({"proto/base/", "engine/"}, kernel_faces), engine_banned},
        {"worker/",
         {"proto/", "worker/", "engine/engine.h", "engine/options.h", "engine/request.h"},
         {"boost/", "cuda"}},
        {"router/text/", {"proto/base/", "router/text/"}, text_banned},
        {"router/route/", {"proto/base/", "router/route/"}, {"grpc", "prometheus", "boost/"}},
        {"router/admit/",
         {"proto/base/", "router/admit/", "router/loop.h", "router/options.h", "router/metrics.h"},
         {"grpc", "prometheus", "boost/", "CLI/"}},
        {"router/fleet/",
         {"proto/", "router/fleet/", "router/route/", "router/loop.h", "router/options.h",
          "router/metrics.h"},
         {"CLI/"}},
        {"router/front/",
         {"proto/", "router/front/", "router/text/", "router/exchange.h", "router/loop.h",
          "router/thread_loop.h", "router/route/placement.h", "router/options.h",
          "router/metrics.h", "router/fleet/fleet.h", "router/admit/"},
         {"CLI/"}},
        {"router/", {"proto/", "router/"}, {"cuda"}},
        {"deploy/", {"proto/", "deploy/"}, {"cuda"}},
        {"bench/", {"proto/", "kernels/", "engine/", "worker/", "router/", "bench/"}, {}},
        {"tests/", {""}, {}},
    };
  }();
  return floors;
}

const Floor& FloorOf(const std::string& source) {
  for (const Floor& floor : Floors()) {
    if (StartsWith(source, floor.room)) return floor;
  }
  static const Floor none;
  ADD_FAILURE() << source << " belongs to no floor";
  return none;
}

std::vector<std::string> IncludesOf(const std::string& source) {
  static const std::regex kInclude("^[ \\t]*#[ \\t]*include[ \\t]*[<\"]([^>\"]+)[>\"]",
                                   std::regex::multiline);
  const std::string text = ReadFile(kRoot / source);
  std::vector<std::string> includes;
  for (std::sregex_iterator it(text.begin(), text.end(), kInclude), end; it != end; ++it) {
    includes.push_back((*it)[1]);
  }
  return includes;
}

bool IsOurs(const std::string& include) {
  return std::any_of(kRooms.begin(), kRooms.end(),
                     [&](const std::string& room) { return StartsWith(include, room + "/"); });
}

TEST(Floors, TheTreeIsThere) { EXPECT_GT(Sources().size(), 40u); }

TEST(Floors, EveryIncludeLooksDown) {
  for (const std::string& source : Sources()) {
    const Floor& floor = FloorOf(source);
    for (const std::string& include : IncludesOf(source)) {
      if (IsOurs(include)) {
        EXPECT_TRUE(StartsWithAny(include, floor.ours)) << source << " may not include " << include;
      } else {
        EXPECT_FALSE(StartsWithAny(include, floor.banned) && !StartsWithAny(include, floor.except))
            << source << " may not include <" << include << ">";
      }
    }
  }
}

TEST(Floors, FlagsAreReadInMainOnly) {
  for (const std::string& source : Sources()) {
    if (fs::path(source).filename() == "main.cc" || StartsWith(source, "tests/")) continue;
    for (const std::string& include : IncludesOf(source)) {
      EXPECT_FALSE(StartsWith(include, "CLI/") || StartsWith(include, "absl/flags"))
          << source << " includes <" << include << ">";
    }
  }
}

/// The text of every CMakeLists.txt from the file's folder up to its room. What tests of several
/// rooms share may be listed in any of them.
std::string BuildTextOf(const fs::path& source) {
  std::string text;
  if (StartsWith(source.string(), "tests/support/")) {
    for (const auto& entry : fs::directory_iterator(kRoot / "tests")) {
      text += ReadFile(entry.path() / "CMakeLists.txt");
    }
  }
  for (fs::path folder = source.parent_path(); !folder.empty(); folder = folder.parent_path()) {
    text += ReadFile(kRoot / folder / "CMakeLists.txt");
  }
  return text;
}

TEST(Floors, EverySourceIsBuilt) {
  for (const std::string& source : Sources()) {
    const fs::path path(source);
    if (path.extension() != ".cc" && path.extension() != ".cu") continue;
    EXPECT_NE(BuildTextOf(path).find(path.filename().string()), std::string::npos)
        << source << " is in no CMakeLists.txt";
  }
}

TEST(Floors, EveryHeaderIsIncluded) {
  std::set<std::string> included;
  for (const std::string& source : Sources()) {
    for (const std::string& include : IncludesOf(source)) included.insert(include);
  }
  for (const std::string& source : Sources()) {
    const std::string extension = fs::path(source).extension();
    if (extension != ".h" && extension != ".cuh") continue;
    EXPECT_TRUE(included.contains(source)) << source << " is included by nobody";
  }
}

TEST(Floors, NoTestIsSwitchedOff) {
  // Spelled in two halves, so that this file passes its own test.
  const std::regex commented_out("\n[ \\t]*//[ \\t]*TEST(_F|_P)?\\(");
  const std::regex disabled(std::string("DIS") + "ABLED_");
  for (const std::string& source : Sources()) {
    if (!StartsWith(source, "tests/")) continue;
    const std::string text = ReadFile(kRoot / source);
    EXPECT_FALSE(std::regex_search(text, commented_out)) << source << ": a test commented out";
    EXPECT_FALSE(std::regex_search(text, disabled)) << source << ": a test switched off";
  }
}

TEST(Floors, NoDeviceSwitchesOutsideTheCudaFolder) {
  const std::regex device_switch("\n[ \\t]*#[ \\t]*(if|ifdef|ifndef|elif)[^\n]*(CUDA|NCCL|GPU)");
  for (const std::string& source : Sources()) {
    if (StartsWith(source, "kernels/cuda/")) continue;
    EXPECT_FALSE(std::regex_search(ReadFile(kRoot / source), device_switch))
        << source << ": the build picks the file, not the preprocessor";
  }
}

TEST(Floors, NoProductCodeReadsTheEnvironment) {
  const std::regex environment("\\b(secure_)?getenv\\(");
  for (const std::string& source : Sources()) {
    if (StartsWith(source, "tests/")) continue;
    EXPECT_FALSE(std::regex_search(ReadFile(kRoot / source), environment)) << source;
  }
}

TEST(Floors, NoRoomThatNobodyKeeps) {
  const std::regex banned(
      "(^|_)(util|utils|helper|helpers|common|misc|manager|mgr|handler|impl|info|data|context)"
      "(_|\\.|$)");
  for (const std::string& source : Sources()) {
    const std::string name = fs::path(source).filename();
    EXPECT_FALSE(std::regex_search(name, banned)) << source << ": name it after what it does";
  }
}

TEST(Floors, TheTopLevelIsFixed) {
  const std::set<std::string> allowed = {"proto",  "router", "worker", "engine", "kernels",
                                         "deploy", "tests",  "bench",  "build"};
  for (const auto& entry : fs::directory_iterator(kRoot)) {
    const std::string name = entry.path().filename();
    if (!entry.is_directory() || StartsWith(name, ".")) continue;
    EXPECT_TRUE(allowed.contains(name)) << name << "/ is a new top-level folder";
  }
}

}  // namespace
