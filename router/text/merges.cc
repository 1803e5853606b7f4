#include "router/text/merges.h"

#include <algorithm>
#include <array>
#include <limits>
#include <queue>

#include "proto/base/log.h"

namespace glm::router {
namespace {

// Up to here a scan over all pairs after each merge beats the heap.
constexpr size_t kShortBytesMax = 48;
constexpr int32_t kNoRank = std::numeric_limits<int32_t>::max();

uint64_t PairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

void Merges::SetBytes(const std::array<int32_t, 256>& byte_ids) { byte_ids_ = byte_ids; }

void Merges::Add(int32_t left, int32_t right, int32_t rank, int32_t merged) {
  merges_.insert_or_assign(PairKey(left, right), Merge{rank, merged});
}

const Merges::Merge* Merges::Find(int32_t left, int32_t right) const {
  const auto found = merges_.find(PairKey(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

void Merges::Encode(std::string_view piece, std::vector<int32_t>* ids) const {
  if (piece.size() <= kShortBytesMax) {
    EncodeShort(piece, ids);
  } else {
    EncodeLong(piece, ids);
  }
}

void Merges::EncodeShort(std::string_view piece, std::vector<int32_t>* ids) const {
  std::array<int32_t, kShortBytesMax> tokens;
  std::array<Merge, kShortBytesMax> merges;  // of token i with token i + 1
  size_t count = piece.size();
  for (size_t i = 0; i < count; ++i) tokens[i] = byte_ids_[static_cast<uint8_t>(piece[i])];
  const auto look_up = [&](size_t i) {
    const Merge* merge = i + 1 < count ? Find(tokens[i], tokens[i + 1]) : nullptr;
    merges[i] = merge != nullptr ? *merge : Merge{kNoRank, 0};
  };
  for (size_t i = 0; i < count; ++i) look_up(i);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      if (merges[i].rank < merges[best].rank) best = i;
    }
    if (merges[best].rank == kNoRank) break;
    tokens[best] = merges[best].merged;
    std::copy(tokens.begin() + best + 2, tokens.begin() + count, tokens.begin() + best + 1);
    std::copy(merges.begin() + best + 2, merges.begin() + count, merges.begin() + best + 1);
    --count;
    look_up(best);
    if (best > 0) look_up(best - 1);
  }
  ids->insert(ids->end(), tokens.begin(), tokens.begin() + count);
}

void Merges::EncodeLong(std::string_view piece, std::vector<int32_t>* ids) const {
  // Tokens in a list over their first bytes; a token that was merged into its left neighbour is
  // dead (id -1).
  struct Link {
    int32_t id;
    uint32_t previous;
    uint32_t next;
  };
  struct Candidate {
    int32_t rank;
    uint32_t place;
    int32_t merged;
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : place > other.place;
    }
  };
  constexpr uint32_t kEnd = std::numeric_limits<uint32_t>::max();
  CHECK_LT(piece.size(), kEnd);
  const uint32_t size = static_cast<uint32_t>(piece.size());
  std::vector<Link> links(size);
  for (uint32_t i = 0; i < size; ++i) {
    links[i] = {byte_ids_[static_cast<uint8_t>(piece[i])], i == 0 ? kEnd : i - 1,
                i + 1 == size ? kEnd : i + 1};
  }
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<Candidate>> candidates;
  const auto consider = [&](uint32_t place) {
    if (place == kEnd || links[place].next == kEnd) return;
    const Merge* merge = Find(links[place].id, links[links[place].next].id);
    if (merge != nullptr) candidates.push({merge->rank, place, merge->merged});
  };
  for (uint32_t i = 0; i < size; ++i) consider(i);
  while (!candidates.empty()) {
    const Candidate best = candidates.top();
    candidates.pop();
    Link& left = links[best.place];
    if (left.id < 0 || left.next == kEnd) continue;
    // Either side may have grown since; then its pair makes another token or none.
    const Merge* merge = Find(left.id, links[left.next].id);
    if (merge == nullptr || merge->merged != best.merged) continue;
    Link& right = links[left.next];
    left.id = best.merged;
    left.next = right.next;
    right.id = -1;
    if (left.next != kEnd) links[left.next].previous = best.place;
    consider(left.previous);
    consider(best.place);
  }
  for (uint32_t i = 0; i != kEnd; i = links[i].next) ids->push_back(links[i].id);
}

}  // namespace glm::router
