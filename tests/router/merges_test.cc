#include "router/text/merges.h"

#include <gtest/gtest.h>

#include <array>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace glm::router {
namespace {

struct Rule {
  int32_t left, right, merged;
};

// Byte-pair merging as it is defined: the pair of the lowest rank, the leftmost of these, again and
// again.
std::vector<int32_t> MergeSlowly(const std::vector<Rule>& rules, std::string_view piece) {
  std::map<std::pair<int32_t, int32_t>, size_t> ranks;
  for (size_t rank = 0; rank < rules.size(); ++rank) {
    ranks[{rules[rank].left, rules[rank].right}] = rank;
  }
  std::vector<int32_t> ids;
  for (const char c : piece) ids.push_back(static_cast<uint8_t>(c));
  while (true) {
    size_t best = rules.size(), place = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto rank = ranks.find({ids[i], ids[i + 1]});
      if (rank != ranks.end() && rank->second < best) best = rank->second, place = i;
    }
    if (best == rules.size()) return ids;
    ids[place] = rules[best].merged;
    ids.erase(ids.begin() + place + 1);
  }
}

TEST(MergesTest, EqualsTheDefinitionForShortAndLongPieces) {
  std::mt19937 rng(11);
  for (int round = 0; round < 40; ++round) {
    // Random rules over three letters; equal texts get equal ids, as in a vocabulary.
    std::vector<Rule> rules;
    std::map<std::string, int32_t> vocabulary = {{"a", 'a'}, {"b", 'b'}, {"c", 'c'}};
    std::vector<std::string> texts = {"a", "b", "c"};
    Merges merges;
    std::array<int32_t, 256> byte_ids;
    for (int byte = 0; byte < 256; ++byte) byte_ids[byte] = byte;
    merges.SetBytes(byte_ids);
    for (int rank = 0; rank < 60; ++rank) {
      const std::string left = texts[rng() % texts.size()];
      const std::string right = texts[rng() % texts.size()];
      if (left.size() + right.size() > 12) continue;
      const auto [merged, is_new] =
          vocabulary.try_emplace(left + right, 256 + static_cast<int32_t>(vocabulary.size()));
      if (is_new) texts.push_back(left + right);
      rules.push_back({vocabulary[left], vocabulary[right], merged->second});
      merges.Add(rules.back().left, rules.back().right, static_cast<int32_t>(rules.size()) - 1,
                 rules.back().merged);
    }
    for (const size_t bytes : {1, 2, 3, 7, 20, 47, 48, 49, 50, 100, 300}) {
      std::string piece;
      for (size_t i = 0; i < bytes; ++i) piece += static_cast<char>('a' + rng() % 3);
      std::vector<int32_t> ids;
      merges.Encode(piece, &ids);
      EXPECT_EQ(ids, MergeSlowly(rules, piece)) << piece;
    }
  }
}

}  // namespace
}  // namespace glm::router
