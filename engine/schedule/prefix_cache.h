// The prefix cache: which KV blocks hold which run of tokens, so that a sequence takes over what
// another one has computed. Host state only.
//
// Who calls: the scheduler, on the engine thread. What is cached are full blocks of whose contents
// nobody doubts: published when the result of the step that filled them is in. Every cached block
// but a first one has a cached parent, the block before it. Two sequences that compute the same
// block get one: Publish says which, and the other is given up.
//
// Eviction: a cached block that no sequence holds is idle and stays until its memory is needed, the
// one that became idle first going first. A sequence holds all blocks before each that it holds,
// and gives them back last first; so a parent becomes idle after its children, and is never evicted
// before them. No search, no clock.
//
// A hit counts only if the tokens, the parent and the salt are the same, not just the key.
//
// With drafting, the draft layer's entry at a block's last position was made with the token that
// followed there at the time, which no key names. Who takes the block over may draft the worse for
// it; what is drawn does not depend on it.
//
// Memory: an entry a block at most, with its P ids.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/request.h"
#include "engine/schedule/block_pool.h"
#include "proto/base/block_hash.h"

namespace glm::engine {

class PrefixCache {
 public:
  /// `pool` must outlive it.
  PrefixCache(BlockPool* pool, int32_t block_size, const HashKey& key);

  /// Appends to `keys` those of the full blocks of `tokens` that it lacks.
  void Name(std::string_view salt, std::span<const int32_t> tokens, std::vector<BlockKey>* keys);

  /// The cached blocks of the longest prefix of `tokens`, at most keys.size() blocks; `keys` are
  /// theirs. Takes no references: they are good until the next change.
  std::vector<int32_t> Match(std::string_view salt, std::span<const int32_t> tokens,
                             std::span<const BlockKey> keys) const;

  /// Caches `block`, which the caller holds and which holds `ids`; `parent` is the cached block
  /// before it, which the caller holds too, or -1 for a first one. Returns the block that is cached
  /// under this key from now on: `block`, or another with the same tokens. -1: the key is taken by
  /// other tokens, and nothing changed.
  int32_t Publish(const BlockKey& key, std::string_view salt, std::span<const int32_t> ids,
                  int32_t block, int32_t parent);

  /// A block to write to, with one reference: a free one, or the oldest idle one, evicted. REQUIRES
  /// blocks_available() > 0.
  int32_t Allocate();
  int64_t blocks_available() const { return pool_->blocks_free() + pool_->blocks_idle(); }

  /// Moves the changes since the last call to `events`, with their number and the digest.
  void TakeChanges(StepEvents* events);
  /// As of the last TakeChanges. REQUIRES that nothing changed since.
  std::shared_ptr<const CacheSnapshot> Snapshot() const;

  int64_t blocks_cached() const { return static_cast<int64_t>(blocks_.size()); }
  uint64_t evictions() const { return evictions_; }

  /// Aborts unless all state agrees: O(blocks_total), for tests.
  void CheckConsistent() const;

 private:
  struct Entry {
    bool cached = false;
    BlockKey key;
    int32_t parent = -1;
    int32_t children = 0;
    std::string salt;  // of a first block
  };
  bool Holds(int32_t block, int32_t parent, std::string_view salt,
             std::span<const int32_t> ids) const;
  std::span<const int32_t> IdsOf(int32_t block) const;
  BlockKey ParentKey(int32_t block) const;

  BlockPool* const pool_;
  const int32_t block_size_;
  BlockHasher hasher_;
  std::unordered_map<BlockKey, int32_t, BlockKeyHash> blocks_;
  std::vector<Entry> entries_;  // [B]
  std::vector<int32_t> ids_;    // [B * P]
  std::vector<CacheChange> changes_;
  uint64_t sequence_ = 0;  // changes taken
  uint64_t evictions_ = 0;
  Digest digest_;
};

}  // namespace glm::engine
