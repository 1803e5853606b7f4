#include "proto/base/watched_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace glm {

FileReading ReadSmallFile(const std::string& path, int64_t bytes_max) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return {"", path + ": " + std::strerror(errno)};
  std::string content;
  char chunk[4096];
  ssize_t got = 0;
  while ((got = read(fd, chunk, sizeof(chunk))) != 0) {
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) break;
    content.append(chunk, static_cast<size_t>(got));
    if (static_cast<int64_t>(content.size()) > bytes_max) break;
  }
  const int error = got < 0 ? errno : 0;
  close(fd);
  if (error != 0) return {"", path + ": " + std::strerror(error)};
  if (static_cast<int64_t>(content.size()) > bytes_max) {
    return {"", path + ": more than " + std::to_string(bytes_max) + " bytes"};
  }
  return {std::move(content), ""};
}

WatchedFile::WatchedFile(std::string path, int64_t bytes_max, std::chrono::milliseconds interval,
                         OnChange on_change)
    : path_(std::move(path)),
      bytes_max_(bytes_max),
      interval_(interval),
      on_change_(std::move(on_change)),
      first_(ReadSmallFile(path_, bytes_max)),
      thread_([this] { Watch(); }) {}

WatchedFile::~WatchedFile() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
  }
  stop_.SignalAll();
  thread_.join();
}

void WatchedFile::Watch() {
  FileReading last = first_;
  while (true) {
    {
      MutexLock lock(&mutex_);
      // An early wake only means an early look.
      if (!stopping_) stop_.WaitFor(&mutex_, interval_);
      if (stopping_) return;
    }
    FileReading now = ReadSmallFile(path_, bytes_max_);
    if (now == last) continue;
    last = std::move(now);
    on_change_(last);
  }
}

}  // namespace glm
