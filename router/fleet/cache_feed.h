// What one worker says of its prefix cache, kept in the index: changes in order, and snapshots
// where the order broke.
//
// Who calls: the worker's session, on gRPC's thread that reads its frames.
#pragma once

#include <cstdint>
#include <vector>

#include "proto/base/block_hash.h"
#include "proto/worker.pb.h"
#include "router/route/prefix_index.h"

namespace glm::router {

class CacheFeed {
 public:
  static constexpr int32_t kSnapshotsWrongMax = 3;

  enum class Next : uint8_t {
    kGoOn,
    kAskSnapshot,  // what is known is void: send AskCacheSnapshot
  };

  /// Takes a slot of `index`, which outlives this. The first thing to do is to ask for a snapshot.
  explicit CacheFeed(PrefixIndex* index);
  CacheFeed(const CacheFeed&) = delete;
  CacheFeed& operator=(const CacheFeed&) = delete;
  /// Forgets all that the worker holds.
  ~CacheFeed();

  /// The worker's slot in the index; -1: there was none left, and nothing is kept.
  int32_t slot() const { return slot_; }

  /// A gap in the numbers, or a digest that is not that of what is known, voids all. After
  /// kSnapshotsWrongMax snapshots in a row that do not have their own digest nothing more is asked
  /// for: that worker's cache stays unknown, which costs no more than time.
  Next Take(const ::glmserve::worker::v1::CacheChanges& changes);
  Next Take(const ::glmserve::worker::v1::CacheSnapshot& snapshot);

  int64_t snapshots() const { return snapshots_; }  // taken whole
  int64_t breaks() const { return breaks_; }        // gaps and wrong digests

 private:
  Next Void(const char* why);

  PrefixIndex* const index_;
  const int32_t slot_;
  bool synced_ = false;  // the index has what the worker holds
  uint64_t next_sequence_ = 0;
  Digest digest_;
  std::vector<BlockKey> blocks_;  // of one call
  int32_t snapshots_wrong_ = 0;   // in a row
  int64_t snapshots_ = 0;
  int64_t breaks_ = 0;
};

}  // namespace glm::router
