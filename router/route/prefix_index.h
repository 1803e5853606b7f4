// Which workers hold which blocks of the prefix cache, by what they say and by what was just sent
// to them.
//
// Who calls: sessions, on gRPC's threads, store and remove what their worker reports; exchanges, on
// their loops, look prompts up and tell what they sent. Any thread; one lock a shard of keys.
//
// A worker drops the last block of a prefix before the one in front of it, so of any chain of
// blocks it holds a beginning: the length is found by bisection, for all workers at once, with one
// look into the table a step. No clock is read: time is what the caller says it is.
//
// Memory is bounded: a block takes some 60 bytes however many workers hold it, and at blocks_max
// no new one is taken; then lookups find less than there is, and nothing else goes wrong.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <mutex>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/types/span.h"
#include "proto/base/block_hash.h"

namespace glm::router {

/// A set of workers, by the slots that the index gave them.
class WorkerMask {
 public:
  static constexpr int32_t kWorkersMax = 256;

  void Set(int32_t slot) { words_[slot / 64] |= Bit(slot); }
  void Clear(int32_t slot) { words_[slot / 64] &= ~Bit(slot); }
  bool Has(int32_t slot) const { return (words_[slot / 64] & Bit(slot)) != 0; }
  bool empty() const { return *this == WorkerMask(); }
  WorkerMask operator&(const WorkerMask& other) const;
  WorkerMask operator|(const WorkerMask& other) const;
  WorkerMask Without(const WorkerMask& other) const;
  bool operator==(const WorkerMask&) const = default;

 private:
  static uint64_t Bit(int32_t slot) { return uint64_t{1} << (slot % 64); }
  std::array<uint64_t, kWorkersMax / 64> words_{};
};

class PrefixIndex {
 public:
  /// Blocks that are remembered, over all workers.
  explicit PrefixIndex(int64_t blocks_max);
  PrefixIndex(const PrefixIndex&) = delete;
  PrefixIndex& operator=(const PrefixIndex&) = delete;

  /// A slot for a worker that holds nothing yet; -1: kWorkersMax are there.
  int32_t AddWorker();
  /// Forgets all that the worker holds, and frees its slot.
  void RemoveWorker(int32_t slot);
  /// Forgets all that the worker holds: before a snapshot of its cache is stored.
  void ClearWorker(int32_t slot);

  void Store(int32_t slot, const BlockKey& block);
  void Remove(int32_t slot, const BlockKey& block);

  /// A prompt with these blocks is on its way to the worker: until `until_ms` they count as held,
  /// so that requests of one prefix that come at once go to one worker.
  void Expect(int32_t slot, absl::Span<const BlockKey> chain, int64_t now_ms, int64_t until_ms);

  /// For every slot, how many blocks of the beginning of `chain` its worker holds or awaits;
  /// kWorkersMax numbers.
  std::vector<int32_t> Depths(absl::Span<const BlockKey> chain, int64_t now_ms) const;

  int64_t blocks() const;          // remembered
  int64_t blocks_refused() const;  // not taken, since blocks_max were there

 private:
  struct Holders {
    WorkerMask stored;
    WorkerMask expected;
    int64_t expected_until_ms = 0;
  };
  struct Shard {
    mutable std::mutex mutex;
    absl::flat_hash_map<BlockKey, Holders, BlockKeyHash> blocks ABSL_GUARDED_BY(mutex);
    /// What was expected, oldest first: to be forgotten in time.
    std::deque<std::pair<int64_t, BlockKey>> expiries ABSL_GUARDED_BY(mutex);
    int64_t refused ABSL_GUARDED_BY(mutex) = 0;
  };
  static constexpr size_t kShards = 16;

  Shard& ShardOf(const BlockKey& key) { return shards_[key.high % kShards]; }
  const Shard& ShardOf(const BlockKey& key) const { return shards_[key.high % kShards]; }
  /// The block's entry, made if there is room; null: there is none.
  Holders* Entry(Shard* shard, const BlockKey& block) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void Expire(Shard* shard, int64_t now_ms) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  WorkerMask HoldersOf(const BlockKey& block, int64_t now_ms) const;

  const int64_t shard_blocks_max_;
  std::array<Shard, kShards> shards_;
  mutable std::mutex slots_mutex_;
  std::array<absl::flat_hash_set<BlockKey, BlockKeyHash>, WorkerMask::kWorkersMax> held_
      ABSL_GUARDED_BY(slots_mutex_);
  WorkerMask slots_used_ ABSL_GUARDED_BY(slots_mutex_);
};

}  // namespace glm::router
