// How requests are placed: the policy, and what it needs besides the fleet's load: the index of
// prefixes, names of a prompt's blocks, turns.
//
// Who calls: exchanges, on their loops; main makes it. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/types/span.h"
#include "proto/base/block_hash.h"
#include "router/route/policy.h"
#include "router/route/prefix_index.h"

namespace glm::router {

class Placement {
 public:
  /// `prefix_blocks_max` blocks are remembered; a prompt that was sent counts as cached for
  /// `expect_ms`.
  Placement(Policy policy, const HashKey& key, int64_t prefix_blocks_max, int32_t expect_ms);
  Placement(const Placement&) = delete;
  Placement& operator=(const Placement&) = delete;

  PrefixIndex& index() { return index_; }
  Policy policy() const { return policy_; }
  /// The number of this call, from 0.
  uint64_t NextTurn() { return turns_.fetch_add(1, std::memory_order_relaxed); }

  /// Names of the full blocks of `ids` that a cache could give to a prompt: of all but its last
  /// token, which is always computed. Empty when the policy does not ask for them.
  std::vector<BlockKey> Chain(std::string_view salt, absl::Span<const int32_t> ids,
                              int32_t block_size) const;
  /// A number that stands for a name, the same in every router of a deployment.
  uint64_t HashOf(std::string_view name) const;
  int32_t expect_ms() const { return expect_ms_; }

 private:
  const Policy policy_;
  const HashKey key_;
  const int32_t expect_ms_;
  PrefixIndex index_;
  std::atomic<uint64_t> turns_{0};
};

}  // namespace glm::router
