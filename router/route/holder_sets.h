// Sets of workers under names of four bytes, so that a block of the prefix index costs the same
// however many workers hold it.
//
// Up to three slots stand in the name itself. Larger sets are kept once each, with a count of who
// names them: the blocks of a prefix are held by the same workers, so there are few. Their number
// is bounded; where there is no room for a set, nothing is added (Add says so), and a removal that
// would need it keeps three of its workers: so a set may miss holders, and never has too many.
//
// Who calls: the prefix index, under the lock of whatever holds the name. Thread-safe: a set that
// is named does not change, so reading one takes no lock; making and releasing take one of kStripes
// locks for some 100 ns.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "proto/base/mutex.h"
#include "router/route/worker_mask.h"

namespace glm::router {

/// The name of a set; 0: of nobody. Equal sets have equal names.
using HolderSet = uint32_t;

class HolderSets {
 public:
  /// At most `large_max` sets of more than three workers, rounded up to a whole number a stripe.
  explicit HolderSets(int64_t large_max);
  HolderSets(const HolderSets&) = delete;
  HolderSets& operator=(const HolderSets&) = delete;
  ~HolderSets();

  enum class Added : uint8_t { kYes, kWasThere, kNoRoom };

  /// The caller's name becomes that of the set with `slot`, or stays.
  Added Add(HolderSet* set, int32_t slot);
  /// The caller's name becomes that of the set without `slot`, or of three of those left. Whether
  /// it was there.
  bool Remove(HolderSet* set, int32_t slot);
  /// The caller's name is given up.
  void Release(HolderSet set);

  // REQUIRES that the caller holds the name.
  bool Has(HolderSet set, int32_t slot) const;
  /// Of the slots below 64 * kWords.
  template <size_t kWords = 16>
  WorkerBits<kWords> Mask(HolderSet set) const;

  int64_t large_sets() const;  // kept now
  int64_t bytes() const;       // taken from the heap
  /// What a kept set takes at most, its place in the table that finds it included.
  static constexpr int64_t kBytesPerLargeSet = 176;

 private:
  struct Large {
    WorkerMask mask;
    uint64_t hash = 0;
    uint32_t names = 0;  // 0: free
    uint32_t next_free = 0;
  };
  static constexpr uint32_t kChunk = 64;
  using Chunk = std::array<Large, kChunk>;
  static constexpr uint32_t kStripeBits = 6;
  static constexpr uint32_t kStripes = 1u << kStripeBits;

  struct alignas(64) Stripe {
    mutable Mutex mutex;
    /// A large set's place + 1 by its hash, open addressing; 0: none. A power of two.
    std::vector<uint32_t> index ABSL_GUARDED_BY(mutex);
    uint32_t kept ABSL_GUARDED_BY(mutex) = 0;
    uint32_t made ABSL_GUARDED_BY(mutex) = 0;        // places ever used
    uint32_t free_first ABSL_GUARDED_BY(mutex) = 0;  // a place + 1
    /// Never moves; a chunk is made under the lock, before a name of a set in it is given out.
    std::unique_ptr<std::atomic<Chunk*>[]> chunks;
  };

  static bool IsLarge(HolderSet set) { return set != 0 && (set >> 30) == 0; }
  static constexpr uint32_t kSlotBits = 10;
  static_assert(WorkerMask::kWorkersMax == 1 << kSlotBits);
  static HolderSet Small(const std::array<int32_t, 3>& slots, int32_t count);
  static int32_t SlotsOf(HolderSet set, std::array<int32_t, 3>* slots) {
    const auto count = static_cast<int32_t>(set >> 30);
    for (int32_t i = 0; i < count; ++i) {
      (*slots)[i] = static_cast<int32_t>(set >> (kSlotBits * i) & ((1u << kSlotBits) - 1));
    }
    return count;
  }
  HolderSet NameOf(uint32_t stripe, uint32_t place) const {
    return (place << kStripeBits | stripe) + 1;
  }
  Large& At(const Stripe& stripe, uint32_t place) const {
    return (*stripe.chunks[place / kChunk].load(std::memory_order_acquire))[place % kChunk];
  }
  const Large& Named(HolderSet set) const {
    return At(stripes_[(set - 1) % kStripes], (set - 1) >> kStripeBits);
  }

  /// The name of a set of more than three, made if there is room; 0: there is none.
  HolderSet Intern(const WorkerMask& mask, uint64_t hash);
  uint32_t TakePlace(Stripe* stripe) ABSL_EXCLUSIVE_LOCKS_REQUIRED(stripe->mutex);
  void GrowIndex(Stripe* stripe) ABSL_EXCLUSIVE_LOCKS_REQUIRED(stripe->mutex);
  void Unindex(Stripe* stripe, uint32_t place) ABSL_EXCLUSIVE_LOCKS_REQUIRED(stripe->mutex);

  const uint32_t stripe_max_;  // large sets of one stripe
  std::array<Stripe, kStripes> stripes_;
  std::atomic<int64_t> chunks_made_{0};
};

template <size_t kWords>
WorkerBits<kWords> HolderSets::Mask(HolderSet set) const {
  if (IsLarge(set)) return WorkerBits<kWords>(Named(set).mask);
  std::array<int32_t, 3> slots;
  const int32_t count = SlotsOf(set, &slots);
  WorkerBits<kWords> mask;
  for (int32_t i = 0; i < count; ++i) {
    if (slots[i] < WorkerBits<kWords>::kWorkersMax) mask.Set(slots[i]);
  }
  return mask;
}

}  // namespace glm::router
