#include "router/route/placement.h"

namespace glm::router {

Placement::Placement(Policy policy, const HashKey& key, int64_t prefix_blocks_max,
                     int32_t expect_ms)
    : policy_(policy), key_(key), expect_ms_(expect_ms), index_(prefix_blocks_max) {}

std::vector<BlockKey> Placement::Chain(std::string_view salt, absl::Span<const int32_t> ids,
                                       int32_t block_size) const {
  std::vector<BlockKey> chain;
  if (!CountsPrefixes(policy_)) return chain;
  BlockHasher hasher(key_);
  const auto size = static_cast<size_t>(block_size);
  chain.reserve(ids.size() / size);
  for (size_t begin = 0; begin + size < ids.size(); begin += size) {
    const std::span<const int32_t> block(ids.data() + begin, size);
    chain.push_back(begin == 0 ? hasher.First(salt, block) : hasher.Next(chain.back(), block));
  }
  return chain;
}

uint64_t Placement::HashOf(std::string_view name) const {
  const auto* bytes = reinterpret_cast<const uint8_t*>(name.data());
  return SipHash128(key_, std::span<const uint8_t>(bytes, name.size())).low;
}

}  // namespace glm::router
