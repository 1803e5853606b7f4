#include "router/text/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "proto/base/log.h"

namespace glm::router {
namespace {

// For each count of matched bytes (1 to size), how long the longest other beginning of `text` is
// that these bytes end with.
std::vector<uint32_t> Fallbacks(const std::string& text) {
  std::vector<uint32_t> fallback(text.size() + 1, 0);
  uint32_t matched = 0;
  for (size_t i = 1; i < text.size(); ++i) {
    while (matched > 0 && text[i] != text[matched]) matched = fallback[matched];
    if (text[i] == text[matched]) ++matched;
    fallback[i + 1] = matched;
  }
  return fallback;
}

}  // namespace

StopMatcher::StopMatcher(std::vector<std::string> stops) {
  stops_.reserve(stops.size());
  for (std::string& text : stops) {
    CHECK(!text.empty());
    std::vector<uint32_t> fallback = Fallbacks(text);
    stops_.push_back({std::move(text), std::move(fallback)});
  }
}

std::optional<StopMatcher::Match> StopMatcher::Feed(std::string_view text) {
  if (stops_.empty()) return std::nullopt;
  std::optional<Match> match;
  for (size_t i = 0; i < text.size(); ++i) {
    held_bytes_ = 0;
    for (size_t index = 0; index < stops_.size(); ++index) {
      Stop& stop = stops_[index];
      while (stop.matched > 0 && text[i] != stop.text[stop.matched]) {
        stop.matched = stop.fallback[stop.matched];
      }
      if (text[i] == stop.text[stop.matched]) ++stop.matched;
      held_bytes_ = std::max(held_bytes_, stop.matched);
      if (stop.matched < stop.text.size()) continue;
      if (!match || stop.matched > match->bytes) match = Match{index, stop.matched, i + 1};
    }
    if (match) return match;
  }
  return std::nullopt;
}

}  // namespace glm::router
