// A fixed number of KV blocks: who holds each, and which are free. Host state only; the memory of
// block b lies in every rank's KvCache.
//
// Who calls: the scheduler and its prefix cache, on the engine thread. A block is held by a count
// of references: a sequence holds one reference to each block of its table, and a block that
// several sequences share has one for each of them. At zero references a block is free, or, if it
// was kept, idle: nobody uses it, but its contents are still there. Idle blocks stand in a queue in
// the order in which they became idle.
#pragma once

#include <cstdint>
#include <vector>

namespace glm::engine {

class BlockPool {
 public:
  /// `blocks` is at least 1 and fits in 31 bits.
  explicit BlockPool(int64_t blocks);

  /// A free block, now with one reference. REQUIRES blocks_free() > 0.
  int32_t Allocate();
  /// One reference more to a block that has at least one, or is idle.
  void Share(int32_t block);
  /// One reference less. REQUIRES that the caller holds one.
  void Release(int32_t block);

  /// From now on the block is idle, not free, when it has no references. REQUIRES that it has one.
  void Keep(int32_t block);
  /// The block that has been idle for longest; -1: none is idle.
  int32_t OldestIdle() const { return first_idle_; }
  /// Makes an idle block free.
  void Forget(int32_t block);

  int32_t references(int32_t block) const;
  bool kept(int32_t block) const { return links_.at(block).kept; }
  int64_t blocks_free() const { return static_cast<int64_t>(free_.size()); }
  int64_t blocks_idle() const { return blocks_idle_; }
  int64_t blocks_total() const { return static_cast<int64_t>(references_.size()); }
  /// With references.
  int64_t blocks_used() const { return blocks_total() - blocks_free() - blocks_idle(); }

  /// Aborts unless free list, queue and counts agree: O(blocks_total), for tests.
  void CheckConsistent() const;

 private:
  struct Link {  // of the queue of idle blocks
    int32_t before = -1;
    int32_t after = -1;
    bool kept = false;
  };
  void Unlink(int32_t block);

  std::vector<int32_t> references_;  // [B]
  std::vector<int32_t> free_;        // a stack: the block freed last is used first
  std::vector<Link> links_;          // [B]
  int32_t first_idle_ = -1;
  int32_t last_idle_ = -1;
  int64_t blocks_idle_ = 0;
};

}  // namespace glm::engine
