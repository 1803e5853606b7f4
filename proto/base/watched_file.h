// A small file that someone may replace while we run: certificates' companions, tokens, lists of
// workers. It is read each `interval`, on a thread of its own, so no other thread ever waits for a
// disk.
//
// Who calls: any thread makes and destroys it. Reading is by content, not by modification time:
// the files are small, and no clock or file system can hide a change.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "proto/base/mutex.h"

namespace glm {

/// What one look at a file found.
struct FileReading {
  std::string content;
  std::string error;  // why it could not be read, with its path; empty: it was read

  bool operator==(const FileReading&) const = default;
};

/// A file of at most `bytes_max` bytes; a larger one is an error.
FileReading ReadSmallFile(const std::string& path, int64_t bytes_max);

class WatchedFile {
 public:
  using OnChange = std::function<void(const FileReading&)>;

  /// Reads once before it returns. From then on `on_change` hears every reading that differs from
  /// the one before, on the file's own thread.
  WatchedFile(std::string path, int64_t bytes_max, std::chrono::milliseconds interval,
              OnChange on_change);
  WatchedFile(const WatchedFile&) = delete;
  WatchedFile& operator=(const WatchedFile&) = delete;
  /// Waits for an `on_change` that runs. Not from `on_change` itself.
  ~WatchedFile();

  /// What the constructor read.
  const FileReading& first() const { return first_; }

 private:
  void Watch();

  const std::string path_;
  const int64_t bytes_max_;
  const std::chrono::milliseconds interval_;
  const OnChange on_change_;
  const FileReading first_;

  Mutex mutex_;  // "watched file"
  Condition stop_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace glm
