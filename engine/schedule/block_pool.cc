#include "engine/schedule/block_pool.h"

#include <limits>

#include "proto/base/log.h"

namespace glm::engine {

BlockPool::BlockPool(int64_t blocks) {
  CHECK_GE(blocks, 1);
  CHECK_LE(blocks, std::numeric_limits<int32_t>::max());
  references_.assign(blocks, 0);
  links_.resize(blocks);
  free_.reserve(blocks);
  // Highest first, so that the stack hands out block 0 first.
  for (int64_t block = blocks - 1; block >= 0; --block) {
    free_.push_back(static_cast<int32_t>(block));
  }
}

int32_t BlockPool::Allocate() {
  CHECK(!free_.empty()) << "no KV block of " << blocks_total() << " is free";
  const int32_t block = free_.back();
  free_.pop_back();
  CHECK_EQ(references_[block], 0) << "free KV block " << block;
  references_[block] = 1;
  return block;
}

void BlockPool::Share(int32_t block) {
  const bool idle = references(block) == 0 && links_[block].kept;
  CHECK(idle || references(block) >= 1) << "KV block " << block << " is free";
  if (idle) Unlink(block);
  ++references_[block];
}

void BlockPool::Release(int32_t block) {
  CHECK_GE(references(block), 1) << "KV block " << block << " is not held";
  if (--references_[block] > 0) return;
  if (!links_[block].kept) {
    free_.push_back(block);
    return;
  }
  links_[block].before = last_idle_;
  (last_idle_ >= 0 ? links_[last_idle_].after : first_idle_) = block;
  last_idle_ = block;
  ++blocks_idle_;
}

void BlockPool::Keep(int32_t block) {
  CHECK_GE(references(block), 1) << "KV block " << block << " is not held";
  CHECK(!links_[block].kept) << "KV block " << block << " is kept already";
  links_[block].kept = true;
}

void BlockPool::Forget(int32_t block) {
  CHECK(references(block) == 0 && links_[block].kept) << "KV block " << block << " is not idle";
  Unlink(block);
  links_[block].kept = false;
  free_.push_back(block);
}

void BlockPool::Unlink(int32_t block) {
  Link& link = links_[block];
  (link.before >= 0 ? links_[link.before].after : first_idle_) = link.after;
  (link.after >= 0 ? links_[link.after].before : last_idle_) = link.before;
  link.before = link.after = -1;
  --blocks_idle_;
}

int32_t BlockPool::references(int32_t block) const {
  CHECK(block >= 0 && block < blocks_total()) << "KV block " << block << " of " << blocks_total();
  return references_[block];
}

void BlockPool::CheckConsistent() const {
  std::vector<bool> unused(references_.size(), false);
  const auto check_unused = [&](int32_t block, bool kept) {
    CHECK(!unused[block]) << "KV block " << block << " is twice among the unused";
    CHECK_EQ(references_[block], 0) << "KV block " << block << " is among the unused";
    CHECK_EQ(links_[block].kept, kept) << "KV block " << block;
    unused[block] = true;
  };
  for (const int32_t block : free_) check_unused(block, false);
  int64_t idle = 0;
  int32_t before = -1;
  for (int32_t block = first_idle_; block >= 0; block = links_[block].after) {
    check_unused(block, true);
    CHECK_EQ(links_[block].before, before);
    before = block;
    ++idle;
  }
  CHECK_EQ(before, last_idle_);
  CHECK_EQ(idle, blocks_idle_);
  for (int64_t block = 0; block < blocks_total(); ++block) {
    CHECK(unused[block] || references_[block] >= 1) << "KV block " << block << " is lost";
  }
}

}  // namespace glm::engine
