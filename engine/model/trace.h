// Trace: the hook that sees every named intermediate of a forward pass.
//
// Off by default; golden tests and debugging set it with Glm::SetTrace. Called on the rank thread
// after the op that made the tensor was issued: on a GPU, synchronize before reading.
#pragma once

#include <functional>
#include <string>

#include "kernels/tensor.h"

namespace glm::engine {

using Trace = std::function<void(const std::string& name, const Tensor& tensor)>;

/// The hook under a name prefix, such as "layers.3."; costs one test when the hook is off.
class TraceScope {
 public:
  TraceScope(const Trace& trace, const char* scope, int64_t index)
      : trace_(trace), scope_(scope), index_(index) {}

  bool on() const { return static_cast<bool>(trace_); }
  void operator()(const char* name, const Tensor& tensor) const {
    if (trace_) trace_(std::string(scope_) + std::to_string(index_) + "." + name, tensor);
  }

 private:
  const Trace& trace_;
  const char* scope_;
  int64_t index_;
};

}  // namespace glm::engine
