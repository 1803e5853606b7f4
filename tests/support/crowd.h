// Many clients at once, each with a streaming answer on a connection of its own.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "nlohmann/json.hpp"

namespace glm::tests {

/// One choice of an answer, put together from its events.
struct CrowdChoice {
  std::string text;  // of completions, or a chat's content
  std::string reasoning;
  std::vector<std::string> tokens;  // with their logprobs, if asked for
  std::vector<double> logprobs;
  std::string finish;
};

struct CrowdAnswer {
  std::vector<CrowdChoice> choices;
  bool is_whole = false;  // [DONE] came
  std::string error;      // of an error event
  int events = 0;
  double gap_max_s = 0;  // between two events, or from the request to the first
};

class Crowd {
 public:
  /// Begins to ask each of `bodies` (streaming requests) of `target` at once.
  Crowd(int port, const std::string& target, std::vector<std::string> bodies);
  /// As Await.
  ~Crowd();

  /// Events that all answers have got so far.
  int64_t events() const { return events_; }
  /// Waits until they have got `count`; false after `seconds`.
  bool AwaitEvents(int64_t count, double seconds = 60) const;
  /// Waits for all answers, in the order of the bodies.
  std::vector<CrowdAnswer> Await();

 private:
  void Ask(int port, const std::string& target, const std::string& body, CrowdAnswer* answer);

  std::atomic<int64_t> events_{0};
  std::vector<CrowdAnswer> answers_;
  std::vector<std::thread> threads_;
};

/// Adds failures for what of `answers` is not whole or not as in `right`; logprobs may differ by
/// 1e-3, as another worker rounds them.
void ExpectSameAnswers(const std::vector<CrowdAnswer>& right,
                       const std::vector<CrowdAnswer>& answers);

/// The longest gap of all.
double GapMax(const std::vector<CrowdAnswer>& answers);

}  // namespace glm::tests
