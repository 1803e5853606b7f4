#include "router/fleet/cache_feed.h"

#include "proto/base/log.h"

namespace glm::router {

namespace wire = ::glmserve::worker::v1;

CacheFeed::CacheFeed(PrefixIndex* index) : index_(index), slot_(index->AddWorker()) {
  if (slot_ < 0) LOG(WARNING) << "no slot left in the prefix index: a worker's cache is not known";
}

CacheFeed::~CacheFeed() {
  if (slot_ >= 0) index_->RemoveWorker(slot_);
}

CacheFeed::Next CacheFeed::Void(const char* why) {
  LOG(WARNING) << "prefix cache of a worker: " << why << ", asking for a snapshot";
  ++breaks_;
  synced_ = false;
  index_->ClearWorker(slot_);
  digest_ = Digest();
  return Next::kAskSnapshot;
}

CacheFeed::Next CacheFeed::Take(const wire::CacheChanges& changes) {
  // Until the snapshot comes, changes say nothing: it has them in it.
  if (slot_ < 0 || !synced_) return Next::kGoOn;
  if (changes.blocks_size() != 2 * changes.stored_size()) return Void("a frame with half a change");
  if (changes.sequence() != next_sequence_) return Void("a gap in its changes");
  for (int i = 0; i < changes.stored_size();) {
    // What is stored, or removed, one after the other goes to the index at once.
    const bool stored = changes.stored(i);
    blocks_.clear();
    for (; i < changes.stored_size() && changes.stored(i) == stored; ++i) {
      const BlockKey block{changes.blocks(2 * i), changes.blocks(2 * i + 1)};
      blocks_.push_back(block);
      if (stored) {
        digest_.Store(block);
      } else {
        digest_.Remove(block);
      }
    }
    if (stored) {
      index_->Store(slot_, blocks_);
    } else {
      index_->Remove(slot_, blocks_);
    }
  }
  next_sequence_ += static_cast<uint64_t>(changes.stored_size());
  if (digest_.value() != changes.digest()) return Void("a wrong digest");
  return Next::kGoOn;
}

CacheFeed::Next CacheFeed::Take(const wire::CacheSnapshot& snapshot) {
  if (slot_ < 0) return Next::kGoOn;
  if (snapshot.first()) {
    synced_ = false;
    index_->ClearWorker(slot_);
    digest_ = Digest();
  }
  blocks_.clear();
  for (int i = 0; i + 1 < snapshot.blocks_size(); i += 2) {
    blocks_.push_back({snapshot.blocks(i), snapshot.blocks(i + 1)});
    digest_.Store(blocks_.back());
  }
  index_->Store(slot_, blocks_);
  if (!snapshot.last()) return Next::kGoOn;
  if (digest_.value() != snapshot.digest()) {
    const Next next = Void("a wrong digest of a snapshot");
    if (++snapshots_wrong_ < kSnapshotsWrongMax) return next;
    LOG(ERROR) << "prefix cache of a worker: " << snapshots_wrong_
               << " snapshots were wrong, its cache is not known from here on";
    return Next::kGoOn;
  }
  synced_ = true;
  snapshots_wrong_ = 0;
  next_sequence_ = snapshot.sequence() + 1;
  ++snapshots_;
  return Next::kGoOn;
}

}  // namespace glm::router
