// Blocks and who holds them: one shard of the prefix index. Open addressing with 20 bytes a place,
// between 5/8 and 4/5 of the places in use while it grows.
//
// Places are in the order of the blocks' hashes, so that a search ends where a block would be,
// found or not, after some three neighbouring places.
//
// Who calls: the prefix index, under the shard's lock; Prefetch without it. Growing and shrinking
// move a whole table, so a shard is kept small.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstdint>

#include "proto/base/block_hash.h"
#include "router/route/holder_sets.h"

namespace glm::router {

class BlockTable {
 public:
  BlockTable() = default;
  BlockTable(const BlockTable&) = delete;
  BlockTable& operator=(const BlockTable&) = delete;
  ~BlockTable();

  /// A number of a block that is as good as random, whatever the block's name is.
  static uint64_t HashOf(const BlockKey& block) {
    const uint64_t mixed = (block.low + std::rotl(block.high, 31)) * 0x9E3779B97F4A7C15u;
    return mixed ^ mixed >> 32;
  }

  /// The block's holders; null: it is not there. Valid until the next FindOrInsert, Erase or Sweep.
  HolderSet* Find(const BlockKey& block, uint64_t hash);
  const HolderSet* Find(const BlockKey& block, uint64_t hash) const {
    return const_cast<BlockTable*>(this)->Find(block, hash);
  }
  /// The block's holders; where it was not there, a place with none: the caller sets them at once,
  /// and not to 0. Null: it is not there, and `blocks_max` others are.
  HolderSet* FindOrInsert(const BlockKey& block, uint64_t hash, int64_t blocks_max);
  /// Drops the block whose holders these are.
  void Erase(HolderSet* holders);
  /// change(HolderSet*) for every block; those left with 0 are dropped.
  template <typename Fn>
  void Sweep(Fn change);

  /// Asks for the memory that Find will look at first. Without the lock: a hint.
  void Prefetch(uint64_t hash) const;

  int64_t size() const { return size_; }
  int64_t bytes() const { return int64_t{places()} * int64_t{sizeof(Place)}; }
  /// What a table of `blocks_max` blocks takes at most.
  static int64_t BytesMax(int64_t blocks_max);

 private:
  struct Place {
    std::array<uint32_t, 4> name;
    HolderSet holders;  // 0: free

    bool IsOf(const BlockKey& block) const {
      return ((name[0] ^ static_cast<uint32_t>(block.low)) |
              (name[1] ^ static_cast<uint32_t>(block.low >> 32)) |
              (name[2] ^ static_cast<uint32_t>(block.high)) |
              (name[3] ^ static_cast<uint32_t>(block.high >> 32))) == 0;
    }
  };
  static_assert(sizeof(Place) == 20);
  static constexpr uint32_t kCapacityMin = 16;
  /// Places behind the last home. Were they ever full, the table would grow early.
  static constexpr uint32_t kTail = 32;

  static std::array<uint32_t, 4> NameOf(const BlockKey& block);
  static uint64_t HashAt(const Place& place);
  static uint32_t CapacityFor(int64_t blocks);
  uint32_t HomeOf(uint64_t hash) const {
    return static_cast<uint32_t>((hash >> 32) * capacity_ >> 32);
  }
  uint32_t places() const { return capacity_ == 0 ? 0 : capacity_ + kTail; }
  uint32_t LowerBound(uint64_t hash) const;
  bool Grow(int64_t blocks_max);
  bool Rebuild(uint32_t capacity);
  void EraseAt(uint32_t at);
  void ShrinkIfSparse();

  // Written under the lock; read without it by Prefetch alone.
  std::atomic<Place*> first_{nullptr};
  std::atomic<uint32_t> capacity_{0};
  uint32_t size_ = 0;
};

template <typename Fn>
void BlockTable::Sweep(Fn change) {
  Place* const places = first_.load(std::memory_order_relaxed);
  const uint32_t end = this->places();
  for (uint32_t i = 0; i < end;) {
    if (places[i].holders != 0) {
      change(&places[i].holders);
      if (places[i].holders == 0) {
        EraseAt(i);  // another block may stand here now
        continue;
      }
    }
    ++i;
  }
  ShrinkIfSparse();
}

}  // namespace glm::router
