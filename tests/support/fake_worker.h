// A scripted worker on a real port: it speaks the Session protocol, and its tokens are a function
// of the ids before them. Nothing sleeps: a test steps it by hand, or lets it step by itself, and
// waits for conditions.
//
// Any thread; one lock guards everything.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "proto/base/block_hash.h"
#include "proto/worker.pb.h"

namespace glm {

struct FakeWorkerOptions {
  int32_t port = 0;  // 0: one that is free
  uint32_t protocol_version = 1;
  uint64_t incarnation = 1;
  std::string model_name = "tiny";
  int32_t vocabulary = 1000;
  int32_t length_max = 4096;
  int32_t block_size = 16;
  int64_t kv_blocks_total = 1024;
  int32_t sequences_max = 64;
  std::vector<int32_t> eos_ids = {2};
  /// The token after `ids` (prompt and answer so far). Empty: a number made of all of `ids`, from
  /// 3 up to the vocabulary.
  std::function<int32_t(const std::vector<int32_t>& ids)> next_token = nullptr;
  /// Whether it steps by itself while it has requests; else only Step does.
  bool automatic = true;
  int32_t tokens_per_step = 1;  // of each request, as drafts give
  int32_t cached_tokens = 0;    // said of every prompt
  bool welcomes = true;         // whether Hello is answered
  bool scores = true;           // whether logprobs that are asked for are sent
  /// Whether it has a prefix cache: it holds every full block of every prompt, named under the
  /// public key, and says so at once.
  bool prefix_caching = false;
};

class FakeWorker {
 public:
  /// What happened since the start; `live` is now.
  struct Seen {
    int32_t sessions = 0;  // open now
    int32_t submits = 0;
    int32_t cancels = 0;
    int32_t live = 0;       // requests submitted and not ended
    int64_t tokens = 0;     // sent
    int32_t snapshots = 0;  // of the prefix cache, asked for
  };

  static std::unique_ptr<FakeWorker> Start(FakeWorkerOptions options = {});
  ~FakeWorker();

  std::string address() const;  // 127.0.0.1:port
  int32_t port() const;

  /// One token for each live request, in one frame per session.
  void Step();
  /// Whether it steps by itself from now on.
  void SetAutomatic(bool automatic);
  /// Refuses every submit from now on with `status`; OK: none.
  void Refuse(absl::Status status);
  /// Ends every session with `status`; their requests are dropped.
  void BreakSessions(const absl::Status& status);
  /// Says so in a frame to every session.
  void SetDraining(bool draining);
  /// Says a load to every session, as if others had sent requests.
  void SayLoad(const glmserve::worker::v1::Load& load);
  /// Stores a block in its prefix cache and tells nobody: the next change comes after a gap.
  void StoreInSecret(const BlockKey& block);
  /// Ends every request with FINISH_CANCELLED, unasked.
  void DropRequests();

  Seen seen() const;
  /// Waits until `condition` holds; false after 30 s.
  bool Await(const std::function<bool(const Seen&)>& condition) const;
  bool AwaitLive(int32_t live) const;
  bool AwaitSubmits(int32_t submits) const;
  bool AwaitSessions(int32_t sessions) const;
  /// Every submit since the start.
  std::vector<glmserve::worker::v1::Submit> submits() const;

  /// Stops listening and breaks what is open; the port is free afterwards.
  void Stop();

 private:
  class Service;

  FakeWorker() = default;

  std::unique_ptr<Service> service_;
};

/// What a worker of these options answers to `prompt_ids`, `count` tokens of it.
std::vector<int32_t> FakeAnswer(const FakeWorkerOptions& options, std::vector<int32_t> prompt_ids,
                                int32_t count);

/// What a worker says of a token: the ids from the multiple of 4 on are ever less likely.
glmserve::worker::v1::TokenLogprobs FakeLogprobs(int32_t id, int32_t alternatives);

}  // namespace glm
