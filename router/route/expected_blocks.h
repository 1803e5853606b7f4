// Blocks on their way: of prompts that were sent to a worker a moment ago, which it will hold when
// they are computed.
//
// A chain is noted at some of its blocks only: each of the first 16, every fourth up to 128, every
// sixteenth beyond, and its last. So a prompt of 100,000 tokens costs 430 notes, and what is told
// of another prompt that begins alike is short of the truth by less than a sixth, never beyond it;
// of the same prompt it is exact.
//
// Memory is bounded: a block has one note and one place in the order of their ends, and at
// `blocks_max` notes the oldest is forgotten before its time.
//
// Who calls: the prefix index. Any thread; one lock a shard of keys. No clock is read.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "proto/base/block_hash.h"
#include "proto/base/mutex.h"
#include "router/route/holder_sets.h"

namespace glm::router {

class ExpectedBlocks {
 public:
  /// `sets` outlives this.
  ExpectedBlocks(int64_t blocks_max, HolderSets* sets);
  ExpectedBlocks(const ExpectedBlocks&) = delete;
  ExpectedBlocks& operator=(const ExpectedBlocks&) = delete;

  /// How many blocks of a chain of `length` are noted, and the number of blocks up to the
  /// `index`-th of them, from 0.
  static int32_t Notes(int32_t length);
  static int32_t LengthAt(int32_t index, int32_t length);

  /// The worker in `slot` will hold `chain`: counts until `until_ms`, or until a later time that is
  /// said of one of these blocks, for whichever worker.
  void Expect(int32_t slot, absl::Span<const BlockKey> chain, int64_t now_ms, int64_t until_ms);
  /// Who will hold the block, of the slots below 64 * kWords.
  template <size_t kWords = 16>
  WorkerBits<kWords> Holders(const BlockKey& block, int64_t now_ms) const;
  /// Forgets what is expected of the worker: some 5 ns a note, one shard's lock at a time.
  void RemoveWorker(int32_t slot);

  int64_t blocks() const;  // noted now
  /// What a note takes at most, its share of the tables included.
  static constexpr int64_t kBytesPerBlock = 128;

 private:
  struct Note {
    HolderSet holders = 0;
    int64_t until_ms = 0;
  };
  struct alignas(64) Shard {
    mutable Mutex mutex;
    absl::flat_hash_map<BlockKey, Note, BlockKeyHash> notes ABSL_GUARDED_BY(mutex);
    /// Each noted block once, by the end that it had when it was put here.
    std::deque<std::pair<int64_t, BlockKey>> order ABSL_GUARDED_BY(mutex);
  };
  static constexpr size_t kShards = 64;
  static constexpr int32_t kExpiredAtOnce = 8;

  Shard& ShardOf(const BlockKey& block) { return shards_[block.high % kShards]; }
  const Shard& ShardOf(const BlockKey& block) const { return shards_[block.high % kShards]; }
  void Expire(Shard* shard, int64_t now_ms) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void DropOldest(Shard* shard) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);

  const size_t shard_blocks_max_;
  HolderSets* const sets_;
  std::array<Shard, kShards> shards_;
};

template <size_t kWords>
WorkerBits<kWords> ExpectedBlocks::Holders(const BlockKey& block, int64_t now_ms) const {
  const Shard& shard = ShardOf(block);
  MutexLock lock(&shard.mutex);
  const auto found = shard.notes.find(block);
  if (found == shard.notes.end() || found->second.until_ms <= now_ms) return {};
  return sets_->Mask<kWords>(found->second.holders);
}

}  // namespace glm::router
