#include "router/route/expected_blocks.h"

#include <algorithm>
#include <utility>

namespace glm::router {
namespace {

// Notes are 1 block apart up to the first length, then 4, then 16.
constexpr int32_t kEach = 16;
constexpr int32_t kFourth = 128;
constexpr int32_t kFourthNotes = kEach + (kFourth - kEach) / 4;

/// Notes of a chain of `length`, the one of its last block not counted if it is there for that
/// only.
int32_t Grid(int32_t length) {
  if (length <= kEach) return length;
  if (length <= kFourth) return kEach + (length - kEach) / 4;
  return kFourthNotes + (length - kFourth) / 16;
}

/// Blocks up to note `index`.
int32_t GridLength(int32_t index) {
  if (index < kEach) return index + 1;
  if (index < kFourthNotes) return kEach + 4 * (index + 1 - kEach);
  return kFourth + 16 * (index + 1 - kFourthNotes);
}

}  // namespace

ExpectedBlocks::ExpectedBlocks(int64_t blocks_max, HolderSets* sets)
    : shard_blocks_max_(static_cast<size_t>(
          std::max<int64_t>(1, (blocks_max + int64_t{kShards} - 1) / int64_t{kShards}))),
      sets_(sets) {}

int32_t ExpectedBlocks::Notes(int32_t length) {
  const int32_t grid = Grid(length);
  return grid == 0 || GridLength(grid - 1) == length ? grid : grid + 1;
}

int32_t ExpectedBlocks::LengthAt(int32_t index, int32_t length) {
  return std::min(GridLength(index), length);
}

void ExpectedBlocks::DropOldest(Shard* shard) {
  const auto found = shard->notes.find(shard->order.front().second);
  sets_->Release(found->second.holders);
  shard->notes.erase(found);
  shard->order.pop_front();
}

void ExpectedBlocks::Expire(Shard* shard, int64_t now_ms) {
  // More than one a note that is made, so that no backlog stays; few, so that no caller pays for
  // all.
  for (int32_t i = 0; i < kExpiredAtOnce && !shard->order.empty(); ++i) {
    const auto [end_ms, block] = shard->order.front();
    if (end_ms > now_ms) return;
    const int64_t until_ms = shard->notes.find(block)->second.until_ms;
    if (until_ms > now_ms) {  // expected anew since
      shard->order.pop_front();
      shard->order.emplace_back(until_ms, block);
    } else {
      DropOldest(shard);
    }
  }
}

void ExpectedBlocks::Expect(int32_t slot, absl::Span<const BlockKey> chain, int64_t now_ms,
                            int64_t until_ms) {
  const auto length = static_cast<int32_t>(chain.size());
  const int32_t notes = Notes(length);
  for (int32_t i = 0; i < notes; ++i) {
    const BlockKey& block = chain[LengthAt(i, length) - 1];
    Shard& shard = ShardOf(block);
    MutexLock lock(&shard.mutex);
    Expire(&shard, now_ms);
    const auto [found, is_new] = shard.notes.try_emplace(block);
    Note* note = &found->second;
    if (is_new) {
      shard.order.emplace_back(until_ms, block);
    } else if (note->until_ms <= now_ms) {  // of another time
      sets_->Release(std::exchange(note->holders, 0));
    }
    // Without room for the set the worker is not expected: the request may go elsewhere.
    sets_->Add(&note->holders, slot);
    note->until_ms = std::max(note->until_ms, until_ms);
    if (shard.notes.size() > shard_blocks_max_) DropOldest(&shard);
  }
}

void ExpectedBlocks::RemoveWorker(int32_t slot) {
  for (Shard& shard : shards_) {
    MutexLock lock(&shard.mutex);
    for (auto& [block, note] : shard.notes) sets_->Remove(&note.holders, slot);
  }
}

int64_t ExpectedBlocks::blocks() const {
  int64_t blocks = 0;
  for (const Shard& shard : shards_) {
    MutexLock lock(&shard.mutex);
    blocks += static_cast<int64_t>(shard.notes.size());
  }
  return blocks;
}

}  // namespace glm::router
