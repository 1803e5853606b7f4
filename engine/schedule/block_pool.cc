#include "engine/schedule/block_pool.h"

#include <limits>

#include "proto/base/log.h"

namespace glm::engine {

BlockPool::BlockPool(int64_t blocks) {
  CHECK_GE(blocks, 1);
  CHECK_LE(blocks, std::numeric_limits<int32_t>::max());
  references_.assign(blocks, 0);
  free_.reserve(blocks);
  // Highest first, so that the stack hands out block 0 first.
  for (int64_t block = blocks - 1; block >= 0; --block) {
    free_.push_back(static_cast<int32_t>(block));
  }
}

int32_t BlockPool::Allocate() {
  CHECK(!free_.empty()) << "all " << blocks_total() << " KV blocks are held";
  const int32_t block = free_.back();
  free_.pop_back();
  CHECK_EQ(references_[block], 0) << "free KV block " << block;
  references_[block] = 1;
  return block;
}

void BlockPool::Share(int32_t block) {
  CHECK_GE(references(block), 1) << "KV block " << block << " is free";
  ++references_[block];
}

void BlockPool::Release(int32_t block) {
  CHECK_GE(references(block), 1) << "KV block " << block << " is free";
  if (--references_[block] > 0) return;
  free_.push_back(block);
  CHECK_LE(blocks_free(), blocks_total());
}

int32_t BlockPool::references(int32_t block) const {
  CHECK(block >= 0 && block < blocks_total()) << "KV block " << block << " of " << blocks_total();
  return references_[block];
}

void BlockPool::CheckConsistent() const {
  std::vector<bool> free(references_.size(), false);
  for (const int32_t block : free_) {
    CHECK(!free[block]) << "KV block " << block << " is twice on the free list";
    CHECK_EQ(references_[block], 0) << "KV block " << block << " is on the free list";
    free[block] = true;
  }
  for (int64_t block = 0; block < blocks_total(); ++block) {
    CHECK(free[block] || references_[block] >= 1) << "KV block " << block << " is lost";
  }
}

}  // namespace glm::engine
