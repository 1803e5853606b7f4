#include "engine/schedule/prefix_cache.h"

#include <algorithm>

#include "proto/base/log.h"

namespace glm::engine {

PrefixCache::PrefixCache(BlockPool* pool, int32_t block_size, const HashKey& key)
    : pool_(pool),
      block_size_(block_size),
      hasher_(key),
      entries_(pool->blocks_total()),
      ids_(pool->blocks_total() * block_size) {
  blocks_.reserve(pool->blocks_total());
}

void PrefixCache::Name(std::string_view salt, std::span<const int32_t> tokens,
                       std::vector<BlockKey>* keys) {
  const size_t full = tokens.size() / block_size_;
  while (keys->size() < full) {
    const auto ids = tokens.subspan(keys->size() * block_size_, block_size_);
    keys->push_back(keys->empty() ? hasher_.First(salt, ids) : hasher_.Next(keys->back(), ids));
  }
}

std::vector<int32_t> PrefixCache::Match(std::string_view salt, std::span<const int32_t> tokens,
                                        std::span<const BlockKey> keys) const {
  std::vector<int32_t> blocks;
  for (size_t i = 0; i < keys.size(); ++i) {
    const auto found = blocks_.find(keys[i]);
    if (found == blocks_.end()) break;
    const int32_t parent = blocks.empty() ? -1 : blocks.back();
    const auto ids = tokens.subspan(i * block_size_, block_size_);
    if (!Holds(found->second, parent, salt, ids)) break;
    blocks.push_back(found->second);
  }
  return blocks;
}

int32_t PrefixCache::Publish(const BlockKey& key, std::string_view salt,
                             std::span<const int32_t> ids, int32_t block, int32_t parent) {
  CHECK_EQ(static_cast<int32_t>(ids.size()), block_size_);
  CHECK_GE(pool_->references(block), 1);
  CHECK(!entries_[block].cached) << "KV block " << block;
  CHECK(parent < 0 || (entries_[parent].cached && pool_->references(parent) >= 1))
      << "KV block " << block << " after " << parent;
  const auto [found, is_new] = blocks_.emplace(key, block);
  if (!is_new) return Holds(found->second, parent, salt, ids) ? found->second : -1;
  Entry& entry = entries_[block];
  entry.cached = true;
  entry.key = key;
  entry.parent = parent;
  entry.children = 0;
  if (parent >= 0) ++entries_[parent].children;
  if (parent < 0) entry.salt = salt;
  std::copy(ids.begin(), ids.end(), ids_.begin() + int64_t{block} * block_size_);
  pool_->Keep(block);
  digest_.Store(key);
  changes_.push_back({.stored = true, .block = key, .parent = ParentKey(block)});
  return block;
}

int32_t PrefixCache::Allocate() {
  if (pool_->blocks_free() == 0) {
    const int32_t block = pool_->OldestIdle();
    CHECK_GE(block, 0) << "all " << pool_->blocks_total() << " KV blocks are held";
    Entry& entry = entries_[block];
    CHECK(entry.cached && entry.children == 0) << "KV block " << block << " has children";
    if (entry.parent >= 0) --entries_[entry.parent].children;
    CHECK_EQ(blocks_.erase(entry.key), 1u);
    digest_.Remove(entry.key);
    changes_.push_back({.stored = false, .block = entry.key, .parent = {}});
    ++evictions_;
    entry = Entry{};
    pool_->Forget(block);
  }
  return pool_->Allocate();
}

void PrefixCache::TakeChanges(StepEvents* events) {
  events->cache_sequence = sequence_ + 1;
  sequence_ += changes_.size();
  events->cache_changes = std::move(changes_);
  changes_.clear();
  events->cache_digest = digest_.value();
}

std::shared_ptr<const CacheSnapshot> PrefixCache::Snapshot() const {
  CHECK(changes_.empty());
  auto snapshot = std::make_shared<CacheSnapshot>();
  snapshot->sequence = sequence_;
  snapshot->digest = digest_.value();
  std::vector<bool> done(entries_.size(), false);
  std::vector<int32_t> chain;
  for (int32_t block = 0; block < static_cast<int32_t>(entries_.size()); ++block) {
    if (!entries_[block].cached) continue;
    for (int32_t b = block; b >= 0 && !done[b]; b = entries_[b].parent) chain.push_back(b);
    for (; !chain.empty(); chain.pop_back()) {
      const int32_t next = chain.back();
      done[next] = true;
      snapshot->blocks.push_back(
          {.stored = true, .block = entries_[next].key, .parent = ParentKey(next)});
    }
  }
  return snapshot;
}

bool PrefixCache::Holds(int32_t block, int32_t parent, std::string_view salt,
                        std::span<const int32_t> ids) const {
  const Entry& entry = entries_[block];
  const std::span<const int32_t> held = IdsOf(block);
  return entry.cached && entry.parent == parent && (parent >= 0 || entry.salt == salt) &&
         std::equal(ids.begin(), ids.end(), held.begin());
}

std::span<const int32_t> PrefixCache::IdsOf(int32_t block) const {
  return {ids_.data() + int64_t{block} * block_size_, static_cast<size_t>(block_size_)};
}

BlockKey PrefixCache::ParentKey(int32_t block) const {
  const int32_t parent = entries_[block].parent;
  return parent >= 0 ? entries_[parent].key : BlockKey{};
}

void PrefixCache::CheckConsistent() const {
  std::vector<int32_t> children(entries_.size(), 0);
  Digest digest;
  int64_t cached = 0;
  for (int32_t block = 0; block < static_cast<int32_t>(entries_.size()); ++block) {
    const Entry& entry = entries_[block];
    CHECK_EQ(entry.cached, pool_->kept(block)) << "KV block " << block;
    if (!entry.cached) continue;
    ++cached;
    CHECK_EQ(blocks_.at(entry.key), block);
    digest.Store(entry.key);
    if (entry.parent < 0) continue;
    ++children[entry.parent];
    CHECK(entries_[entry.parent].cached) << "KV block " << block << " has lost its parent";
    // Whoever holds a block holds all before it.
    CHECK_GE(pool_->references(entry.parent), pool_->references(block));
  }
  CHECK_EQ(cached, blocks_cached());
  CHECK_EQ(digest.value(), digest_.value());
  for (size_t block = 0; block < entries_.size(); ++block) {
    CHECK_EQ(children[block], entries_[block].children) << "KV block " << block;
  }
}

}  // namespace glm::engine
