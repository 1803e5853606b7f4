// A prefix cache without a model: names of blocks, evicted as an engine evicts its blocks, with
// what has to be told to routers.
//
// Who calls: a scripted worker, under its lock.
#pragma once

#include <cstdint>
#include <list>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/types/span.h"
#include "proto/base/block_hash.h"
#include "proto/worker.pb.h"

namespace glm::bench {

class ScriptedCache {
 public:
  ScriptedCache(const HashKey& key, int32_t block_size, int64_t blocks_max)
      : hasher_(key), block_size_(block_size), blocks_max_(blocks_max) {}

  /// Names of the full blocks of `ids`.
  std::vector<BlockKey> Names(std::string_view salt, absl::Span<const int32_t> ids);
  /// How many blocks of the beginning of `chain` are held; they count as used now.
  int64_t Use(absl::Span<const BlockKey> chain);
  /// Holds all of `chain`. Past blocks_max the least recently used goes, the last block of a prefix
  /// first.
  void Store(absl::Span<const BlockKey> chain);
  /// Drops everything, as a restart does; nothing of it is told.
  void Reset();

  /// What changed since the last call, or null.
  bool TakeChanges(::glmserve::worker::v1::CacheChanges* changes);
  /// A frame without a change: the number of the next one, and the digest.
  void State(::glmserve::worker::v1::CacheChanges* state) const;
  /// Frames that tell all that is held, each of at most `blocks_a_frame`. REQUIRES that all changes
  /// were taken.
  std::vector<::glmserve::worker::v1::WorkerFrame> Snapshot(int64_t blocks_a_frame) const;

  int64_t blocks() const { return static_cast<int64_t>(order_.size()); }

 private:
  void Tell(bool stored, const BlockKey& block);

  BlockHasher hasher_;
  const int32_t block_size_;
  const int64_t blocks_max_;
  // The least recently used last; a block stands behind those in front of it in its chain, so the
  // last has no other behind it.
  std::list<BlockKey> order_;
  std::unordered_map<BlockKey, std::list<BlockKey>::iterator, BlockKeyHash> places_;
  ::glmserve::worker::v1::CacheChanges changes_;
  uint64_t sequence_ = 0;  // of the last change
  Digest digest_;
};

}  // namespace glm::bench
