// One worker as seen from here: one stream, from dialling to its end. A worker that comes back is a
// new Session.
//
// Who calls: Fleet opens, watches and closes it; exchanges, on their loops, submit and cancel. The
// stream's thread reads a frame and splits it by loop: one Post per loop that has an answer in it.
// What belongs to a loop (its table of live requests) is touched on that loop only; the out-buffer
// has the one lock.
//
// An output reaches its request by the session and the number that its submit got there: numbers
// are never used again, and a request that was lost or cancelled is out of the table. So tokens of
// an attempt that was given up, however late, reach nobody.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/worker.pb.h"
#include "router/fleet/cache_feed.h"
#include "router/fleet/worker_stream.h"
#include "router/loop.h"
#include "router/metrics.h"
#include "router/options.h"
#include "router/route/policy.h"

namespace glm::router {

namespace wire = ::glmserve::worker::v1;

inline constexpr uint32_t kProtocolVersion = 1;

/// What the worker said of itself in its Welcome.
struct WorkerShape {
  uint64_t incarnation = 0;
  std::string model_name;
  int32_t vocabulary = 0;
  int32_t length_max = 0;  // prompt + generated tokens of one request
  int32_t block_size = 1;  // tokens
  int64_t kv_blocks_total = 0;
  int32_t sequences_max = 0;
  int32_t step_tokens_max = 0;  // computed in one step; 0: not told
  std::vector<int32_t> eos_ids;
};

/// What a worker must be to serve here; else its stream is closed with FAILED_PRECONDITION.
struct WorkerDemand {
  std::string model_name;
  int32_t vocabulary_min = 0;  // the tokenizer's ids are below this
};

/// The worker's load: what its last Step said, or what this router knows to have sent, whichever is
/// more. So a burst counts at once, and so does what other routers sent.
struct WorkerLoad {
  int32_t requests = 0;        // running and waiting
  int64_t tokens_waiting = 0;  // prompt tokens not yet computed
  int64_t kv_blocks_used = 0;
  int64_t kv_blocks_total = 0;
  int64_t context_tokens = 0;  // held by the running requests, as was said
  StepTimes step_times;        // as was said; not known before
  double silent_s = 0;         // since anything was said
};

/// Who submitted. Called on the loop of the submit, never after Cancel, and never again after an
/// output with a finish or after OnLost. The receiver may die inside a call.
class Receiver {
 public:
  virtual void OnOutput(const wire::Output& output) = 0;
  /// The stream ended with the request still open.
  virtual void OnLost(const absl::Status& status) = 0;

 protected:
  ~Receiver() = default;
};

/// What sessions work with; it outlives them.
struct FleetRooms {
  std::vector<Loop*> loops;      // of the process, each at its index
  PrefixIndex* index = nullptr;  // learns what the workers' caches hold
  RouterMetrics* metrics = nullptr;
  DialWorker dial;
  /// Told whenever some worker may take more requests than before, on any thread. May be empty.
  std::function<void()> on_room = nullptr;
};

class Session final : private StreamReader {
 public:
  /// What the owner hears: on_ready and on_draining at most once each, on the stream's
  /// thread; on_end exactly once and last, on a loop's thread.
  struct Events {
    std::function<void()> on_ready;
    std::function<void()> on_draining;
    std::function<void(absl::Status)> on_end;
  };

  /// Dials `address`.
  static std::shared_ptr<Session> Open(const std::string& address, const FleetOptions& options,
                                       const WorkerDemand& demand, const FleetRooms& rooms,
                                       Events events);
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  /// Whether a new request may go here. Any thread; false at once when the stream breaks.
  bool accepting() const { return accepting_.load(std::memory_order_acquire); }
  /// Set before on_ready, constant from then on.
  const WorkerShape& shape() const { return shape_; }
  WorkerLoad Load() const;  // any thread
  /// How many requests it would take now without more than worker_queue_* of them waiting there.
  /// Any thread.
  int64_t Room() const;
  /// The worker's slot in the index; -1: its cache is not known. Set before on_ready, constant from
  /// then on; void once the session has ended.
  int32_t cache_slot() const { return cache_slot_; }
  const std::string& address() const { return address_; }

  /// Sends a request; its outputs go to `receiver`. On `loop`'s thread. `submit.request_id` is set
  /// here, and returned. Of its prompt `cached_tokens` count as no load. UNAVAILABLE when the
  /// session takes no more.
  absl::StatusOr<uint64_t> Submit(Loop* loop, wire::Submit submit, Receiver* receiver,
                                  int64_t cached_tokens = 0);
  /// Tells the worker to drop the request, and forgets its receiver. On the loop of its submit;
  /// nothing happens when the request has ended.
  void Cancel(Loop* loop, uint64_t request_id);

  /// Takes no new requests from now on; those there go on. Any thread.
  void Retire();
  /// Requests that were sent and have not ended. Any thread.
  int32_t requests() const { return own_requests_.load(std::memory_order_relaxed); }

  /// Ends the stream; on_end gets `reason`. Any thread.
  void Close(const absl::Status& reason);

  /// Closes the session if its worker has work and shows no progress: no frame for
  /// hang_timeout_ms, or a step that takes far longer than it should. To be called a few times a
  /// second. Any thread.
  void CheckProgress();

 private:
  /// A request that was submitted and has not ended.
  struct Live {
    Receiver* receiver = nullptr;
    int64_t prompt_tokens = 0;  // to be computed
    bool answered = false;      // a first token came, so its prompt is computed
  };
  /// The live requests of one loop, by id. The id modulo the number of loops is the loop.
  using LiveTable = std::unordered_map<uint64_t, Live>;

  Session(const std::string& address, const FleetOptions& options, const WorkerDemand& demand,
          const FleetRooms& rooms, Events events);
  void Dial();
  void FollowCache();
  void Obey(CacheFeed::Next next);
  void AskSnapshot();

  void OnFrame(wire::WorkerFrame* frame) override;
  void OnWritten(bool ok) override;
  void OnBroken() override;
  void OnClosed(const absl::Status& status) override;

  absl::Status TakeFrame(wire::WorkerFrame* frame);
  void TakeLoad(const wire::Load& load);
  void TellRoom() const {
    if (rooms_.on_room) rooms_.on_room();
  }
  absl::Status TakeWelcome(const wire::Welcome& welcome);
  void TakeStep(wire::Step* step);
  void Deliver(int32_t loop_index, const std::vector<wire::Output>& outputs);
  void LoseAll(int32_t loop_index, const absl::Status& status);
  bool Send(wire::RouterFrame frame);
  void Forget(const Live& live);

  const std::string address_;
  const FleetOptions options_;
  const WorkerDemand demand_;
  const FleetRooms rooms_;
  const Events events_;

  std::unique_ptr<WorkerStream> stream_;
  std::shared_ptr<Session> self_;  // the stream's hold on this object, until OnClosed

  WorkerShape shape_;
  std::optional<CacheFeed> cache_;  // the stream's thread
  int32_t cache_slot_ = -1;
  bool welcomed_ = false;  // the stream's thread
  bool draining_ = false;  // the stream's thread
  std::atomic<bool> accepting_{false};

  std::vector<LiveTable> live_;  // one per loop, touched on that loop only
  std::atomic<uint64_t> requests_made_{0};

  // What this router has sent and not seen ended, or not seen answered.
  std::atomic<int32_t> own_requests_{0};
  std::atomic<int64_t> own_tokens_waiting_{0};
  // What the last Step said.
  std::atomic<int32_t> said_requests_{0};
  std::atomic<int32_t> said_requests_waiting_{0};
  std::atomic<int64_t> said_tokens_waiting_{0};
  std::atomic<int64_t> said_kv_blocks_used_{0};
  std::atomic<int64_t> said_kv_blocks_total_{0};
  std::atomic<int64_t> said_context_tokens_{0};
  // One by one: who reads them while they change gets some old and some new ones, all of which were
  // true within a step.
  std::atomic<float> said_base_us_{0};
  std::atomic<float> said_sequence_us_{0};
  std::atomic<float> said_prompt_token_us_{0};
  std::atomic<float> said_context_token_us_{0};

  // Progress, in milliseconds of the loops' clock.
  std::atomic<int64_t> heard_ms_{0};          // the last frame came
  std::atomic<int64_t> busy_since_ms_{0};     // a request was sent to a worker that had none
  std::atomic<int64_t> step_age_ms_{0};       // of the step under way, by the last heartbeat
  std::atomic<int64_t> step_expected_ms_{0};  // 0: not known

  /// The out-buffer: loops put frames in, the stream's thread takes them out one by one.
  std::mutex out_mutex_;
  std::deque<wire::RouterFrame> out_ ABSL_GUARDED_BY(out_mutex_);  // the first is being written
  int64_t out_bytes_ ABSL_GUARDED_BY(out_mutex_) = 0;
  bool ended_ ABSL_GUARDED_BY(out_mutex_) = false;
  bool retired_ ABSL_GUARDED_BY(out_mutex_) = false;
  absl::Status close_reason_ ABSL_GUARDED_BY(out_mutex_);
};

}  // namespace glm::router
