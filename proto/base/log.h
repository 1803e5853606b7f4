// Logging and checks, for every room. Uses the standard library only, so .cu files may include it.
//
//   LOG(INFO) << "worker ready, " << blocks << " KV blocks";
//   CHECK(blocks_free >= 0) << "block pool of " << blocks << " blocks";
//   CHECK_EQ(a, b) << "why they must be equal";
//   DCHECK(...)   only in debug builds
//
// A CHECK is for our own broken invariants and for device errors: it prints file, line and values
// to stderr and aborts. What a caller or the world may cause is an absl::Status instead
// (ARCHITECTURE.md, "Errors"). Any thread; a line is written whole.
#pragma once

#include <cstdint>
#include <sstream>

namespace glm {

enum class LogSeverity : uint8_t { INFO, WARNING, ERROR, FATAL };

/// Lines below `severity` are dropped. Set once, in main.
void SetMinLogSeverity(LogSeverity severity);
/// Printed in every line after the time, e.g. "worker:50051". Set once, in main.
void SetLogName(const char* name);

/// One line of log; written by the destructor, which aborts when the severity is FATAL.
class LogLine {
 public:
  LogLine(LogSeverity severity, const char* file, int line);
  LogLine(const LogLine&) = delete;
  LogLine& operator=(const LogLine&) = delete;
  ~LogLine();

  std::ostream& stream() { return stream_; }

 private:
  LogSeverity severity_;
  const char* file_;
  int line_;
  std::ostringstream stream_;
};

/// Gives the false branch of CHECK's conditional the type void.
struct LogVoidify {
  void operator&(std::ostream&) const {}
};

}  // namespace glm

#define LOG(severity) ::glm::LogLine(::glm::LogSeverity::severity, __FILE__, __LINE__).stream()

#define CHECK(condition)             \
  (condition) ? static_cast<void>(0) \
              : ::glm::LogVoidify() & LOG(FATAL) << "CHECK failed: " #condition " "

#define GLM_CHECK_OP(op, a, b)                                                                    \
  ((a)op(b)) ? static_cast<void>(0)                                                               \
             : ::glm::LogVoidify() & LOG(FATAL) << "CHECK failed: " #a " " #op " " #b " (" << (a) \
                                                << " against " << (b) << ") "

#define CHECK_EQ(a, b) GLM_CHECK_OP(==, a, b)
#define CHECK_NE(a, b) GLM_CHECK_OP(!=, a, b)
#define CHECK_LT(a, b) GLM_CHECK_OP(<, a, b)
#define CHECK_LE(a, b) GLM_CHECK_OP(<=, a, b)
#define CHECK_GT(a, b) GLM_CHECK_OP(>, a, b)
#define CHECK_GE(a, b) GLM_CHECK_OP(>=, a, b)

#ifdef NDEBUG
#define DCHECK(condition) CHECK(true || (condition))
#else
#define DCHECK(condition) CHECK(condition)
#endif
