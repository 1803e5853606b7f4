#include "router/route/prefix_index.h"

#include <algorithm>
#include <utility>

#include "proto/base/log.h"

namespace glm::router {

WorkerMask WorkerMask::operator&(const WorkerMask& other) const {
  WorkerMask both = *this;
  for (size_t i = 0; i < words_.size(); ++i) both.words_[i] &= other.words_[i];
  return both;
}

WorkerMask WorkerMask::operator|(const WorkerMask& other) const {
  WorkerMask either = *this;
  for (size_t i = 0; i < words_.size(); ++i) either.words_[i] |= other.words_[i];
  return either;
}

WorkerMask WorkerMask::Without(const WorkerMask& other) const {
  WorkerMask rest = *this;
  for (size_t i = 0; i < words_.size(); ++i) rest.words_[i] &= ~other.words_[i];
  return rest;
}

PrefixIndex::PrefixIndex(int64_t blocks_max)
    : shard_blocks_max_((blocks_max + static_cast<int64_t>(kShards) - 1) /
                        static_cast<int64_t>(kShards)) {
  CHECK_GE(blocks_max, 1);
}

int32_t PrefixIndex::AddWorker() {
  const std::lock_guard<std::mutex> lock(slots_mutex_);
  for (int32_t slot = 0; slot < WorkerMask::kWorkersMax; ++slot) {
    if (slots_used_.Has(slot)) continue;
    slots_used_.Set(slot);
    return slot;
  }
  return -1;
}

void PrefixIndex::RemoveWorker(int32_t slot) {
  ClearWorker(slot);
  // An expectation may outlive its worker, but not reach the slot's next one: it is swept here.
  for (Shard& shard : shards_) {
    const std::lock_guard<std::mutex> lock(shard.mutex);
    for (const auto& [until_ms, key] : shard.expiries) {
      const auto found = shard.blocks.find(key);
      if (found != shard.blocks.end()) found->second.expected.Clear(slot);
    }
  }
  const std::lock_guard<std::mutex> lock(slots_mutex_);
  slots_used_.Clear(slot);
}

void PrefixIndex::ClearWorker(int32_t slot) {
  absl::flat_hash_set<BlockKey, BlockKeyHash> held;
  {
    const std::lock_guard<std::mutex> lock(slots_mutex_);
    CHECK(slots_used_.Has(slot)) << "slot " << slot << " is no worker's";
    held.swap(held_[slot]);
  }
  for (const BlockKey& block : held) {
    Shard& shard = ShardOf(block);
    const std::lock_guard<std::mutex> lock(shard.mutex);
    const auto found = shard.blocks.find(block);
    if (found == shard.blocks.end()) continue;
    found->second.stored.Clear(slot);
    if (found->second.stored.empty() && found->second.expected.empty()) shard.blocks.erase(found);
  }
}

PrefixIndex::Holders* PrefixIndex::Entry(Shard* shard, const BlockKey& block) {
  const auto found = shard->blocks.find(block);
  if (found != shard->blocks.end()) return &found->second;
  if (static_cast<int64_t>(shard->blocks.size()) >= shard_blocks_max_) {
    ++shard->refused;
    return nullptr;
  }
  return &shard->blocks[block];
}

void PrefixIndex::Store(int32_t slot, const BlockKey& block) {
  Shard& shard = ShardOf(block);
  {
    const std::lock_guard<std::mutex> lock(shard.mutex);
    Holders* const holders = Entry(&shard, block);
    if (holders == nullptr) return;
    holders->stored.Set(slot);
  }
  const std::lock_guard<std::mutex> lock(slots_mutex_);
  held_[slot].insert(block);
}

void PrefixIndex::Remove(int32_t slot, const BlockKey& block) {
  Shard& shard = ShardOf(block);
  {
    const std::lock_guard<std::mutex> lock(shard.mutex);
    const auto found = shard.blocks.find(block);
    if (found != shard.blocks.end()) {
      found->second.stored.Clear(slot);
      if (found->second.stored.empty() && found->second.expected.empty()) {
        shard.blocks.erase(found);
      }
    }
  }
  const std::lock_guard<std::mutex> lock(slots_mutex_);
  held_[slot].erase(block);
}

void PrefixIndex::Expire(Shard* shard, int64_t now_ms) {
  while (!shard->expiries.empty() && shard->expiries.front().first <= now_ms) {
    const auto found = shard->blocks.find(shard->expiries.front().second);
    shard->expiries.pop_front();
    // A block that was expected anew since has a later entry.
    if (found == shard->blocks.end() || found->second.expected_until_ms > now_ms) continue;
    found->second.expected = WorkerMask();
    if (found->second.stored.empty()) shard->blocks.erase(found);
  }
}

void PrefixIndex::Expect(int32_t slot, absl::Span<const BlockKey> chain, int64_t now_ms,
                         int64_t until_ms) {
  for (const BlockKey& block : chain) {
    Shard& shard = ShardOf(block);
    const std::lock_guard<std::mutex> lock(shard.mutex);
    Expire(&shard, now_ms);
    Holders* const holders = Entry(&shard, block);
    if (holders == nullptr) continue;
    holders->expected.Set(slot);
    holders->expected_until_ms = std::max(holders->expected_until_ms, until_ms);
    shard.expiries.emplace_back(until_ms, block);
  }
}

WorkerMask PrefixIndex::HoldersOf(const BlockKey& block, int64_t now_ms) const {
  const Shard& shard = ShardOf(block);
  const std::lock_guard<std::mutex> lock(shard.mutex);
  const auto found = shard.blocks.find(block);
  if (found == shard.blocks.end()) return {};
  const Holders& holders = found->second;
  return holders.expected_until_ms > now_ms ? holders.stored | holders.expected : holders.stored;
}

std::vector<int32_t> PrefixIndex::Depths(absl::Span<const BlockKey> chain, int64_t now_ms) const {
  std::vector<int32_t> depths(WorkerMask::kWorkersMax, 0);
  /// Workers whose depth lies in [low, high].
  struct Part {
    WorkerMask workers;
    int32_t low;
    int32_t high;
  };
  WorkerMask all;
  {
    const std::lock_guard<std::mutex> lock(slots_mutex_);
    all = slots_used_;
  }
  std::vector<Part> parts = {{all, 0, static_cast<int32_t>(chain.size())}};
  while (!parts.empty()) {
    const Part part = parts.back();
    parts.pop_back();
    if (part.workers.empty()) continue;
    if (part.low == part.high) {
      for (int32_t slot = 0; slot < WorkerMask::kWorkersMax; ++slot) {
        if (part.workers.Has(slot)) depths[slot] = part.low;
      }
      continue;
    }
    const int32_t middle = (part.low + part.high + 1) / 2;  // at least low + 1
    const WorkerMask deeper = HoldersOf(chain[middle - 1], now_ms) & part.workers;
    parts.push_back({deeper, middle, part.high});
    parts.push_back({part.workers.Without(deeper), part.low, middle - 1});
  }
  return depths;
}

int64_t PrefixIndex::blocks() const {
  int64_t blocks = 0;
  for (const Shard& shard : shards_) {
    const std::lock_guard<std::mutex> lock(shard.mutex);
    blocks += static_cast<int64_t>(shard.blocks.size());
  }
  return blocks;
}

int64_t PrefixIndex::blocks_refused() const {
  int64_t refused = 0;
  for (const Shard& shard : shards_) {
    const std::lock_guard<std::mutex> lock(shard.mutex);
    refused += shard.refused;
  }
  return refused;
}

}  // namespace glm::router
