#include "router/fleet/cache_feed.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

namespace glm::router {
namespace {

namespace wire = ::glmserve::worker::v1;
using Next = CacheFeed::Next;

BlockKey Key(uint64_t number) { return {number, 1000 + number}; }

class CacheFeedTest : public ::testing::Test {
 protected:
  /// A worker's side: stores (above 0) or removes (below 0) blocks, and says so.
  wire::CacheChanges Change(const std::vector<int64_t>& numbers) {
    wire::CacheChanges changes;
    changes.set_sequence(sequence_ + 1);
    for (const int64_t number : numbers) {
      const BlockKey key = Key(static_cast<uint64_t>(std::abs(number)));
      changes.add_stored(number > 0);
      changes.add_blocks(key.high);
      changes.add_blocks(key.low);
      if (number > 0) {
        digest_.Store(key);
      } else {
        digest_.Remove(key);
      }
    }
    sequence_ += numbers.size();
    changes.set_digest(digest_.value());
    return changes;
  }
  wire::CacheSnapshot Snapshot(const std::vector<uint64_t>& numbers, bool first = true,
                               bool last = true) const {
    wire::CacheSnapshot snapshot;
    snapshot.set_sequence(sequence_);
    snapshot.set_digest(digest_.value());
    for (const uint64_t number : numbers) {
      snapshot.add_blocks(Key(number).high);
      snapshot.add_blocks(Key(number).low);
    }
    snapshot.set_first(first);
    snapshot.set_last(last);
    return snapshot;
  }

  PrefixIndex index_{1000};
  CacheFeed feed_{&index_};
  uint64_t sequence_ = 0;
  Digest digest_;
};

TEST_F(CacheFeedTest, BeginsWithASnapshotAndGoesOnWithChanges) {
  // What was said before the snapshot is in it.
  EXPECT_EQ(feed_.Take(Change({1, 2, 3})), Next::kGoOn);
  EXPECT_EQ(index_.blocks(), 0);
  EXPECT_EQ(feed_.Take(Snapshot({1, 2}, true, false)), Next::kGoOn);
  EXPECT_EQ(feed_.Take(Snapshot({3}, false, true)), Next::kGoOn);
  EXPECT_EQ(index_.blocks(), 3);
  EXPECT_EQ(feed_.Take(Change({4, -3})), Next::kGoOn);
  EXPECT_EQ(feed_.Take(Change({3})), Next::kGoOn);
  EXPECT_EQ(index_.blocks(), 4);
  EXPECT_EQ(index_.Depths(std::vector<BlockKey>{Key(4)}, 0)[feed_.slot()], 1);
  EXPECT_EQ(feed_.breaks(), 0);
}

TEST_F(CacheFeedTest, AGapVoidsAllUntilTheNextSnapshot) {
  EXPECT_EQ(feed_.Take(Snapshot({})), Next::kGoOn);
  EXPECT_EQ(feed_.Take(Change({1})), Next::kGoOn);
  Change({2});  // lost
  EXPECT_EQ(feed_.Take(Change({3})), Next::kAskSnapshot);
  EXPECT_EQ(index_.blocks(), 0);
  EXPECT_EQ(feed_.Take(Change({4})), Next::kGoOn) << "asked once";
  EXPECT_EQ(feed_.Take(Snapshot({1, 2, 3, 4})), Next::kGoOn);
  EXPECT_EQ(feed_.Take(Change({5})), Next::kGoOn);
  EXPECT_EQ(index_.blocks(), 5);
  EXPECT_EQ(feed_.breaks(), 1);
  EXPECT_EQ(feed_.snapshots(), 2);
}

TEST_F(CacheFeedTest, AWrongDigestIsSeen) {
  EXPECT_EQ(feed_.Take(Snapshot({})), Next::kGoOn);
  wire::CacheChanges changes = Change({1, 2});
  changes.set_blocks(0, 99);
  EXPECT_EQ(feed_.Take(changes), Next::kAskSnapshot);
  EXPECT_EQ(feed_.Take(Snapshot({1})), Next::kAskSnapshot) << "one is missing";
  EXPECT_EQ(feed_.Take(Snapshot({1, 2})), Next::kGoOn);
  EXPECT_EQ(index_.blocks(), 2);
}

TEST_F(CacheFeedTest, AWorkerWhoseSnapshotsAreWrongIsAskedNoMore) {
  EXPECT_EQ(feed_.Take(Snapshot({})), Next::kGoOn);
  Change({1, 2});  // lost
  EXPECT_EQ(feed_.Take(Change({3})), Next::kAskSnapshot);
  EXPECT_EQ(feed_.Take(Snapshot({1})), Next::kAskSnapshot);
  EXPECT_EQ(feed_.Take(Snapshot({1})), Next::kAskSnapshot);
  EXPECT_EQ(feed_.Take(Snapshot({1})), Next::kGoOn);
  EXPECT_EQ(feed_.Take(Change({4})), Next::kGoOn);
  EXPECT_EQ(index_.blocks(), 0);
}

TEST_F(CacheFeedTest, HalfAChangeIsSeen) {
  EXPECT_EQ(feed_.Take(Snapshot({})), Next::kGoOn);
  wire::CacheChanges changes = Change({1});
  changes.add_blocks(5);
  EXPECT_EQ(feed_.Take(changes), Next::kAskSnapshot);
}

TEST(CacheFeedEndTest, ItsEndForgetsTheWorker) {
  PrefixIndex index(10);
  auto feed = std::make_unique<CacheFeed>(&index);
  index.Store(feed->slot(), Key(1));
  feed.reset();
  EXPECT_EQ(index.blocks(), 0);
  EXPECT_EQ(CacheFeed(&index).slot(), 0);
}

}  // namespace
}  // namespace glm::router
