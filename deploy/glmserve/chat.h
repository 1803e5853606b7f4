// `glmserve chat`: a terminal client of the public gRPC service.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace glm::deploy {

struct ChatOptions {
  /// Router's gRPC address.
  std::string server = "127.0.0.1:50050";
  /// One question; empty: ask on the terminal until end of input.
  std::string message;
  /// System message; empty: none.
  std::string system;
  /// Let the model think before it answers.
  bool thinking = true;
  /// Longest answer, in tokens.
  uint32_t max_tokens = 512;
  float temperature = 0;
};

/// Prints answers as they come. The service's error if it has one.
absl::Status ChatOnTerminal(const ChatOptions& options);

}  // namespace glm::deploy
