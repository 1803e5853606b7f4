// The merge table of byte-pair encoding, and the merging.
//
// Who calls: Tokenizer. Const and thread-safe once built.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace glm::router {

class Merges {
 public:
  /// `byte_ids[b]` is the token of the single byte b.
  void SetBytes(const std::array<int32_t, 256>& byte_ids);

  /// `left` and `right` side by side become `merged`; the lowest rank merges first. The later of
  /// two with the same pair wins.
  void Add(int32_t left, int32_t right, int32_t rank, int32_t merged);

  /// Appends the tokens of one piece, which is not empty. Time grows as n log n with the piece's
  /// bytes.
  void Encode(std::string_view piece, std::vector<int32_t>* ids) const;

 private:
  struct Merge {
    int32_t rank;
    int32_t merged;
  };

  const Merge* Find(int32_t left, int32_t right) const;
  void EncodeShort(std::string_view piece, std::vector<int32_t>* ids) const;
  void EncodeLong(std::string_view piece, std::vector<int32_t>* ids) const;

  std::array<int32_t, 256> byte_ids_ = {};
  absl::flat_hash_map<uint64_t, Merge> merges_;  // left << 32 | right
};

}  // namespace glm::router
