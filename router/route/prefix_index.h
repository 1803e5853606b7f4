// Which workers hold which blocks of the prefix cache, by what they say and by what was just sent
// to them.
//
// Who calls: sessions, on gRPC's threads, store and remove what their worker reports; exchanges, on
// their loops, look prompts up and tell what they sent. Any thread; one lock a shard of some 4,000
// blocks, held for less than 1 us, or for some 100 us when the shard grows or a worker is
// forgotten.
//
// A worker drops the last block of a prefix before the one in front of it, so of any chain of
// blocks it holds a beginning: the length is found by bisection, for all workers at once, with one
// look into the table a step. No clock is read: time is what the caller says it is.
//
// Memory is bounded. A block takes 25 to 32 bytes, however many workers hold it (block_table.h).
// Besides there are at most an eighth as many large sets of holders (holder_sets.h: 22 bytes a
// block if ever all are in use, as a rule next to nothing) and a sixteenth as many blocks on their
// way (expected_blocks.h: 8 bytes a block): BytesMax. Near `blocks_max` (from some 95 % on) no new
// block is taken, nor a holder whose set has no room; then lookups find less than there is, and
// nothing else goes wrong.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/types/span.h"
#include "proto/base/block_hash.h"
#include "proto/base/mutex.h"
#include "router/route/block_table.h"
#include "router/route/expected_blocks.h"
#include "router/route/holder_sets.h"
#include "router/route/worker_mask.h"

namespace glm::router {

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
  /// Forgets all that the worker holds: before a snapshot of its cache is stored. Goes through the
  /// whole index, shard by shard, unless the worker holds nothing: 25 ms a million blocks as a
  /// rule, 150 ms where no two blocks have the same holders.
  void ClearWorker(int32_t slot);

  // One thread at a time a slot. Blocks may be in any order; many at once cost a third of one by
  // one, since the memory of the next is fetched while one is stored.
  void Store(int32_t slot, absl::Span<const BlockKey> blocks);
  void Remove(int32_t slot, absl::Span<const BlockKey> blocks);
  void Store(int32_t slot, const BlockKey& block) { Store(slot, {&block, 1}); }
  void Remove(int32_t slot, const BlockKey& block) { Remove(slot, {&block, 1}); }

  /// A prompt with these blocks is on its way to the worker: until `until_ms` they count as held,
  /// so that requests of one prefix that come at once go to one worker.
  void Expect(int32_t slot, absl::Span<const BlockKey> chain, int64_t now_ms, int64_t until_ms);

  /// For every slot, how many blocks of the beginning of `chain` its worker holds or awaits;
  /// kWorkersMax numbers. Of what is awaited, as exact as expected_blocks.h says, and never more.
  std::vector<int32_t> Depths(absl::Span<const BlockKey> chain, int64_t now_ms) const;

  int64_t blocks() const;           // remembered
  int64_t blocks_refused() const;   // not taken, or a holder of theirs, since there was no room
  int64_t blocks_expected() const;  // noted as on their way
  int64_t bytes() const;            // of memory for all blocks, those on their way not counted
  /// What an index of `blocks_max` takes at most.
  static int64_t BytesMax(int64_t blocks_max);

 private:
  struct alignas(64) Shard {
    mutable Mutex mutex;
    /// Guarded by `mutex`, but for Prefetch.
    BlockTable table;
    int64_t refused ABSL_GUARDED_BY(mutex) = 0;
  };
  static constexpr int64_t kShardBlocks = 4096;
  static constexpr int64_t kShardsMax = 1 << 20;
  static int64_t ShardsFor(int64_t blocks_max);

  /// From the low half of a hash; the table uses the high half.
  Shard& ShardOf(uint64_t hash) const {
    return shards_[static_cast<uint32_t>(hash) & (shard_count_ - 1)];
  }
  // Whether the worker holds a block more, or less.
  bool StoreOne(int32_t slot, const BlockKey& block);
  bool RemoveOne(int32_t slot, const BlockKey& block);
  void FetchAhead(absl::Span<const BlockKey> blocks, size_t i) const;
  template <size_t kWords>
  WorkerBits<kWords> HoldersOf(const BlockKey& block) const;
  template <size_t kWords>
  void FindDepths(absl::Span<const BlockKey> chain, int64_t now_ms, int32_t* depths) const;
  void Prefetch(const BlockKey& block) const;

  const int64_t shard_count_;  // a power of two
  const int64_t shard_blocks_max_;
  const std::unique_ptr<Shard[]> shards_;
  HolderSets sets_;
  ExpectedBlocks expected_;
  /// Blocks of each worker; 0 only if it holds none. More than there are, where one was dropped for
  /// want of room.
  std::array<std::atomic<int64_t>, WorkerMask::kWorkersMax> held_{};

  std::atomic<int32_t> slots_end_{0};  // slots from here on were never used
  Mutex slots_mutex_;
  WorkerMask slots_used_ ABSL_GUARDED_BY(slots_mutex_);
};

}  // namespace glm::router
