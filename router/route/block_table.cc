#include "router/route/block_table.h"

#include <algorithm>
#include <cstring>

#include "proto/base/log.h"

namespace glm::router {
namespace {

/// Blocks that `capacity` homes take: 4/5.
int64_t BlocksOf(int64_t capacity) { return capacity * 4 / 5; }

}  // namespace

BlockTable::~BlockTable() { delete[] first_.load(std::memory_order_relaxed); }

std::array<uint32_t, 4> BlockTable::NameOf(const BlockKey& block) {
  return {static_cast<uint32_t>(block.low), static_cast<uint32_t>(block.low >> 32),
          static_cast<uint32_t>(block.high), static_cast<uint32_t>(block.high >> 32)};
}

uint64_t BlockTable::HashAt(const Place& place) {
  return HashOf(BlockKey{.high = uint64_t{place.name[3]} << 32 | place.name[2],
                         .low = uint64_t{place.name[1]} << 32 | place.name[0]});
}

uint32_t BlockTable::CapacityFor(int64_t blocks) {
  return static_cast<uint32_t>(std::max<int64_t>(kCapacityMin, (blocks * 5 + 3) / 4));
}

int64_t BlockTable::BytesMax(int64_t blocks_max) {
  return (int64_t{CapacityFor(blocks_max)} + kTail) * int64_t{sizeof(Place)};
}

void BlockTable::Prefetch(uint64_t hash) const {
  const Place* const places = first_.load(std::memory_order_relaxed);
  if (places != nullptr) __builtin_prefetch(places + HomeOf(hash));
}

uint32_t BlockTable::LowerBound(uint64_t hash) const {
  const Place* const places = first_.load(std::memory_order_relaxed);
  const uint32_t end = this->places();
  uint32_t at = HomeOf(hash);
  while (at < end && places[at].holders != 0 && HashAt(places[at]) < hash) ++at;
  return at;
}

HolderSet* BlockTable::Find(const BlockKey& block, uint64_t hash) {
  Place* const places = first_.load(std::memory_order_relaxed);
  const uint32_t end = this->places();
  for (uint32_t at = LowerBound(hash); at < end && places[at].holders != 0; ++at) {
    if (places[at].IsOf(block)) return &places[at].holders;
    if (HashAt(places[at]) != hash) break;
  }
  return nullptr;
}

bool BlockTable::Grow(int64_t blocks_max) {
  const uint32_t capacity_max = CapacityFor(blocks_max);
  // By a quarter: what a table takes stays near to what it needs.
  const uint32_t larger = capacity_ + std::max<uint32_t>(kCapacityMin, capacity_ / 4);
  return capacity_ < capacity_max && Rebuild(std::min(larger, capacity_max));
}

HolderSet* BlockTable::FindOrInsert(const BlockKey& block, uint64_t hash, int64_t blocks_max) {
  while (true) {
    Place* const places = first_.load(std::memory_order_relaxed);
    const uint32_t end = this->places();
    const uint32_t at = LowerBound(hash);
    uint32_t free = at;
    for (; free < end && places[free].holders != 0; ++free) {
      if (places[free].IsOf(block)) return &places[free].holders;
    }
    if (size_ >= blocks_max) return nullptr;
    if (size_ >= BlocksOf(capacity_) || free == end) {
      if (!Grow(blocks_max)) return nullptr;
      continue;
    }
    std::memmove(places + at + 1, places + at, (free - at) * sizeof(Place));
    places[at] = {.name = NameOf(block), .holders = 0};
    ++size_;
    return &places[at].holders;
  }
}

void BlockTable::Erase(HolderSet* holders) {
  const auto* const bytes = reinterpret_cast<const char*>(holders) - offsetof(Place, holders);
  EraseAt(static_cast<uint32_t>(reinterpret_cast<const Place*>(bytes) -
                                first_.load(std::memory_order_relaxed)));
  ShrinkIfSparse();
}

void BlockTable::EraseAt(uint32_t at) {
  Place* const places = first_.load(std::memory_order_relaxed);
  const uint32_t end = this->places();
  uint32_t next = at + 1;
  while (next < end && places[next].holders != 0 && HomeOf(HashAt(places[next])) < next) ++next;
  std::memmove(places + at, places + at + 1, (next - at - 1) * sizeof(Place));
  places[next - 1].holders = 0;
  --size_;
}

void BlockTable::ShrinkIfSparse() {
  // From 5/16 full to 5/8, as after growing: a table that does both by turns does neither often.
  if (capacity_ <= kCapacityMin || int64_t{size_} * 16 >= int64_t{capacity_} * 5) return;
  Rebuild(std::max(kCapacityMin, size_ * 8 / 5));
}

bool BlockTable::Rebuild(uint32_t capacity) {
  Place* const before = first_.load(std::memory_order_relaxed);
  const uint32_t before_end = places();
  const uint32_t end = capacity + kTail;
  auto after = std::make_unique<Place[]>(end);
  uint32_t next = 0;  // free, and so is all behind it
  for (uint32_t i = 0; i < before_end; ++i) {
    if (before[i].holders == 0) continue;
    const auto home = static_cast<uint32_t>((HashAt(before[i]) >> 32) * capacity >> 32);
    next = std::max(next, home);
    if (next == end) return false;
    after[next++] = before[i];
  }
  delete[] before;
  first_.store(after.release(), std::memory_order_relaxed);
  capacity_.store(capacity, std::memory_order_relaxed);
  return true;
}

}  // namespace glm::router
