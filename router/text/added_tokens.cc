#include "router/text/added_tokens.h"

#include "proto/base/log.h"

namespace glm::router {
namespace {

uint64_t EdgeKey(int32_t node, char byte) {
  return static_cast<uint64_t>(node) << 8 | static_cast<uint8_t>(byte);
}

}  // namespace

AddedTokens::AddedTokens() : ids_(1, kNone) {}

void AddedTokens::Add(std::string_view content, int32_t id) {
  CHECK(!content.empty());
  int32_t node = 0;
  for (const char byte : content) {
    const auto [edge, is_new] =
        edges_.try_emplace(EdgeKey(node, byte), static_cast<int32_t>(ids_.size()));
    if (is_new) ids_.push_back(kNone);
    node = edge->second;
  }
  ids_[node] = id;
  first_bytes_.set(static_cast<uint8_t>(content[0]));
}

AddedTokens::Match AddedTokens::Find(std::string_view text, size_t from) const {
  Match match;
  if (empty()) return match;
  for (size_t begin = from; begin < text.size(); ++begin) {
    if (!first_bytes_[static_cast<uint8_t>(text[begin])]) continue;
    int32_t node = 0;
    for (size_t i = begin; i < text.size(); ++i) {
      const auto edge = edges_.find(EdgeKey(node, text[i]));
      if (edge == edges_.end()) break;
      node = edge->second;
      if (ids_[node] != kNone) match = {begin, i + 1 - begin, ids_[node]};
    }
    if (match.id != kNone) return match;
  }
  return match;
}

}  // namespace glm::router
