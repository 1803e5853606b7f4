#include "proto/base/log.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>

namespace glm {
namespace {

std::atomic<LogSeverity> min_severity{LogSeverity::INFO};
std::atomic<const char*> log_name{""};

std::string Timestamp() {
  const auto now = std::chrono::system_clock::now();
  const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
  const auto micros =
      std::chrono::duration_cast<std::chrono::microseconds>(now.time_since_epoch()).count() %
      1'000'000;
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  char text[40];
  std::snprintf(text, sizeof(text), "%02d%02d %02d:%02d:%02d.%06d", utc.tm_mon + 1, utc.tm_mday,
                utc.tm_hour, utc.tm_min, utc.tm_sec, static_cast<int>(micros));
  return text;
}

const char* BaseName(const char* file) {
  const char* slash = std::strrchr(file, '/');
  return slash == nullptr ? file : slash + 1;
}

}  // namespace

void SetMinLogSeverity(LogSeverity severity) { min_severity = severity; }
void SetLogName(const char* name) { log_name = name; }

LogLine::LogLine(LogSeverity severity, const char* file, int line)
    : severity_(severity), file_(file), line_(line) {}

LogLine::~LogLine() {
  if (severity_ >= min_severity.load(std::memory_order_relaxed)) {
    const std::string text = std::string(1, "IWEF"[static_cast<int>(severity_)]) + Timestamp() +
                             " " + log_name.load() + " " + BaseName(file_) + ":" +
                             std::to_string(line_) + "] " + stream_.str() + "\n";
    // One write, so that lines of several threads do not mix.
    [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
  }
  if (severity_ == LogSeverity::FATAL) std::abort();
}

}  // namespace glm
