// Looks for stop strings in text that comes in pieces.
//
// Who calls: Detokenizer. One object per answer, one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace glm::router {

class StopMatcher {
 public:
  struct Match {
    size_t stop_index = 0;  // which of the stop strings
    size_t bytes = 0;       // its length
    size_t end = 0;         // position behind it in the text of this call
  };

  /// REQUIRES: each stop string is valid UTF-8 and not empty.
  explicit StopMatcher(std::vector<std::string> stops);

  /// Takes the next text. The first stop string to be complete is the match; of those that are
  /// complete at the same byte the longest. To be called no more after a match.
  std::optional<Match> Feed(std::string_view text);

  /// How many of the last bytes may be the beginning of a stop string.
  size_t held_bytes() const { return held_bytes_; }

  const std::string& stop(size_t index) const { return stops_[index].text; }

 private:
  struct Stop {
    std::string text;
    std::vector<uint32_t> fallback;  // by bytes matched: the next shorter match that may go on
    size_t matched = 0;              // bytes
  };

  std::vector<Stop> stops_;
  size_t held_bytes_ = 0;
};

}  // namespace glm::router
