// One bidirectional stream to a worker: frames down, frames up, an end. What carries it is not
// known here: gRPC does (grpc_stream.h), or a test's own network.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "proto/worker.pb.h"

namespace glm::router {

/// Who opened the stream. Called on a thread of the stream's own.
class StreamReader {
 public:
  /// The next frame; its content may be moved out. Not while another call of it runs.
  virtual void OnFrame(::glmserve::worker::v1::WorkerFrame* frame) = 0;
  /// The last Write is done with its frame. `ok` is false when the stream is broken.
  virtual void OnWritten(bool ok) = 0;
  /// No frame comes after this, and no Write may start after it returns.
  virtual void OnBroken() = 0;
  /// Exactly once, the last call of all. The stream may be destroyed from here on, though not on
  /// this thread.
  virtual void OnClosed(const absl::Status& status) = 0;

 protected:
  ~StreamReader() = default;
};

class WorkerStream {
 public:
  /// After OnClosed only.
  virtual ~WorkerStream() = default;
  /// Calls of the reader begin, perhaps before Start returns.
  virtual void Start() = 0;
  /// One at a time: the next after OnWritten. `frame` stays as it is until then. Any thread.
  virtual void Write(const ::glmserve::worker::v1::RouterFrame* frame) = 0;
  /// Ends the stream soon, whatever the worker does. Any thread, more than once.
  virtual void Cancel() = 0;
};

/// Makes a stream to `address` that is not started. `reader` outlives its OnClosed.
using DialWorker =
    std::function<std::unique_ptr<WorkerStream>(const std::string& address, StreamReader* reader)>;

}  // namespace glm::router
