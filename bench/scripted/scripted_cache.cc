#include "bench/scripted/scripted_cache.h"

#include <algorithm>
#include <span>
#include <utility>

namespace glm::bench {

namespace wire = ::glmserve::worker::v1;

std::vector<BlockKey> ScriptedCache::Names(std::string_view salt, absl::Span<const int32_t> ids) {
  std::vector<BlockKey> names;
  const auto size = static_cast<size_t>(block_size_);
  for (size_t begin = 0; begin + size <= ids.size(); begin += size) {
    const std::span<const int32_t> block(ids.data() + begin, size);
    names.push_back(begin == 0 ? hasher_.First(salt, block) : hasher_.Next(names.back(), block));
  }
  return names;
}

int64_t ScriptedCache::Use(absl::Span<const BlockKey> chain) {
  size_t held = 0;
  while (held < chain.size() && places_.contains(chain[held])) ++held;
  // The first block last, so that it stands in front of the others.
  for (size_t i = held; i-- > 0;) {
    order_.splice(order_.begin(), order_, places_.find(chain[i])->second);
  }
  return static_cast<int64_t>(held);
}

void ScriptedCache::Store(absl::Span<const BlockKey> chain) {
  chain = chain.first(std::min(chain.size(), static_cast<size_t>(blocks_max_)));
  const auto held = static_cast<size_t>(Use(chain));
  for (size_t i = held; i < chain.size(); ++i) {
    // Never one of this chain's beginning: that was used just now, and fits.
    if (blocks() == blocks_max_) {
      Tell(false, order_.back());
      places_.erase(order_.back());
      order_.pop_back();
    }
    Tell(true, chain[i]);
    // Behind the block in front of it.
    const auto after = i == 0 ? order_.begin() : std::next(places_.find(chain[i - 1])->second);
    places_[chain[i]] = order_.insert(after, chain[i]);
  }
}

void ScriptedCache::Reset() {
  order_.clear();
  places_.clear();
  changes_.Clear();
  sequence_ = 0;
  digest_ = Digest();
}

void ScriptedCache::Tell(bool stored, const BlockKey& block) {
  ++sequence_;
  if (changes_.stored_size() == 0) changes_.set_sequence(sequence_);
  changes_.add_stored(stored);
  changes_.add_blocks(block.high);
  changes_.add_blocks(block.low);
  if (stored) {
    digest_.Store(block);
  } else {
    digest_.Remove(block);
  }
}

bool ScriptedCache::TakeChanges(wire::CacheChanges* changes) {
  if (changes_.stored_size() == 0) return false;
  changes_.set_digest(digest_.value());
  *changes = std::exchange(changes_, {});
  return true;
}

void ScriptedCache::State(wire::CacheChanges* state) const {
  state->set_sequence(sequence_ + 1);
  state->set_digest(digest_.value());
}

std::vector<wire::WorkerFrame> ScriptedCache::Snapshot(int64_t blocks_a_frame) const {
  std::vector<wire::WorkerFrame> frames(1);
  frames[0].mutable_cache_snapshot()->set_first(true);
  for (const BlockKey& block : order_) {
    wire::CacheSnapshot* snapshot = frames.back().mutable_cache_snapshot();
    if (snapshot->blocks_size() >= 2 * blocks_a_frame) {
      snapshot = frames.emplace_back().mutable_cache_snapshot();
    }
    snapshot->add_blocks(block.high);
    snapshot->add_blocks(block.low);
  }
  for (wire::WorkerFrame& frame : frames) {
    frame.mutable_cache_snapshot()->set_sequence(sequence_);
    frame.mutable_cache_snapshot()->set_digest(digest_.value());
  }
  frames.back().mutable_cache_snapshot()->set_last(true);
  return frames;
}

}  // namespace glm::bench
