// Finds the added tokens of a tokenizer (<|user|>, <think>, ...) in text.
//
// Who calls: Tokenizer. Const and thread-safe once built.
#pragma once

#include <bitset>
#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace glm::router {

class AddedTokens {
 public:
  struct Match {
    size_t position = std::string_view::npos;  // npos: none
    size_t bytes = 0;
    int32_t id = -1;
  };

  AddedTokens();

  /// REQUIRES: `content` is not empty. The later of two with the same content wins.
  void Add(std::string_view content, int32_t id);

  /// The leftmost match at or after `from`; the longest of those that begin there.
  Match Find(std::string_view text, size_t from) const;

  bool empty() const { return first_bytes_.none(); }

 private:
  static constexpr int32_t kNone = -1;

  // A trie. Nodes are numbered; node 0 is the root.
  absl::flat_hash_map<uint64_t, int32_t> edges_;  // node << 8 | byte
  std::vector<int32_t> ids_;                      // by node; kNone where no token ends
  std::bitset<256> first_bytes_;
};

}  // namespace glm::router
