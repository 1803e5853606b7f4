#include "router/route/prefix_index.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "proto/base/log.h"

namespace glm::router {
namespace {

constexpr int64_t kBlocksPerLargeSet = 8;
constexpr int64_t kBlocksPerExpected = 16;
constexpr int64_t kExpectedMin = 4096;

// Blocks whose memory is fetched ahead of the one that is stored: first the shard, then the place.
constexpr size_t kShardAhead = 16;
constexpr size_t kPlaceAhead = 8;

int64_t ExpectedFor(int64_t blocks_max) {
  return std::max(kExpectedMin, blocks_max / kBlocksPerExpected);
}

/// Finds for every worker of `all` the largest place in [1, places] that it holds, given that it
/// holds the first, and all smaller ones too. holders(place) are those of one place, ahead(place)
/// is told before it is asked for, and found(workers, place) hears of all.
///
/// All parts are halved in one round, so that the memory of a part is fetched while the others are
/// looked at.
template <size_t kWords, typename Holders, typename Ahead, typename Found>
void Bisect(const WorkerBits<kWords>& all, int32_t places, Holders holders, Ahead ahead,
            Found found) {
  /// Workers whose depth lies in [low, high].
  struct Part {
    WorkerBits<kWords> workers;
    int32_t low;
    int32_t high;
    int32_t Middle() const { return low + (high - low + 1) / 2; }  // at least low + 1
  };
  using Parts = absl::InlinedVector<Part, 16>;
  const auto add = [&](Parts* parts, const WorkerBits<kWords>& workers, int32_t low, int32_t high) {
    if (workers.empty()) return;
    if (low == high) return found(workers, low);
    parts->push_back({workers, low, high});
    ahead(parts->back().Middle());
  };
  Parts some;
  Parts others;
  Parts* parts = &some;
  Parts* halves = &others;
  add(parts, all, 1, places);
  while (!parts->empty()) {
    halves->clear();
    for (const Part& part : *parts) {
      WorkerBits<kWords> deeper = holders(part.Middle());
      deeper.KeepOnly(part.workers);
      WorkerBits<kWords> rest = part.workers;
      rest.Subtract(deeper);
      add(halves, deeper, part.Middle(), part.high);
      add(halves, rest, part.low, part.Middle() - 1);
    }
    std::swap(parts, halves);
  }
}

}  // namespace

int64_t PrefixIndex::ShardsFor(int64_t blocks_max) {
  const auto shards = static_cast<uint64_t>((blocks_max + kShardBlocks - 1) / kShardBlocks);
  return std::min(kShardsMax, static_cast<int64_t>(std::bit_ceil(shards)));
}

PrefixIndex::PrefixIndex(int64_t blocks_max)
    : shard_count_(ShardsFor(blocks_max)),
      shard_blocks_max_((blocks_max + shard_count_ - 1) / shard_count_),
      shards_(std::make_unique<Shard[]>(static_cast<size_t>(shard_count_))),
      sets_(blocks_max / kBlocksPerLargeSet),
      expected_(ExpectedFor(blocks_max), &sets_) {
  CHECK_GE(blocks_max, 1);
}

int64_t PrefixIndex::BytesMax(int64_t blocks_max) {
  constexpr int64_t kSetsLeast = 64;  // one a stripe
  const int64_t shards = ShardsFor(blocks_max);
  const int64_t shard_blocks_max = (blocks_max + shards - 1) / shards;
  return int64_t{sizeof(PrefixIndex)} +
         shards * (int64_t{sizeof(Shard)} + BlockTable::BytesMax(shard_blocks_max)) +
         (blocks_max / kBlocksPerLargeSet + kSetsLeast) * HolderSets::kBytesPerLargeSet +
         ExpectedFor(blocks_max) * ExpectedBlocks::kBytesPerBlock;
}

int32_t PrefixIndex::AddWorker() {
  MutexLock lock(&slots_mutex_);
  for (int32_t slot = 0; slot < WorkerMask::kWorkersMax; ++slot) {
    if (slots_used_.Has(slot)) continue;
    slots_used_.Set(slot);
    slots_end_ = std::max(slots_end_.load(), slot + 1);
    return slot;
  }
  return -1;
}

void PrefixIndex::RemoveWorker(int32_t slot) {
  ClearWorker(slot);
  // An expectation may outlive its worker, but not reach the slot's next one.
  expected_.RemoveWorker(slot);
  MutexLock lock(&slots_mutex_);
  slots_used_.Clear(slot);
}

void PrefixIndex::ClearWorker(int32_t slot) {
  {
    MutexLock lock(&slots_mutex_);
    CHECK(slots_used_.Has(slot)) << "slot " << slot << " is no worker's";
  }
  for (int64_t i = 0; i < shard_count_ && held_[slot].load(std::memory_order_relaxed) > 0; ++i) {
    Shard& shard = shards_[i];
    int64_t cleared = 0;
    MutexLock lock(&shard.mutex);
    shard.table.Sweep([&](HolderSet* holders) {
      if (sets_.Remove(holders, slot)) ++cleared;
    });
    held_[slot].fetch_sub(cleared, std::memory_order_relaxed);
  }
  held_[slot].store(0, std::memory_order_relaxed);
}

void PrefixIndex::Prefetch(const BlockKey& block) const {
  const uint64_t hash = BlockTable::HashOf(block);
  ShardOf(hash).table.Prefetch(hash);
}

bool PrefixIndex::StoreOne(int32_t slot, const BlockKey& block) {
  const uint64_t hash = BlockTable::HashOf(block);
  Shard& shard = ShardOf(hash);
  MutexLock lock(&shard.mutex);
  HolderSet* const holders = shard.table.FindOrInsert(block, hash, shard_blocks_max_);
  const HolderSets::Added added =
      holders == nullptr ? HolderSets::Added::kNoRoom : sets_.Add(holders, slot);
  if (added == HolderSets::Added::kNoRoom) ++shard.refused;
  return added == HolderSets::Added::kYes;
}

bool PrefixIndex::RemoveOne(int32_t slot, const BlockKey& block) {
  const uint64_t hash = BlockTable::HashOf(block);
  Shard& shard = ShardOf(hash);
  MutexLock lock(&shard.mutex);
  HolderSet* const holders = shard.table.Find(block, hash);
  if (holders == nullptr || !sets_.Remove(holders, slot)) return false;
  if (*holders == 0) shard.table.Erase(holders);
  return true;
}

void PrefixIndex::FetchAhead(absl::Span<const BlockKey> blocks, size_t i) const {
  if (i + kShardAhead < blocks.size()) {
    __builtin_prefetch(&ShardOf(BlockTable::HashOf(blocks[i + kShardAhead])));
  }
  if (i + kPlaceAhead < blocks.size()) Prefetch(blocks[i + kPlaceAhead]);
}

void PrefixIndex::Store(int32_t slot, absl::Span<const BlockKey> blocks) {
  int64_t stored = 0;
  for (size_t i = 0; i < blocks.size(); ++i) {
    FetchAhead(blocks, i);
    stored += StoreOne(slot, blocks[i]) ? 1 : 0;
  }
  held_[slot].fetch_add(stored, std::memory_order_relaxed);
}

void PrefixIndex::Remove(int32_t slot, absl::Span<const BlockKey> blocks) {
  int64_t removed = 0;
  for (size_t i = 0; i < blocks.size(); ++i) {
    FetchAhead(blocks, i);
    removed += RemoveOne(slot, blocks[i]) ? 1 : 0;
  }
  held_[slot].fetch_sub(removed, std::memory_order_relaxed);
}

void PrefixIndex::Expect(int32_t slot, absl::Span<const BlockKey> chain, int64_t now_ms,
                         int64_t until_ms) {
  expected_.Expect(slot, chain, now_ms, until_ms);
}

template <size_t kWords>
WorkerBits<kWords> PrefixIndex::HoldersOf(const BlockKey& block) const {
  const uint64_t hash = BlockTable::HashOf(block);
  const Shard& shard = ShardOf(hash);
  MutexLock lock(&shard.mutex);
  const HolderSet* const holders = shard.table.Find(block, hash);
  return holders == nullptr ? WorkerBits<kWords>() : sets_.Mask<kWords>(*holders);
}

template <size_t kWords>
void PrefixIndex::FindDepths(absl::Span<const BlockKey> chain, int64_t now_ms,
                             int32_t* depths) const {
  const auto length = static_cast<int32_t>(chain.size());
  const auto deepen = [&](const WorkerBits<kWords>& workers, int32_t depth) {
    workers.ForEach([&](int32_t slot) { depths[slot] = std::max(depths[slot], depth); });
  };
  // Who does not hold the first block is out of it at once.
  Bisect(
      HoldersOf<kWords>(chain[0]), length,
      [&](int32_t place) { return HoldersOf<kWords>(chain[place - 1]); },
      [&](int32_t place) { Prefetch(chain[place - 1]); }, deepen);
  const auto noted = [&](int32_t note) { return ExpectedBlocks::LengthAt(note - 1, length); };
  Bisect(
      expected_.Holders<kWords>(chain[0], now_ms), ExpectedBlocks::Notes(length),
      [&](int32_t note) { return expected_.Holders<kWords>(chain[noted(note) - 1], now_ms); },
      [](int32_t) {},
      [&](const WorkerBits<kWords>& workers, int32_t note) { deepen(workers, noted(note)); });
}

std::vector<int32_t> PrefixIndex::Depths(absl::Span<const BlockKey> chain, int64_t now_ms) const {
  std::vector<int32_t> depths(WorkerMask::kWorkersMax, 0);
  if (chain.empty()) return depths;
  const int32_t slots_end = slots_end_.load(std::memory_order_relaxed);
  if (slots_end <= 64) {
    FindDepths<1>(chain, now_ms, depths.data());
  } else if (slots_end <= 256) {
    FindDepths<4>(chain, now_ms, depths.data());
  } else {
    FindDepths<16>(chain, now_ms, depths.data());
  }
  return depths;
}

int64_t PrefixIndex::blocks() const {
  int64_t blocks = 0;
  for (int64_t i = 0; i < shard_count_; ++i) {
    MutexLock lock(&shards_[i].mutex);
    blocks += shards_[i].table.size();
  }
  return blocks;
}

int64_t PrefixIndex::blocks_refused() const {
  int64_t refused = 0;
  for (int64_t i = 0; i < shard_count_; ++i) {
    MutexLock lock(&shards_[i].mutex);
    refused += shards_[i].refused;
  }
  return refused;
}

int64_t PrefixIndex::blocks_expected() const { return expected_.blocks(); }

int64_t PrefixIndex::bytes() const {
  int64_t bytes = int64_t{sizeof(PrefixIndex)} + shard_count_ * int64_t{sizeof(Shard)};
  for (int64_t i = 0; i < shard_count_; ++i) {
    MutexLock lock(&shards_[i].mutex);
    bytes += shards_[i].table.bytes();
  }
  return bytes + sets_.bytes();
}

}  // namespace glm::router
