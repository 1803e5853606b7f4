// Who a request is for, as the queue tells clients apart: a digest of an API key or of a header, so
// that no secret is kept and nothing that a client wrote gets into logs or metrics.
#pragma once

#include <compare>
#include <cstdint>

namespace glm::router {

/// All zero: nobody in particular; such requests share one tenant.
struct TenantId {
  uint64_t high = 0;
  uint64_t low = 0;
  auto operator<=>(const TenantId&) const = default;
};

/// For hash tables: the digest is as good as random already.
struct TenantIdHash {
  size_t operator()(const TenantId& id) const { return static_cast<size_t>(id.low); }
};

}  // namespace glm::router
