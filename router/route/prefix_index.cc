#include "router/route/prefix_index.h"

#include <algorithm>
#include <bit>
#include <utility>

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

/// Finds for every worker the largest place that it holds, given that it holds all smaller ones
/// too: holders(place) are those of one place, ahead(place) is told before it is asked for, and
/// found(workers, place) of groups that hold at least place 1.
template <typename Holders, typename Ahead, typename Found>
class Bisection {
 public:
  Bisection(Holders holders, Ahead ahead, Found found)
      : holders_(std::move(holders)), ahead_(std::move(ahead)), found_(std::move(found)) {}

  /// For the depths of `workers`, which lie in [low, high].
  void Run(const WorkerMask& workers, int32_t low, int32_t high) {
    if (workers.empty()) return;
    if (low == high) {
      if (low > 0) found_(workers, low);
      return;
    }
    const int32_t middle = Middle(low, high);
    WorkerMask deeper = holders_(middle);
    deeper.KeepOnly(workers);
    WorkerMask rest = workers;
    rest.Subtract(deeper);
    if (low < middle - 1) ahead_(Middle(low, middle - 1));
    if (middle < high) ahead_(Middle(middle, high));
    Run(deeper, middle, high);
    Run(rest, low, middle - 1);
  }

 private:
  static int32_t Middle(int32_t low, int32_t high) { return low + (high - low + 1) / 2; }

  Holders holders_;
  Ahead ahead_;
  Found found_;
};

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
      if (!sets_.Has(*holders, slot)) return;
      sets_.Remove(holders, slot);
      ++cleared;
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
  HolderSet* holders = shard.table.Find(block, hash);
  if (holders == nullptr) holders = shard.table.Insert(block, hash, shard_blocks_max_);
  if (holders != nullptr && sets_.Has(*holders, slot)) return false;
  if (holders != nullptr && sets_.Add(holders, slot)) return true;
  ++shard.refused;
  return false;
}

bool PrefixIndex::RemoveOne(int32_t slot, const BlockKey& block) {
  const uint64_t hash = BlockTable::HashOf(block);
  Shard& shard = ShardOf(hash);
  MutexLock lock(&shard.mutex);
  HolderSet* const holders = shard.table.Find(block, hash);
  if (holders == nullptr || !sets_.Has(*holders, slot)) return false;
  sets_.Remove(holders, slot);
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

WorkerMask PrefixIndex::HoldersOf(const BlockKey& block) const {
  const uint64_t hash = BlockTable::HashOf(block);
  const Shard& shard = ShardOf(hash);
  MutexLock lock(&shard.mutex);
  const HolderSet* const holders = shard.table.Find(block, hash);
  return holders == nullptr ? WorkerMask() : sets_.Mask(*holders);
}

std::vector<int32_t> PrefixIndex::Depths(absl::Span<const BlockKey> chain, int64_t now_ms) const {
  std::vector<int32_t> depths(WorkerMask::kWorkersMax, 0);
  if (chain.empty()) return depths;
  const auto length = static_cast<int32_t>(chain.size());
  const auto deepen = [&](const WorkerMask& workers, int32_t depth) {
    workers.ForEach([&](int32_t slot) { depths[slot] = std::max(depths[slot], depth); });
  };
  // Who does not hold the first block is out of it at once.
  Bisection([&](int32_t place) { return HoldersOf(chain[place - 1]); },
            [&](int32_t place) { Prefetch(chain[place - 1]); }, deepen)
      .Run(HoldersOf(chain[0]), 1, length);
  const auto noted = [&](int32_t note) { return ExpectedBlocks::LengthAt(note - 1, length); };
  Bisection([&](int32_t note) { return expected_.Holders(chain[noted(note) - 1], now_ms); },
            [](int32_t) {},
            [&](const WorkerMask& workers, int32_t note) { deepen(workers, noted(note)); })
      .Run(expected_.Holders(chain[0], now_ms), 1, ExpectedBlocks::Notes(length));
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
