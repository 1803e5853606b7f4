#include "router/route/holder_sets.h"

#include <algorithm>

#include "proto/base/log.h"

namespace glm::router {
namespace {

/// The finaliser of SplitMix64.
uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

/// A set's hash is the exclusive or of its slots': a slot more or less costs one step.
uint64_t HashOf(int32_t slot) { return Mix(static_cast<uint64_t>(slot)); }

}  // namespace

HolderSets::HolderSets(int64_t large_max)
    // A name has 30 bits, kStripeBits of them a stripe's.
    : stripe_max_(static_cast<uint32_t>(
          std::clamp<int64_t>((large_max + kStripes - 1) / kStripes, 1, (1 << 24) - 1))) {
  for (Stripe& stripe : stripes_) {
    stripe.chunks = std::make_unique<std::atomic<Chunk*>[]>((stripe_max_ + kChunk - 1) / kChunk);
  }
}

HolderSets::~HolderSets() {
  for (Stripe& stripe : stripes_) {
    for (uint32_t i = 0; i < (stripe_max_ + kChunk - 1) / kChunk; ++i) delete stripe.chunks[i];
  }
}

HolderSet HolderSets::Small(const std::array<int32_t, 3>& slots, int32_t count) {
  HolderSet set = static_cast<uint32_t>(count) << 30;
  for (int32_t i = 0; i < count; ++i) set |= static_cast<uint32_t>(slots[i]) << (kSlotBits * i);
  return count == 0 ? 0 : set;
}

bool HolderSets::Has(HolderSet set, int32_t slot) const {
  if (IsLarge(set)) return Named(set).mask.Has(slot);
  std::array<int32_t, 3> slots;
  const int32_t count = SlotsOf(set, &slots);
  return std::find(slots.begin(), slots.begin() + count, slot) != slots.begin() + count;
}

HolderSets::Added HolderSets::Add(HolderSet* set, int32_t slot) {
  if (Has(*set, slot)) return Added::kWasThere;
  std::array<int32_t, 3> slots;
  const int32_t count = IsLarge(*set) ? 4 : SlotsOf(*set, &slots);
  if (count < 3) {
    slots[count] = slot;
    std::sort(slots.begin(), slots.begin() + count + 1);
    *set = Small(slots, count + 1);
    return Added::kYes;
  }
  WorkerMask mask = Mask(*set);
  uint64_t hash = HashOf(slot);
  if (count == 3) {
    for (const int32_t other : slots) hash ^= HashOf(other);
  } else {
    hash ^= Named(*set).hash;
  }
  mask.Set(slot);
  const HolderSet larger = Intern(mask, hash);
  if (larger == 0) return Added::kNoRoom;
  Release(*set);
  *set = larger;
  return Added::kYes;
}

bool HolderSets::Remove(HolderSet* set, int32_t slot) {
  if (!Has(*set, slot)) return false;
  std::array<int32_t, 3> slots;
  if (!IsLarge(*set)) {
    const int32_t count = SlotsOf(*set, &slots);
    (void)std::remove(slots.begin(), slots.begin() + count, slot);
    *set = Small(slots, count - 1);
    return true;
  }
  WorkerMask mask = Mask(*set);
  mask.Clear(slot);
  HolderSet rest = 0;
  if (mask.count() > 3) rest = Intern(mask, Named(*set).hash ^ HashOf(slot));
  if (rest == 0) {  // three are left, or more than there is room for
    int32_t count = 0;
    mask.ForEach([&](int32_t left) {
      if (count < 3) slots[count++] = left;
    });
    rest = Small(slots, count);
  }
  Release(*set);
  *set = rest;
  return true;
}

void HolderSets::Release(HolderSet set) {
  if (!IsLarge(set)) return;
  Stripe& stripe = stripes_[(set - 1) % kStripes];
  const uint32_t place = (set - 1) >> kStripeBits;
  MutexLock lock(&stripe.mutex);
  Large& large = At(stripe, place);
  CHECK_GT(large.names, 0u);
  if (--large.names > 0) return;
  Unindex(&stripe, place);
  --stripe.kept;
  large.next_free = stripe.free_first;
  stripe.free_first = place + 1;
}

HolderSet HolderSets::Intern(const WorkerMask& mask, uint64_t hash) {
  const auto number = static_cast<uint32_t>(hash % kStripes);
  Stripe& stripe = stripes_[number];
  MutexLock lock(&stripe.mutex);
  if (2 * (stripe.kept + 1) > stripe.index.size()) GrowIndex(&stripe);
  const size_t last = stripe.index.size() - 1;
  size_t at = (hash >> kStripeBits) & last;
  for (; stripe.index[at] != 0; at = (at + 1) & last) {
    const uint32_t place = stripe.index[at] - 1;
    Large& large = At(stripe, place);
    if (large.hash != hash || large.mask != mask) continue;
    ++large.names;
    return NameOf(number, place);
  }
  if (stripe.kept >= stripe_max_) return 0;
  const uint32_t place = TakePlace(&stripe);
  Large& large = At(stripe, place);
  large.mask = mask;
  large.hash = hash;
  large.names = 1;
  stripe.index[at] = place + 1;
  ++stripe.kept;
  return NameOf(number, place);
}

uint32_t HolderSets::TakePlace(Stripe* stripe) {
  if (stripe->free_first != 0) {
    const uint32_t place = stripe->free_first - 1;
    stripe->free_first = At(*stripe, place).next_free;
    return place;
  }
  const uint32_t place = stripe->made++;
  if (place % kChunk == 0) {
    stripe->chunks[place / kChunk].store(new Chunk(), std::memory_order_release);
    chunks_made_.fetch_add(1, std::memory_order_relaxed);
  }
  return place;
}

void HolderSets::GrowIndex(Stripe* stripe) {
  const std::vector<uint32_t> before = std::move(stripe->index);
  stripe->index.assign(std::max<size_t>(16, 2 * before.size()), 0);
  const size_t last = stripe->index.size() - 1;
  for (const uint32_t entry : before) {
    if (entry == 0) continue;
    size_t at = (At(*stripe, entry - 1).hash >> kStripeBits) & last;
    while (stripe->index[at] != 0) at = (at + 1) & last;
    stripe->index[at] = entry;
  }
}

void HolderSets::Unindex(Stripe* stripe, uint32_t place) {
  const size_t last = stripe->index.size() - 1;
  size_t gap = (At(*stripe, place).hash >> kStripeBits) & last;
  while (stripe->index[gap] != place + 1) gap = (gap + 1) & last;
  // What follows moves up where it may, so that no search stops too soon.
  for (size_t at = (gap + 1) & last; stripe->index[at] != 0; at = (at + 1) & last) {
    const size_t home = (At(*stripe, stripe->index[at] - 1).hash >> kStripeBits) & last;
    if (((at - home) & last) < ((at - gap) & last)) continue;
    stripe->index[gap] = stripe->index[at];
    gap = at;
  }
  stripe->index[gap] = 0;
}

int64_t HolderSets::large_sets() const {
  int64_t kept = 0;
  for (const Stripe& stripe : stripes_) {
    MutexLock lock(&stripe.mutex);
    kept += stripe.kept;
  }
  return kept;
}

int64_t HolderSets::bytes() const {
  const int64_t chunks_max = (stripe_max_ + kChunk - 1) / kChunk;
  int64_t bytes = chunks_made_.load(std::memory_order_relaxed) * int64_t{sizeof(Chunk)} +
                  chunks_max * kStripes * int64_t{sizeof(std::atomic<Chunk*>)};
  for (const Stripe& stripe : stripes_) {
    MutexLock lock(&stripe.mutex);
    bytes += static_cast<int64_t>(stripe.index.capacity() * sizeof(uint32_t));
  }
  return bytes;
}

}  // namespace glm::router
