#include "proto/base/block_hash.h"

#include <bit>
#include <cstddef>
#include <cstring>

namespace glm {
namespace {

constexpr HashKey kPublicKey = {'g', 'l', 'm', 's', 'e', 'r', 'v', 'e',
                                ' ', 'p', 'r', 'e', 'f', 'i', 'x', '!'};

static_assert(std::endian::native == std::endian::little, "words are copied as they lie");

/// `count` bytes, at most 8, as a little-endian number.
uint64_t LoadLittle(const uint8_t* bytes, size_t count) {
  uint64_t value = 0;
  std::memcpy(&value, bytes, count);
  return value;
}

/// Adds the lowest `count` bytes of `value`.
void AppendLittle(uint64_t value, size_t count, std::vector<uint8_t>* bytes) {
  const size_t at = bytes->size();
  bytes->resize(at + count);
  std::memcpy(bytes->data() + at, &value, count);
}

struct SipState {
  uint64_t v0, v1, v2, v3;

  void Round() {
    v0 += v1;
    v1 = std::rotl(v1, 13) ^ v0;
    v0 = std::rotl(v0, 32);
    v2 += v3;
    v3 = std::rotl(v3, 16) ^ v2;
    v0 += v3;
    v3 = std::rotl(v3, 21) ^ v0;
    v2 += v1;
    v1 = std::rotl(v1, 17) ^ v2;
    v2 = std::rotl(v2, 32);
  }
  void Absorb(uint64_t word) {
    v3 ^= word;
    Round();
    Round();
    v0 ^= word;
  }
  uint64_t Squeeze() {
    for (int round = 0; round < 4; ++round) Round();
    return v0 ^ v1 ^ v2 ^ v3;
  }
};

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

std::optional<HashKey> ParseHashKey(std::string_view hex) {
  if (hex.empty()) return kPublicKey;
  HashKey key{};
  if (hex.size() != 2 * key.size()) return std::nullopt;
  for (size_t i = 0; i < key.size(); ++i) {
    const int high = HexDigit(hex[2 * i]);
    const int low = HexDigit(hex[2 * i + 1]);
    if (high < 0 || low < 0) return std::nullopt;
    key[i] = static_cast<uint8_t>(high * 16 + low);
  }
  return key;
}

BlockKey SipHash128(const HashKey& key, std::span<const uint8_t> bytes) {
  const uint64_t k0 = LoadLittle(key.data(), 8);
  const uint64_t k1 = LoadLittle(key.data() + 8, 8);
  SipState state{k0 ^ 0x736f6d6570736575u, k1 ^ 0x646f72616e646f6du ^ 0xee,
                 k0 ^ 0x6c7967656e657261u, k1 ^ 0x7465646279746573u};
  size_t at = 0;
  for (; at + 8 <= bytes.size(); at += 8) state.Absorb(LoadLittle(bytes.data() + at, 8));
  state.Absorb(LoadLittle(bytes.data() + at, bytes.size() - at) |
               static_cast<uint64_t>(bytes.size()) << 56);
  state.v2 ^= 0xee;
  BlockKey hash;
  hash.low = state.Squeeze();
  state.v1 ^= 0xdd;
  hash.high = state.Squeeze();
  return hash;
}

BlockKey BlockHasher::First(std::string_view salt, std::span<const int32_t> ids) {
  bytes_.assign(1, 1);
  AppendLittle(salt.size(), 4, &bytes_);
  bytes_.insert(bytes_.end(), salt.begin(), salt.end());
  return Finish(ids);
}

BlockKey BlockHasher::Next(const BlockKey& parent, std::span<const int32_t> ids) {
  bytes_.assign(1, 2);
  AppendLittle(parent.low, 8, &bytes_);
  AppendLittle(parent.high, 8, &bytes_);
  return Finish(ids);
}

BlockKey BlockHasher::Finish(std::span<const int32_t> ids) {
  const auto* const begin = reinterpret_cast<const uint8_t*>(ids.data());
  bytes_.insert(bytes_.end(), begin, begin + ids.size_bytes());
  BlockKey key = SipHash128(key_, bytes_);
  if (key == BlockKey{}) key.low = 1;
  return key;
}

}  // namespace glm
