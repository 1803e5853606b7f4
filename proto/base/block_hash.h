// The names of prefix-cache blocks, and the digest of what a cache holds. Pure functions, any
// thread.
//
// Who calls: an engine, to name the blocks that it keeps; a router, to find out which engine keeps
// a prompt's blocks. Both must agree to the byte, so this is a wire contract:
//
//   key(block) = SipHash-2-4-128 under the deployment's key of
//     of a first block:  01 | bytes of the salt, as u32 | the salt | the block's ids
//     of any other:      02 | low of the parent, as u64 | high of the parent, as u64 | its ids
//
// Integers are little-endian; an id is 4 bytes; a block has exactly P ids. `low` is the first 8
// bytes of the hash as a little-endian number, `high` the last 8. A hash of zero counts as low = 1,
// since the key of all zeros stands for "no parent".
//
// So a key names a block's tokens, all tokens before them, and the salt; who does not know the
// deployment's key can neither make two prompts share a name nor learn from a name what a prompt
// is. The engine compares the tokens themselves before it shares a block.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace glm {

/// The name of a full block and of all before it.
struct BlockKey {
  uint64_t high = 0;
  uint64_t low = 0;
  bool operator==(const BlockKey&) const = default;
};

/// For hash tables: the key is as good as random already.
struct BlockKeyHash {
  size_t operator()(const BlockKey& key) const { return static_cast<size_t>(key.low); }
};

/// The 128-bit key of a deployment's hashes.
using HashKey = std::array<uint8_t, 16>;

/// 32 hex digits, the first byte first; an empty text is the public key, the bytes of
/// "glmserve prefix!". Nothing for any other text.
std::optional<HashKey> ParseHashKey(std::string_view hex);

/// SipHash-2-4 with 128 bits of output: J.-P. Aumasson and D. J. Bernstein, "SipHash: a fast
/// short-input PRF", 2012, and their reference code for the longer output.
BlockKey SipHash128(const HashKey& key, std::span<const uint8_t> bytes);

/// Names blocks under one key. Not thread-safe: it keeps a buffer.
class BlockHasher {
 public:
  explicit BlockHasher(const HashKey& key) : key_(key) {}

  /// The key of the block of `ids` at the beginning of a prompt.
  BlockKey First(std::string_view salt, std::span<const int32_t> ids);
  /// The key of the block of `ids` that follows `parent`.
  BlockKey Next(const BlockKey& parent, std::span<const int32_t> ids);

 private:
  BlockKey Finish(std::span<const int32_t> ids);

  const HashKey key_;
  std::vector<uint8_t> bytes_;
};

/// A digest of the set of blocks that a cache holds, kept up change by change: the sum, modulo
/// 2^64, of a term for each of them:
///
///   x = (high xor (low * 0x9E3779B97F4A7C15)) * 0xBF58476D1CE4E5B9;  term = x xor (x >> 32)
///
/// Who missed a change, took one twice or mixed two up has another value; so does a snapshot that
/// is not whole.
class Digest {
 public:
  void Store(const BlockKey& block) { value_ += Term(block); }
  void Remove(const BlockKey& block) { value_ -= Term(block); }
  uint64_t value() const { return value_; }

 private:
  static uint64_t Term(const BlockKey& block) {
    const uint64_t x = (block.high ^ (block.low * 0x9E3779B97F4A7C15u)) * 0xBF58476D1CE4E5B9u;
    return x ^ (x >> 32);
  }
  uint64_t value_ = 0;
};

}  // namespace glm
