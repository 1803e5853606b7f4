#include "proto/base/watched_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <future>
#include <string>

#include "tests/support/temp_folder.h"

namespace glm {
namespace {

constexpr std::chrono::milliseconds kTick{5};

void Write(const std::string& path, const std::string& text) {
  std::ofstream(path + ".new") << text;
  std::filesystem::rename(path + ".new", path);
}

TEST(ReadSmallFile, SaysWhatIsThereOrWhyNot) {
  const test::TempFolder folder;
  const std::string path = folder.path() + "/file";
  EXPECT_NE(ReadSmallFile(path, 10).error.find(path), std::string::npos);
  Write(path, "0123456789");
  EXPECT_EQ(ReadSmallFile(path, 10), (FileReading{"0123456789", ""}));
  EXPECT_EQ(ReadSmallFile(path, 9).error, path + ": more than 9 bytes");
  EXPECT_NE(ReadSmallFile(folder.path(), 9).error, "") << "a folder";
}

TEST(WatchedFile, TellsEachChangeOnce) {
  const test::TempFolder folder;
  const std::string path = folder.path() + "/file";
  Write(path, "one");
  Mutex mutex;
  std::vector<FileReading> heard;
  WatchedFile file(path, 100, kTick, [&](const FileReading& reading) {
    MutexLock lock(&mutex);
    heard.push_back(reading);
  });
  EXPECT_EQ(file.first(), (FileReading{"one", ""}));
  const auto await = [&](size_t count) {
    while (true) {
      {
        MutexLock lock(&mutex);
        if (heard.size() >= count) return heard.back();
      }
      std::this_thread::sleep_for(kTick);
    }
  };
  // The same length and, for all a test knows, the same time: only the content tells.
  Write(path, "two");
  EXPECT_EQ(await(1).content, "two");
  std::filesystem::remove(path);
  EXPECT_NE(await(2).error, "");
  Write(path, "two");
  EXPECT_EQ(await(3), (FileReading{"two", ""}));
  MutexLock lock(&mutex);
  EXPECT_EQ(heard.size(), 3u);
}

TEST(WatchedFile, EndsWithoutWaitingForItsNextLook) {
  const test::TempFolder folder;
  const auto before = std::chrono::steady_clock::now();
  { const WatchedFile file(folder.path() + "/none", 1, std::chrono::hours(1), nullptr); }
  EXPECT_LT(std::chrono::steady_clock::now() - before, std::chrono::minutes(1));
}

}  // namespace
}  // namespace glm
