// A fresh folder for one test, removed with everything in it when the test ends.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

#include "proto/base/log.h"

namespace glm::test {

class TempFolder {
 public:
  TempFolder() : path_((std::filesystem::temp_directory_path() / "glm_test_XXXXXX").string()) {
    CHECK(mkdtemp(path_.data()) != nullptr) << path_;
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace glm::test
