// A fixed number of KV blocks: who holds each, and which are free. Host state only; the memory of
// block b lies in every rank's KvCache.
//
// Who calls: the scheduler, on the engine thread. A block is held by a count of references: a
// sequence holds one reference to each block of its table, and a block that several sequences share
// has one for each of them. At zero references a block is free.
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
  /// One reference more to a block that has at least one.
  void Share(int32_t block);
  /// One reference less. REQUIRES that the caller holds one.
  void Release(int32_t block);

  int32_t references(int32_t block) const;
  int64_t blocks_free() const { return static_cast<int64_t>(free_.size()); }
  int64_t blocks_total() const { return static_cast<int64_t>(references_.size()); }
  int64_t blocks_used() const { return blocks_total() - blocks_free(); }

  /// Aborts unless free list and counts agree: O(blocks_total), for tests.
  void CheckConsistent() const;

 private:
  std::vector<int32_t> references_;  // [B]
  std::vector<int32_t> free_;        // a stack: the block freed last is used first
};

}  // namespace glm::engine
